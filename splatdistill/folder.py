"""The layout of a run's folder: all file names, and metrics.jsonl with one line of JSON a step.

Locking and replacing an older run is in training/claim.py.
"""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from splatdistill.files import atomic_write, cannot_write

RESULT = "splat.ply"  # written last: a folder that holds it is a finished run
CONFIG = "config.yaml"
RECORD = "result.json"  # what the run was asked for, and what its teacher made of that
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # a folder: step-N.pt, and step-N.ply of the scenes that are kept
PREVIEW = "preview.png"
TURNTABLE = "turntable.webp"
FILM = "turntable.mp4"  # where there is an ffmpeg
FILMSTRIP = "filmstrip.png"
REPORT = "report.html"
REFERENCE = "reference.png"  # the reference picture
CAPTURES = "captures.npz"  # the reference pictures with cameras
SOURCE = "source.ply"  # the splat that the run edits
MASK = "mask.npy"  # the indices of the Gaussians that the run may change, where they had to be found
COMPARED = "before_after.png"  # of an edit
LOG = "log.txt"  # output of a run of a suite
SEEDS = "seeds.png"  # in the folder that holds the runs of several seeds
BATCH_SETTINGS = "batch.yaml"  # beside it: what all of them share
BATCH = "batch.html"  # in the folder that holds the runs of a list
SWEEP = "sweep.html"  # in the folder that holds the runs of a sweep
VALIDATION = "validation"  # a folder: step-N.png, intermediate images if enabled
TENSORBOARD = "tensorboard"  # a folder: event files, if enabled
PREVIOUS = "previous-run"  # a folder: the run that --overwrite replaces, until the new one has its result

OUTPUTS = (
    RESULT,
    PREVIEW,
    TURNTABLE,
    FILM,
    FILMSTRIP,
    REPORT,
    METRICS,
    CONFIG,
    RECORD,
    CHECKPOINTS,
    REFERENCE,
    CAPTURES,
    SOURCE,
    MASK,
    COMPARED,
)


def checkpoint_name(step: int, suffix: str = ".pt") -> str:
    """Return the name of a file of `checkpoint_path`."""
    return f"step-{step:08d}{suffix}"


def checkpoint_path(run: Path, step: int, suffix: str = ".pt") -> Path:
    """Return the file of the checkpoint taken after `step` steps, or of the scene then (".ply")."""
    return run / CHECKPOINTS / checkpoint_name(step, suffix)


def step_of(path: Path) -> int:
    """Return the step in a file name of `checkpoint_path`."""
    return int(path.stem.removeprefix("step-"))


def is_piece(path: Path) -> bool:
    """Return whether a name is one of `checkpoint_path`."""
    return re.fullmatch(r"step-\d{8,}\.(pt|ply)", path.name) is not None


def kept_scenes(run: Path) -> list[Path]:
    """Return the scenes kept during a run, in the order of their steps."""
    return sorted(filter(is_piece, (run / CHECKPOINTS).glob("step-*.ply")), key=step_of)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl without torn lines; empty when there is no such file."""
    lines = _lines_before(path, sys.maxsize) if path.is_file() else []
    return [json.loads(line) for line in lines]


def last_step(path: Path) -> int:
    """Return the step of the last line of a metrics.jsonl, cheaply; 0 where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


class MetricsWriter:
    """A writer of one JSON object a line; each is flushed to the operating system when `write` returns.

    Opening keeps the lines of steps before resume_step and drops later and torn ones, since a resumed run
    repeats those steps; 0 starts the file anew. Without a path nothing is kept. Raises UserError when the
    file cannot be written.
    """

    def __init__(self, path: str | Path | None, resume_step: int = 0) -> None:
        self._path = path = Path(os.devnull if path is None else path)
        if path == Path(os.devnull):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            return
        kept = _lines_before(path, resume_step) if resume_step > 0 and path.exists() else []
        with atomic_write(path) as file:
            file.writelines(kept)
        try:
            # open for the whole run; unbuffered, so that a full disk raises in write()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(path, error, "give another output folder") from error

    def write(self, step: int, **values: float | int | str | None) -> None:
        """Append the metrics of a step; numbers that are not finite become null."""
        record: dict[str, Any] = {"step": step}
        for name, value in values.items():
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]  # a nearly full disk writes a part
        except OSError as error:
            raise cannot_write(self._path, error, "give another output folder") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines_before(path: Path, step: int) -> list[bytes]:
    """Return the complete lines of earlier steps; torn and foreign lines are left out."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        number = record.get("step") if isinstance(record, dict) else None
        if line.endswith(b"\n") and type(number) is int and number < step:
            kept.append(line)
    return kept
