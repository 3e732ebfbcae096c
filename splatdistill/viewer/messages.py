"""What a page says on its own socket, beside what viser's controls send; every field is checked.

JSON, one object a message:

    {"kind": "box", "points": [[x, y], [x, y]], "how": "replace"}               two corners
    {"kind": "stroke", "points": [[x, y], ...], "radius": r, "how": "add"}      of a brush
    {"kind": "split", "share": x}                                               between before and after
    {"kind": "open", "name": "scan.ply", "bytes": n}                            then the bytes, binary

x, y are shares of the canvas' width and height from its top left, r of its height.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from splatdistill.errors import UserError
from splatdistill.formats import FORMATS
from splatdistill.viewer.desk import How
from splatdistill.viewer.picking import Box, Shape, Stroke

LARGEST_FILE = 1 << 30  # bytes
MOST_POINTS = 1_000  # of a stroke
OUTSIDE = 2.0  # how far beyond the canvas a point may be, in its widths and heights
LONGEST_NAME = 255
ENDINGS = (*FORMATS, ".obj")  # of files that can be opened


@dataclass(frozen=True)
class Pick:
    """A part of the picture whose Gaussians are to be chosen."""

    shape: Shape
    how: How


@dataclass(frozen=True)
class Split:
    """Where the picture is divided between before and after, as a share of its width."""

    share: float


@dataclass(frozen=True)
class Open:
    """A file that follows: its name, of which only the ending matters, and how many bytes it has."""

    name: str
    ending: str
    size: int


Message = Pick | Split | Open


def understand(text: str) -> Message:
    """Return what a message says; raises UserError, in the page's words, for anything else."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        message = {}
    kind = message.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError("the page said what nobody understands; reload it")
    fields, read = KINDS[kind]
    if set(message) != {"kind", *fields}:
        raise UserError(f"a message '{kind}' has {', '.join(fields)}; reload the page")
    return read(*(message[name] for name in fields))


def _box(points: Any, how: Any) -> Pick:
    corners = _points(points)
    if len(corners) != 2:
        raise UserError("a box has two corners")
    return Pick(Box(*corners), _how(how))


def _stroke(points: Any, radius: Any, how: Any) -> Pick:
    return Pick(Stroke(_points(points), _number(radius, 1e-4, 1.0)), _how(how))


def _split(share: Any) -> Split:
    return Split(_number(share, 0.0, 1.0))


def _open(name: Any, size: Any) -> Open:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise UserError("the file has no name, or one that is too long")
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)
    if ending is None:
        raise UserError(f"expected a file that ends in {', '.join(ENDINGS)}")
    if type(size) is not int or not 0 < size <= LARGEST_FILE:
        raise UserError(
            f"a file to open has 1 byte to {LARGEST_FILE >> 20} MiB; open larger ones by the command"
        )
    return Open(name.replace("\\", "/").rpartition("/")[2], ending, size)


def _number(value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:  # which nan is not either
        raise UserError(f"expected a number from {low:g} to {high:g}")
    return float(value)


def _points(value: Any) -> tuple[tuple[float, float], ...]:
    sound = isinstance(value, list) and 0 < len(value) <= MOST_POINTS
    if not sound or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise UserError(f"expected 1 to {MOST_POINTS} points")
    low, high = -OUTSIDE, 1.0 + OUTSIDE
    return tuple((_number(x, low, high), _number(y, low, high)) for x, y in value)


def _how(value: Any) -> How:
    if not isinstance(value, str) or value not in get_args(How):
        raise UserError(f"expected one of {', '.join(get_args(How))}")
    return value  # pyright: ignore[reportReturnType] - one of them


KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Message]]] = {
    "box": (("points", "how"), _box),
    "stroke": (("points", "radius", "how"), _stroke),
    "split": (("share",), _split),
    "open": (("name", "bytes"), _open),
}
