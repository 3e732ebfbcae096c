"""The header of a binary .ply: parsed with suspicion, written plainly, with comments of any text."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from splatdistill.errors import UserError
from splatdistill.formats.packing import ROWS, pieces

MAX_HEADER_BYTES = 1 << 18
MAX_PIECE_BYTES = 1 << 22  # of a file in memory at a time
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ESCAPES = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt\\])")  # what `_escape` writes


def numbered(prefix: str, count: int) -> list[str]:
    """Property names prefix_0, prefix_1, ..."""
    return [f"{prefix}_{i}" for i in range(count)]


def header_bytes(elements: dict[str, tuple[int, str, list[str]]], comments: dict[str, str]) -> bytes:
    """A little-endian header; elements: name -> number of rows, type and names of the properties.

    Raises UserError for comments that no reader would take.
    """
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {_escape(key)}: {_escape(value)}" for key, value in comments.items()]
    for name, (count, kind, properties) in elements.items():
        lines += [f"element {name} {count}", *(f"property {kind} {prop}" for prop in properties)]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    if len(header) > MAX_HEADER_BYTES:
        raise UserError(f"the comments of a .ply take {len(header)} bytes; give at most {MAX_HEADER_BYTES}")
    return header


def _escape(text: str) -> str:
    """Printable ASCII without line breaks; spaces at the ends, which readers strip, are escaped too."""
    escaped = text.encode("unicode_escape").decode("ascii")
    stripped = escaped.strip(" ")
    leading = len(escaped) - len(escaped.lstrip(" "))
    trailing = len(escaped) - leading - len(stripped)
    return "\\x20" * leading + stripped + "\\x20" * trailing


def _unescape(text: str) -> str:
    try:
        return ESCAPES.sub(lambda found: found[0].encode().decode("unicode_escape"), text)
    except UnicodeError:
        return text  # another program's comment


def gather(rows: np.ndarray, names: list[str]) -> np.ndarray:
    """Properties of vertices as float32 [N, len(names)]; a double that is too large becomes inf."""
    columns = np.empty((len(rows), len(names)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, name in enumerate(names):
            columns[:, column] = rows[name]
    return columns


class Element(NamedTuple):
    """Where the rows of an element lie and how one is laid out."""

    offset: int  # bytes
    count: int
    dtype: np.dtype


class Header(NamedTuple):
    """A parsed header: its elements by name, as far as they can be located, and its comments."""

    path: str | Path
    size: int  # of the file, bytes
    elements: dict[str, Element]
    comments: dict[str, str]

    def element(self, name: str) -> Element:
        """The element, all of whose rows lie in the file; raises UserError."""
        if name not in self.elements:
            raise UserError(f"{self.path} has no {name} element; expected the .ply of a Gaussian splat")
        element = self.elements[name]
        if element.offset + element.count * max(element.dtype.itemsize, 1) > self.size:
            raise UserError(
                f"{self.path} has {self.size} bytes, too few for its {element.count} rows of {name}; "
                "export or copy it again"
            )
        return element

    def read(self, file: BinaryIO, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of an element, some at a time, with their place; raises UserError."""
        element = self.element(name)
        for piece in pieces(element.count, max(1, min(ROWS, MAX_PIECE_BYTES // element.dtype.itemsize))):
            file.seek(element.offset + piece.start * element.dtype.itemsize)
            rows = np.fromfile(file, element.dtype, piece.stop - piece.start)
            if len(rows) < piece.stop - piece.start:
                raise UserError(f"{self.path} became shorter while it was read; copy it again")
            yield piece, rows


def parse_header(file: BinaryIO, path: str | Path) -> Header:
    """Parse the header of a binary .ply, reading nothing behind it; raises UserError."""
    head = file.read(MAX_HEADER_BYTES)
    end = re.search(rb"\nend_header\r?\n", head)
    if not head.startswith((b"ply\n", b"ply\r\n")) or end is None:
        raise UserError(f"{path} has no .ply header; expected the .ply of a Gaussian splat")
    order, comments = "", {}
    elements: dict[str, tuple[int, dict[str, str]]] = {}  # name -> count, {property: NumPy type}
    fields: dict[str, str] = {}
    listed: list[str] = []  # elements whose rows differ in length: they and what follows cannot be located
    for line in head[: end.start()].decode("utf-8", "replace").replace("\r\n", "\n").split("\n")[1:]:
        match line.split():
            case [] | ["obj_info", *_]:
                pass
            case ["comment", *_]:
                key, colon, value = line.lstrip()[len("comment ") :].partition(": ")
                if colon:
                    comments[_unescape(key)] = _unescape(value)
            case ["format", "binary_little_endian" | "binary_big_endian" as name, "1.0"]:
                order = "<" if name == "binary_little_endian" else ">"
            case ["element", name, digits] if order and digits.isdecimal() and name not in elements:
                elements[name] = int(digits[:20]), (fields := {})
            case ["property", kind, name] if kind in TYPES and elements and name not in fields:
                fields[name] = order + TYPES[kind]
            case ["property", "list", *_] if elements:
                listed.append(next(reversed(elements)))
            case _:
                raise UserError(
                    f"{path} has the header line {line[:60]!r}; expected that of a binary splat .ply"
                )
    located, offset = {}, end.end()
    for name, (count, fields) in elements.items():
        if listed and name == listed[0]:
            break
        located[name] = Element(offset, count, np.dtype(list(fields.items())))
        offset += count * located[name].dtype.itemsize
    return Header(path, os.fstat(file.fileno()).st_size, located, comments)
