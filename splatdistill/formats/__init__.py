"""Splat file formats, one file a format, and the choice among them by a file's ending."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.compressed_ply import write_compressed_ply
from splatdistill.formats.glb import write_glb
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.formats.sog import write_sog
from splatdistill.formats.splat import read_splat, write_splat
from splatdistill.formats.spz import read_spz, write_spz
from splatdistill.scene.orientation import UPS, reorient, rotate_, rotation_between

Comments = dict[str, str]


class Format(NamedTuple):
    """How a format is written and read, and what is up in it (one of `orientation.UPS`)."""

    up: str
    write: Callable[[str | Path, ParameterDict, Comments | None], int]
    read: Callable[[str | Path], tuple[ParameterDict, Comments]] | None = None  # None: export only
    view_dependent: bool = True  # whether it keeps SH bands above 0


FORMATS = {  # the first ending that fits counts
    ".compressed.ply": Format(
        "z", write_compressed_ply, read_ply
    ),  # a .ply is stored as it is, compressed or not
    ".ply": Format("z", write_ply, read_ply),
    ".splat": Format("-y", write_splat, read_splat, view_dependent=False),
    ".spz": Format("y", write_spz, read_spz),
    ".glb": Format("y", write_glb),
    ".sog": Format("-y", write_sog),
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


def read(path: str | Path, up: str | None = None) -> tuple[ParameterDict, Comments]:
    """Read a scene into our world, and the comments that it carries.

    up: what is up in the file, where that differs from the format's habit. Raises UserError for a format that
    is only written, for a file that is not whole and sound, and for one that does not fit into memory.
    """
    format = format_of(path)
    if format.read is None:
        readable = ", ".join(ending for ending, other in FORMATS.items() if other.read)
        raise UserError(f"{path} cannot be read, only written; expected one of {readable}")
    try:
        gaussians, comments = format.read(path)
        if (up := _checked(up) or format.up) != "z":
            rotate_(gaussians, rotation_between(up, "z"))
        return gaussians, comments
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory") from None


def write(
    path: str | Path, gaussians: ParameterDict, comments: Comments | None = None, up: str | None = None
) -> int:
    """Write a scene of our world; return how many Gaussians were left out as not finite or out of range.

    up: what is to be up in the file, where that differs from the format's habit. comments are kept where the
    format has a place for them. Raises UserError when it cannot be written.
    """
    format = format_of(path)
    return format.write(path, reorient(gaussians, "z", _checked(up) or format.up), comments)


def _checked(up: str | None) -> str | None:
    if up not in (None, *UPS):
        raise UserError(f"'{up}' cannot be up; expected {', '.join(UPS)}")
    return up
