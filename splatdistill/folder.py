"""What the folder of a run holds: the name of every file, and its metrics, one line of JSON a step."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from splatdistill.errors import UserError
from splatdistill.files import atomic_write

RESULT = "splat.ply"  # written last: a folder that holds it is a finished run
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # a folder: step-N.pt, and step-N.ply of the scenes that are kept
PREVIEW = "preview.png"
TURNTABLE = "turntable.webp"
FILM = "turntable.mp4"  # where there is an ffmpeg
FILMSTRIP = "filmstrip.png"
REPORT = "report.html"
REFERENCE = "reference.png"  # the picture that the run started from
SOURCE = "source.ply"  # the splat that the run edits
COMPARED = "before_after.png"  # of an edit
LOG = "log.txt"  # what a run of a list printed
SEEDS = "seeds.png"  # in the folder that holds the runs of several seeds

OUTPUTS = (
    RESULT,
    PREVIEW,
    TURNTABLE,
    FILM,
    FILMSTRIP,
    REPORT,
    METRICS,
    CONFIG,
    CHECKPOINTS,
    REFERENCE,
    SOURCE,
    COMPARED,
)


def checkpoint_name(step: int, suffix: str = ".pt") -> str:
    """Return the name of a file of `checkpoint_path`."""
    return f"step-{step:08d}{suffix}"


def checkpoint_path(run: Path, step: int, suffix: str = ".pt") -> Path:
    """Return the file of the checkpoint taken after `step` steps, or of the scene then (".ply")."""
    return run / CHECKPOINTS / checkpoint_name(step, suffix)


def step_of(path: Path) -> int:
    """Return the step that a file of `checkpoint_path` was written after."""
    return int(path.stem.removeprefix("step-"))


def kept_scenes(run: Path) -> list[Path]:
    """Return the scenes kept during a run, in the order of their steps."""
    return sorted((run / CHECKPOINTS).glob("step-*.ply"), key=step_of)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without lines that a crash tore; none where there is no such file."""
    lines = _lines_before(path, sys.maxsize) if path.is_file() else []
    return [json.loads(line) for line in lines]


class MetricsWriter:
    """Appends one JSON object a line to a file: a line is on its way to the disk when `write` returns.

    Opening keeps the lines of steps before resume_step and drops the others, with a torn last one: a resumed
    run repeats those steps; 0 starts the file anew. Raises UserError when the file cannot be written.
    """

    def __init__(self, path: str | Path, resume_step: int = 0) -> None:
        path = Path(path)
        kept = _lines_before(path, resume_step) if resume_step > 0 and path.exists() else []
        with atomic_write(path) as file:
            file.writelines(kept)
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - open for the whole run, see close()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another output folder") from error

    def write(self, step: int, **values: float | int | str | None) -> None:
        """Append the values of a step; numbers that are not finite, which JSON lacks, become null."""
        record: dict[str, Any] = {"step": step}
        for name, value in values.items():
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines_before(path: Path, step: int) -> list[bytes]:
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", step) < step:
            kept.append(line)
    return kept
