"""Checkpoints that a crash cannot spoil: written whole, verified when read, the last few kept."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.folder import step_of


def save(path: str | Path, state: dict[str, Any], *, keep: int = 2) -> None:
    """Write a checkpoint atomically; then keep it and those before it, `keep` in all.

    state holds tensors, numbers, strings, and dicts, lists or tuples of them. Later checkpoints in the folder
    are deleted too: they were passed over as damaged, or belong to a run that this one replaces.
    Raises UserError when the folder cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    found = _newest_first(path.parent)
    newest = found.index(path)
    for other in found[:newest] + found[newest + keep :]:
        other.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; never runs code from it.

    Raises UserError when it is missing, damaged (every byte is under a checksum) or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums itself
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict):
                return state
    except FileNotFoundError as error:
        raise UserError(
            f"there is no checkpoint {path}; give the folder of a run that was started"
        ) from error
    except Exception as error:  # what a damaged archive raises is not documented: zipfile, pickle, struct...
        raise UserError(f"{path} is not a whole checkpoint ({type(error).__name__}); delete it") from error
    raise UserError(f"{path} is damaged or not a checkpoint; delete it")


def latest(directory: str | Path) -> dict[str, Any]:
    """The state in the newest checkpoint of a folder that can be read; damaged ones are passed over.

    Raises UserError when there is none.
    """
    paths = _newest_first(Path(directory))
    for path in paths:
        try:
            return load(path)
        except UserError:
            continue
    found = f"{len(paths)} damaged ones" if paths else "none"
    raise UserError(f"no checkpoint to resume from in {directory}: found {found}; start the run anew")


def _newest_first(directory: Path) -> list[Path]:
    paths = directory.glob("step-*.pt")
    return sorted((p for p in paths if re.fullmatch(r"step-\d{8,}\.pt", p.name)), key=step_of, reverse=True)
