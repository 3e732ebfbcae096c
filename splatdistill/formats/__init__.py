"""Splat file formats, one file a format, and the choice among them by a file's ending."""

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
    """How a format is written and read, and what is up in it (one of `orientation.UPS`)."""

    up: str
    write: Callable[..., int]  # (path, gaussians, comments, ...) -> how many Gaussians were left out
    read: Callable[[str | Path, Note], tuple[ParameterDict, Comments]]
    view_dependent: bool = True  # whether it keeps SH bands above 0


FORMATS = {  # the first ending that fits counts
    ".compressed.ply": Format(
        "z", write_compressed_ply, read_ply
    ),  # a .ply is stored as it is, compressed or not
    ".ply": Format("z", write_ply, read_ply),
    ".splat": Format("-y", write_dot_splat, read_dot_splat, view_dependent=False),
    ".spz": Format("y", write_spz, read_spz),
    ".glb": Format("y", write_glb, read_glb),
    ".sog": Format("-y", write_sog, read_sog),
}


def format_of(path: str | Path) -> Format:
    """The format of a path by its ending; raises UserError for any other."""
    return FORMATS[ending_of(path)]


def ending_of(path: str | Path) -> str:
    """The key of a path's format in FORMATS; raises UserError when it has none."""
    for ending in FORMATS:
        if Path(path).name.lower().endswith(ending):
            return ending
    raise UserError(f"{path} has the ending of no splat format; expected one of {', '.join(FORMATS)}")


def read_splat(
    path: str | Path, up: str | None = None, *, program: str | None = None, note: Note = warn
) -> tuple[ParameterDict, Comments]:
    """Read a scene into our world, and the comments that it carries.

    All values are finite: `storable` says what becomes of the others, and note is told, as of everything else
    that was left out or supplied. up: what is up in the file, where that differs from the format's habit; or
    program: one of CONVENTIONS, which names the front too. Raises UserError for a file that is not whole and
    sound, for one of whose Gaussians none can be shown, and for one that does not fit into memory.
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
    """Write a scene of our world; return how many Gaussians were left out as not finite or out of range.

    up: what is to be up in the file, where that differs from the format's habit. comments are kept where the
    format has a place for them. spz: the version of an .spz, 3 or 4. Raises UserError when it cannot be
    written, and when no Gaussian would be left.
    """
    format = format_of(path)
    up = _checked(up) or format.up
    options: dict[str, Any] = {"version": spz, "up": up} if format.write is write_spz else {}
    return format.write(path, reorient(gaussians, "z", up), comments, **options)


def _checked(up: str | None) -> str | None:
    if up not in (None, *UPS):
        raise UserError(f"'{up}' cannot be up; expected {', '.join(UPS)}")
    return up
