"""Locking of a run's folder, and safe replacement of an older run in it.

One process at a time holds a folder, by a lock that the system releases when the process ends. Only files
with a run's names are touched, and only where config.yaml marks the folder as a run's. A replaced run moves
to previous-run/ when the new one begins, is restored when that fails before its first step is done, and is
deleted when the new one has its result.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from splatdistill.errors import UserError
from splatdistill.files import atomic_write, cannot_write, temporary_of, writable_folder
from splatdistill.folder import (
    CHECKPOINTS,
    CONFIG,
    OUTPUTS,
    PREVIOUS,
    RESULT,
    VALIDATION,
    is_piece,
    kept_scenes,
    step_of,
)

KEYS = {"prompt", "method", "prior", "steps", "seed", "gaussians"}  # in every config.yaml of a run


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Create the folder of a run and lock it; a folder left empty is removed again.

    Raises UserError when it cannot be written, or another process holds it.
    """
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]  # deepest first
    try:
        writable_folder(out)
        with locked(out):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # it is in use now
                folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; raises UserError when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # otherwise the file system has no locks
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                line = f"{folder} is in use by another run; wait for it, stop it, or give another --out"
                raise UserError(line) from None
        yield
    finally:
        os.close(descriptor)


def check_folder(out: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise UserError for a folder where a run must not be made, or one without a run to continue."""
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; give a folder with --out")
        ours, files = is_run(out), own_files(out)
    except OSError as error:
        raise cannot_write(out, error, "give another folder with --out") from error
    if resume and not ours:
        raise UserError(f"--resume {out}: there is no run (no {CONFIG}); give the folder of a run")
    if files and not ours:
        name = files[0].relative_to(out)
        raise UserError(
            f"{out} holds {name}, but no run (no {CONFIG} of one): it would be lost; give another --out"
        )
    if ours and not overwrite and not resume:
        if (out / RESULT).exists():
            raise UserError(f"{out} holds a finished run; give --overwrite, another --seed or another --out")
        raise UserError(
            f"{out} holds an unfinished run; continue it with --resume {out}, or give --overwrite"
        )
    aside = out / PREVIOUS
    if os.path.lexists(aside) and not (is_run(aside) or is_remnant(aside)):
        raise UserError(f"{aside} is in the way, and no run; move it, or give another --out")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run: a config.yaml with a run's keys."""
    try:
        values = yaml.load((folder / CONFIG).read_text("utf-8"), yaml.CSafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and values.keys() >= KEYS


def is_remnant(folder: Path) -> bool:
    """Return whether a folder holds only what a killed `drop_run` or `move_run` leaves, and nobody's file."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    ours = {*leftovers(folder), folder / CHECKPOINTS, folder / VALIDATION}
    return all(path in ours and not path.is_symlink() for path in folder.rglob("*"))


def own_files(folder: Path) -> list[Path]:
    """Return the files of a run in a folder, config.yaml last."""
    names = [folder / name for name in OUTPUTS if name not in (CHECKPOINTS, CONFIG)]
    pieces = sorted(path for path in (folder / CHECKPOINTS).glob("step-*") if is_piece(path))
    pieces += sorted((folder / VALIDATION).glob("step-*.png"))
    return [path for path in [*names, *pieces, folder / CONFIG] if os.path.lexists(path)]


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files of killed writes in the folder of a run."""
    names = [temporary_of(folder / name) for name in OUTPUTS]
    pieces = (folder / CHECKPOINTS).glob(".step-*.tmp")
    found = [path for path in pieces if is_piece(Path(path.name[1:].removesuffix(".tmp")))]
    return [path for path in [*found, *names] if path.is_file()]


def drop_run(folder: Path) -> None:
    """Delete a run and no other file; config.yaml goes last, so that a partial run is still recognized."""
    for path in [*leftovers(folder), *own_files(folder)]:
        path.unlink()
    for name in (CHECKPOINTS, VALIDATION):
        with suppress(OSError):  # it has a foreign file, is a link, or is missing
            (folder / name).rmdir()


def move_run(source: Path, target: Path) -> None:
    """Move a run, replacing one at the target; if interrupted, both folders are still recognized as runs."""
    drop_run(target)
    (target / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    with atomic_write(target / CONFIG) as file:
        file.write((source / CONFIG).read_bytes())
    for path in own_files(source)[:-1]:
        (target / path.relative_to(source)).parent.mkdir(exist_ok=True)
        shutil.move(path, target / path.relative_to(source))
    drop_run(source)


def set_aside(out: Path) -> None:
    """Make room for a new run: an older one moves to previous-run/, replacing any run there.

    If the run in previous-run/ is finished and this one is not, that one is kept, and this one is deleted.
    """
    aside = out / PREVIOUS
    if is_run(out) and ((out / RESULT).exists() or not (aside / RESULT).exists()):
        move_run(out, aside)
    else:
        drop_run(out)


def bring_back(out: Path) -> None:
    """Undo `set_aside`, and delete what was begun since."""
    drop_run(out)
    if is_run(out / PREVIOUS):
        move_run(out / PREVIOUS, out)
        drop_previous(out)


def drop_previous(out: Path) -> None:
    """Delete the run that was set aside: the new one has its result."""
    aside = out / PREVIOUS
    if is_run(aside) or is_remnant(aside):
        drop_run(aside)
    with suppress(OSError):
        aside.rmdir()


def drop_later(out: Path, step: int) -> None:
    """Delete the scenes kept after a step; a run that continues from there makes them again."""
    for path in kept_scenes(out):
        if step_of(path) > step:
            path.unlink()
