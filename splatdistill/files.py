"""Atomic file writing: a reader never sees a partial file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from splatdistill.errors import NO_ROOM, UserError


def temporary_of(path: Path) -> Path:
    """Return the file that `atomic_write` writes first: a fixed name, so a killed write is found again."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when complete.

    The bytes go to a hidden file in the same folder, are synced to disk, and replace `path` by renaming;
    after a crash at any moment `path` holds the old content or the new. A symbolic link is kept, and its
    target is written. Raises UserError when it cannot be written, or exists and is not a file.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"cannot write {path}: it is {what}; give the name of a file")
    temporary = temporary_of(target)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        discard(temporary)
        raise cannot_write(path, error, "give a folder that can be written") from error
    except BaseException:
        discard(temporary)
        raise


def cannot_write(path: str | Path, error: OSError, advice: str) -> UserError:
    """Return the UserError to raise when the system refused to write a file.

    Args:
        path: the file, as the user named it.
        error: the system's error.
        advice: what to do, unless the disk is full.
    """
    reason = error.strerror or str(error)
    advice = "make room on the disk" if error.errno in NO_ROOM else advice
    return UserError(f"cannot write {path}: {reason}; {advice}")


def discard(path: Path) -> None:
    """Delete a file if it is there and can be deleted."""
    with suppress(OSError):  # the error that led here says more
        path.unlink(missing_ok=True)


def writable_folder(path: Path) -> None:
    """Create the folder if it is missing; raises UserError when it is not writable."""
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise cannot_write(path, reason, "give another folder with --out") from error
