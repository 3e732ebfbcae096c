"""Checks before plyfile reads a .ply: end and size of the header, row counts, comments in any encoding.

plyfile trusts a header's counts and accepts only ASCII, so counts are checked and text is cleaned here.
"""

import io
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from splatdistill.errors import UserError

MAX_HEADER_BYTES = 1 << 18
MAX_LINES = 2_000  # of elements and properties: plyfile reads a header letter by letter
ESCAPES = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt\\])")  # what `_escape` writes
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
Comments = dict[str, str]  # those of the form `key: value`; the others, a line each, under the key ""


class Header(NamedTuple):
    """The lines of a complete header, as ASCII without line ends."""

    path: str | Path
    size: int  # of the file, bytes
    start: int  # of the first row, bytes
    order: str  # "<" or ">", or "=" for a file of text
    elements: dict[str, tuple[int, list[str]]]  # name -> number of rows, the lines of its properties
    comments: Comments

    def text(self, rows: dict[str, int]) -> bytes:
        """Return the header of a file that has only these elements, with these row counts."""
        form = next(name for name, order in ORDERS.items() if order == self.order)
        lines = ["ply", f"format {form} 1.0"]
        for name, count in rows.items():
            lines += [f"element {name} {count}", *self.elements[name][1]]
        return "\n".join([*lines, "end_header", ""]).encode("ascii")


def read_header(file: BinaryIO, path: str | Path) -> Header:
    """Read a header and nothing behind it; raises UserError for an invalid one.

    Properties are not checked here: plyfile reads them.
    """
    head = file.read(MAX_HEADER_BYTES)
    found = re.match(rb"ply(\r\n|\n|\r)", head)
    end = re.search(rb"[\r\n]end_header" + found[1], head) if found else None
    if found is None or end is None:
        raise UserError(f"{path} has no .ply header; expected the .ply of a Gaussian splat")
    order = ""
    elements: dict[str, tuple[int, list[str]]] = {}
    comments: Comments = {}
    text = (
        head[found.end() : end.start()].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    )
    for line in text.split("\n"):
        match line.split():
            case [] | ["obj_info", *_]:
                pass
            case ["comment", *_]:
                _add_comment(comments, line.lstrip()[len("comment ") :])
            case ["format", name, "1.0"] if name in ORDERS and not order:
                order = ORDERS[name]
            case ["element", name, count] if order and name not in elements and re.fullmatch("[0-9]+", count):
                elements[name] = int(count[:20]), []
            case ["property", *_] if elements:
                elements[next(reversed(elements))][1].append(line)
            case _:
                raise UserError(f"{path} has the header line {line[:60]!r}; expected that of a splat .ply")
    if not order:
        raise UserError(f"{path} does not say its format; expected a binary splat .ply")
    if (lines := sum(1 + len(lines) for _, lines in elements.values())) > MAX_LINES:
        raise UserError(f"{path} has {lines} elements and properties; expected at most {MAX_LINES}")
    if not all(name.isascii() and "".join(lines).isascii() for name, (_, lines) in elements.items()):
        raise UserError(
            f"{path} has names of elements or properties that are not ASCII; expected a splat .ply"
        )
    return Header(path, os.fstat(file.fileno()).st_size, end.end(), order, elements, comments)


def _add_comment(comments: Comments, line: str) -> None:
    key, colon, value = line.partition(": ")
    if colon and key:
        comments[_unescape(key)] = _unescape(value)
    else:
        comments[""] = f"{comments[''] + chr(10) if '' in comments else ''}{_unescape(line)}"


def comment_lines(comments: Comments) -> list[str]:
    """Return the comments as plyfile takes them; raises UserError when a reader would refuse their number."""
    lines = []
    for key, value in comments.items():
        lines += [f"{_escape(key)}: {_escape(value)}"] if key else [_escape(v) for v in value.split("\n")]
    if (size := sum(len(line) + len("comment \n") for line in lines)) > MAX_HEADER_BYTES - (1 << 14):
        raise UserError(
            f"the comments of a .ply take {size} bytes; give at most {MAX_HEADER_BYTES - (1 << 14)}"
        )
    return lines


def _escape(text: str) -> str:
    """Escape to printable ASCII without line breaks; also spaces at the ends, which readers strip."""
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


class Guarded(io.BufferedIOBase):
    """A file-like object for plyfile: a checked header, then the rows of the file, which can be mapped."""

    def __init__(self, header: bytes, file: BinaryIO, start: int) -> None:
        self._header, self._file = io.BytesIO(header), file
        file.seek(start)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the header while there is some left, then from the file."""
        return self._header.read(size) or self._file.read(-1 if size is None else size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move within the file."""
        return self._file.seek(offset, whence)

    def fileno(self) -> int:
        """Return the file's descriptor, which is what gets mapped."""
        return self._file.fileno()

    def read1(self, size: int = -1, /) -> bytes:
        """Read some bytes, for the reader of text."""
        return self.read(1 << 16 if size < 0 else size)

    def close(self) -> None:
        """Leave the file open: who opened it closes it."""
