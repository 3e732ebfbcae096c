"""A short form of benchmarks/fuzz_formats.py: its first cases, and those built to need memory."""

import pytest
from fuzz_formats import ENDINGS, HEAVY_EVERY, fuzz, samples, sound

from splatdistill import formats


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_give_a_scene_or_one_clear_error_within_the_memory_allowed(ending):
    pytest.importorskip("zstandard")
    row = fuzz(ending, range(200), seed=1)
    assert sound(row), row
    assert row["user_errors"] > 50 and row["scenes"] > 10


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_built_to_need_memory_stay_within_it(ending):
    pytest.importorskip("zstandard")
    row = fuzz(ending, range(HEAVY_EVERY - 1, 5 * HEAVY_EVERY, HEAVY_EVERY), seed=2)
    assert sound(row), row


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_flavour_that_is_damaged_is_sound_before(tmp_path, ending):
    pytest.importorskip("zstandard")
    for content in samples(ending):
        (tmp_path / f"a{ending}").write_bytes(content)
        assert len(formats.FORMATS[ending].read(tmp_path / f"a{ending}", print)[0]["means"]) in (12, 300)
