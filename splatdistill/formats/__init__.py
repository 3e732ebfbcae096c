"""Splat file formats, one module for each, chosen by file ending."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.conventions import CONVENTIONS, convention_of, set_upright
from splatdistill.formats.glb import read_glb, write_glb
from splatdistill.formats.packing import Note, warn
from splatdistill.formats.ply import read_ply, write_compressed_ply, write_ply
from splatdistill.formats.sog import read_sog, write_sog
from splatdistill.formats.splat import read_dot_splat, write_dot_splat
from splatdistill.formats.spz import read_spz, write_spz
from splatdistill.formats.storable import storable
from splatdistill.scene.orientation import UPS, reorient, rotate_, rotation_between

__all__ = ["CONVENTIONS", "FORMATS", "Format", "read_splat", "set_upright", "write_splat"]
Comments = dict[str, str]


class Format(NamedTuple):
    """The reader, writer and up axis (one of `orientation.UPS`) of a format."""

    up: str
    write: Callable[..., int]  # (path, gaussians, comments, ...) -> how many Gaussians were left out
    read: Callable[[str | Path, Note], tuple[ParameterDict, Comments]]
    view_dependent: bool = True  # whether it keeps SH bands above 0


FORMATS = {  # the first matching ending wins
    ".compressed.ply": Format("z", write_compressed_ply, read_ply),  # axes of a .ply, compressed or not
    ".ply": Format("z", write_ply, read_ply),
    ".splat": Format("-y", write_dot_splat, read_dot_splat, view_dependent=False),
    ".spz": Format("y", write_spz, read_spz),
    ".glb": Format("y", write_glb, read_glb),
    ".sog": Format("-y", write_sog, read_sog),
}


def format_of(path: str | Path) -> Format:
    """Return the format of a path by its ending; raises UserError for an unknown ending."""
    return FORMATS[ending_of(path)]


def ending_of(path: str | Path) -> str:
    """Return the key of a path's format in FORMATS; raises UserError for an unknown ending."""
    for ending in FORMATS:
        if Path(path).name.lower().endswith(ending):
            return ending
    raise UserError(f"{path} has the ending of no splat format; expected one of {', '.join(FORMATS)}")


def read_splat(
    path: str | Path, up: str | None = None, *, program: str | None = None, note: Note = warn
) -> tuple[ParameterDict, Comments]:
    """Read a scene into the world frame, with its comments.

    All values of the result are finite; `storable` documents what happens to others.

    Args:
        path: the file; its ending decides the format.
        up: the up axis of the file, where it differs from the format's default.
        program: one of CONVENTIONS, which gives both up and front.
        note: called with a line about each thing that was left out or supplied.

    Raises:
        UserError: a damaged file, one without a drawable Gaussian, or one too large for memory.
    """
    format, up = format_of(path), _checked(up)
    if program is not None:
        convention_of(program)
        if up is not None:
            raise UserError(f"both '{program}' and '{up}' say what is up; give one of them")
    try:
        gaussians, comments = format.read(path, note)
        if not len(gaussians["means"]):
            raise UserError(f"{path} holds no Gaussian")
        try:
            gaussians, account = storable(gaussians)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if str(account):
            note(f"{path}: {account}")
        if program is not None:
            set_upright(gaussians, program, format.up)
        elif (up := up or format.up) != "z":
            rotate_(gaussians, rotation_between(up, "z"))
        return gaussians, comments
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory") from None


def write_splat(
    path: str | Path,
    gaussians: ParameterDict,
    comments: Comments | None = None,
    up: str | None = None,
    *,
    spz: int = 3,
) -> int:
    """Write a scene; return how many Gaussians were left out as not finite or out of range.

    Args:
        path: the file; its ending decides the format.
        gaussians: the scene, in the world frame.
        comments: kept where the format has a place for them.
        up: the up axis in the file, where it differs from the format's default.
        spz: the version of an .spz, 3 or 4.

    Raises:
        UserError: the file cannot be written, or no Gaussian would be left.
    """
    format = format_of(path)
    up = _checked(up) or format.up
    options: dict[str, Any] = {"version": spz, "up": up} if format.write is write_spz else {}
    return format.write(path, reorient(gaussians, "z", up), comments, **options)


def _checked(up: str | None) -> str | None:
    if up not in (None, *UPS):
        raise UserError(f"'{up}' cannot be up; expected {', '.join(UPS)}")
    return up
