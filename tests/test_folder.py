"""The metrics of a run: whole lines of steps, whatever else is in the file."""

import errno
import json
import os

import pytest

from splatdistill.errors import UserError
from splatdistill.folder import MetricsWriter, kept_scenes, read_metrics

STRANGE = [
    b'{"step": null}',
    b'{"step": "3"}',
    b'{"step": true}',
    b'{"step": 1.5}',
    b'{"step": [1]}',
    b"{}",
    b"[1]",
    b"null",
    b"3",
    b'"step"',
    b"\xff\xfe",
    b"",
    b"[" * 100_000,
    b'{"step": 2, "loss"',
]


@pytest.mark.parametrize("line", STRANGE)
def test_lines_of_no_step_are_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 5}\n{"step": 2')
    assert [record["step"] for record in read_metrics(path)] == [1, 5]
    with MetricsWriter(path, resume_step=3) as writer:
        writer.write(3, loss=float("nan"))
    assert [json.loads(text) for text in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 3, "loss": None},
    ]


def test_a_full_disk_is_one_line_when_a_step_is_written(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full, MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        os.dup2(full.fileno(), writer._file.fileno())
        with pytest.raises(UserError, match="No space left on device; make room"):
            writer.write(1, loss=1.0)
    assert os.strerror(errno.ENOSPC) == "No space left on device"


def test_scenes_are_in_the_order_of_their_steps_without_strangers(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-100000000.ply", "step-00000002.ply", "step-final.ply", "step-3.ply"):
        (tmp_path / "checkpoints" / name).touch()
    names = [path.name for path in kept_scenes(tmp_path)]
    assert names == ["step-00000002.ply", "step-100000000.ply"]
