"""A short form of benchmarks/fuzz_formats.py: its first cases, and those built to need memory."""

import os
import signal

import numpy as np
import pytest
from damage import HEAVY_EVERY, samples
from fuzz_formats import ENDINGS, MIB, TRACED_EVERY, fuzz, in_process, sound

from splatdistill import formats
from splatdistill.errors import UserError


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_give_a_scene_or_one_clear_error_within_the_memory_allowed(tmp_path, ending):
    pytest.importorskip("zstandard")
    row = fuzz(ending, range(200), 1, tmp_path)
    assert sound(row), row
    assert row["user_errors"] > 50 and row["scenes"] > 10


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_built_to_need_memory_stay_within_it(tmp_path, ending):
    pytest.importorskip("zstandard")
    row = fuzz(ending, range(HEAVY_EVERY - 1, 5 * HEAVY_EVERY, HEAVY_EVERY), 2, tmp_path)
    assert sound(row), row


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_flavour_that_is_damaged_is_sound_before(tmp_path, ending):
    pytest.importorskip("zstandard")
    for content in samples(ending):
        (tmp_path / f"a{ending}").write_bytes(content)
        assert len(formats.FORMATS[ending].read(tmp_path / f"a{ending}", print)[0]["means"]) in (12, 300)


FAULTS = {
    "foreign exception": lambda *_, **__: {}["nothing"],
    "long error": lambda *_, **__: (_ for _ in ()).throw(UserError("a\nb")),
    "memory": lambda *_, **__: bytearray(100 * MIB),
    "memory that nobody touches": lambda *_, **__: np.empty(100 * MIB, np.uint8),
    "crash": lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda *_, **__: signal.pause(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_campaign_finds_a_planted_fault(monkeypatch, fault):
    monkeypatch.setattr(formats, "read_splat", FAULTS[fault])
    row = in_process(".splat", TRACED_EVERY, seed=0, hang_seconds=0.5)
    assert not sound(row), row
