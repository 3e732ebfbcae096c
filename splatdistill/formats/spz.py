"""Niantic's .spz: about 20 bytes a Gaussian and one more for each SH coefficient, compressed.

Attributes follow each other, each for all Gaussians: centers in 24-bit fixed point (in version 1: half
floats), opacities, colors and log scales in bytes, quaternions xyzw as the index of the largest component
and 10 bits for each other (in versions 1 and 2: x y z in bytes), higher SH bands in bytes over [-1, 1).
Versions 1 to 3 are one gzip stream, header and all; version 4 has a plain header and one Zstandard stream
for each attribute. Records may follow, one of which names the axes; without it they are right, up, back: +Y
is up.
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.axes import turn_axes
from splatdistill.formats.packing import (
    MAX_RESULT_BYTES,
    Note,
    Splats,
    allocate,
    from_smallest_three,
    logit,
    opened,
    pieces,
    quantize,
    result_bytes,
    smallest_three,
    to_splats,
    warn,
)
from splatdistill.scene.gaussians import from_arrays

MAGIC = 0x5053474E  # NGSP
HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, streams (4)
VERSIONS = (3, 4)  # that are written
ANTIALIASED, HAS_EXTENSIONS = 0x1, 0x2
RENDER_MODE = ("SplatRenderMode", "mip")  # the comment that says in a .ply what ANTIALIASED does
AXES_EXTENSION = 0xADBE0003
AXES = ("LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF")  # number 1 and on
AXES += ("LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU")
OUR_AXES = {"y": "RUB", "-y": "RDF"}  # what is up -> right, up or down, back or front
MAX_RECORDS = 1 << 16  # bytes of records behind the attributes of a gzip stream
MAX_WINDOW = 1 << 23  # bytes that a Zstandard stream may look back
POSITION_BITS = 23  # and a sign
MIN_FRACTION, MAX_FRACTION = 4, 22  # bits behind the point that we write
MAX_DEGREE, MAX_STORED_DEGREE = 3, 4
COLOR_SCALE, SCALE_STEPS, SCALE_OFFSET = 0.15, 16.0, 10.0
OTHERS_STEPS = 511 * math.sqrt(2)  # of a smaller quaternion component


def write_spz(
    path: str | Path,
    gaussians: ParameterDict,
    comments: dict[str, str] | None = None,
    version: int = 3,
    up: str = "y",
) -> int:
    """Write a scene in its order; return how many Gaussians were left out.

    Those are the ones that `storable` leaves out, or more than half a million units away. Log scales are
    clipped to [-10, 5.9], higher SH coefficients to [-1, 1); of comments, SplatRenderMode has a place. The
    points keep as many bits behind the point as the farthest one allows. version 4 names the axes that belong
    to what is up, where it has a number for them, and needs the zstandard package. Raises UserError when
    nothing is left or the file cannot be written.
    """
    if version not in VERSIONS:
        raise UserError(f"version {version} of .spz cannot be written; expected 3 or 4")
    splats, dropped = to_splats(gaussians, reach=((1 << POSITION_BITS) - 1) / (1 << MIN_FRACTION))
    farthest = max(float(np.abs(splats.means).max()), 1e-9)
    fraction = math.floor(math.log2(((1 << POSITION_BITS) - 1) / farthest))
    fraction = min(max(fraction, MIN_FRACTION), MAX_FRACTION)
    parts = [part.astype("u1").tobytes() for part in _encode(splats, fraction)]
    flags = ANTIALIASED if (comments or {}).get(RENDER_MODE[0]) == RENDER_MODE[1] else 0
    head = (len(splats.means), math.isqrt(splats.shN.shape[1] + 1) - 1, fraction)
    content = _streams(head, flags, [part for part in parts if part], up) if version == 4 else b""
    with atomic_write(path) as file:
        if version == 4:
            file.write(content)
        else:
            with gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
                packed.write(HEADER.pack(MAGIC, 3, *head, flags, 0) + b"".join(parts))
    return dropped


def _encode(splats: Splats, fraction: int) -> list[np.ndarray]:
    """Return the bytes of the attributes, with `fraction` fractional bits for the centers."""
    fixed = np.rint(splats.means * np.float64(1 << fraction)).astype("<i4")
    largest, others = smallest_three(splats.quats[:, [1, 2, 3, 0]].astype(np.float64))  # xyzw
    words = largest.astype(np.uint32)
    for component in others.T:
        magnitude = np.rint(np.abs(component) * OTHERS_STEPS).astype(np.uint32)
        words = words << 10 | (component < 0).astype(np.uint32) << 9 | np.minimum(magnitude, 511)
    return [
        fixed.view("u1").reshape(-1, 3, 4)[:, :, :3],  # the lower three bytes
        quantize(splats.opacities, 255),
        quantize(splats.sh0 * COLOR_SCALE + 0.5, 255),
        np.rint((splats.log_scales + SCALE_OFFSET) * SCALE_STEPS).clip(0, 255),
        words.astype("<u4").view("u1"),
        np.rint(splats.shN * 128.0 + 128.0).clip(0, 255),
    ]


def _streams(head: tuple[int, int, int], flags: int, parts: list[bytes], up: str) -> bytes:
    """Write a file of version 4; head: count, degree, fractional bits."""
    compressor = _zstandard().ZstdCompressor(level=12)
    records = b""
    if up in OUR_AXES:
        records = struct.pack("<III", AXES_EXTENSION, 4, AXES.index(OUR_AXES[up]) + 1)
        flags |= HAS_EXTENSIONS
    packed = [compressor.compress(part) for part in parts]
    start = HEADER.pack(MAGIC, 4, *head, flags, len(parts)) + struct.pack("<I12x", 32 + len(records))
    table = b"".join(struct.pack("<QQ", len(p), len(part)) for p, part in zip(packed, parts))
    return start + records + table + b"".join(packed)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise UserError("an .spz of version 4 needs zstandard; pip install 'splatdistill[formats]'") from None
    return zstandard


class _Layout(NamedTuple):
    """The fields of the header."""

    version: int
    total: int  # Gaussians
    degree: int  # as stored
    fraction: int  # bits behind the point
    flags: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the bytes a Gaussian of centers, opacities, colors, scales, rotations and higher bands."""
        centers, rotations = 6 if self.version == 1 else 9, 3 if self.version < 3 else 4
        return centers, 1, 3, 3, rotations, 3 * self.degree * (self.degree + 2)


def read_spz(path: str | Path, note: Note = warn) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene of version 1 to 4, and its SplatRenderMode; version 4 needs the zstandard package.

    SH bands above 3 are left out, and note is called. Where a record names other axes than right, up, back,
    the scene is turned into these; other records are skipped. Raises UserError for anything that is not a
    whole .spz, before much memory is allocated: a stream is first inflated to its end and discarded.
    Memory: that of the result, at most 4 GiB, and little more.
    """
    with opened(path) as file:
        start = file.read(4)
        file.seek(0)
        if start == MAGIC.to_bytes(4, "little"):
            layout, gaussians = _read_streams(file, path)
        elif start[:2] == b"\x1f\x8b":
            layout, gaussians = _read_gzip(file, path)
        else:
            raise UserError(f"{path} does not start like an .spz; expected a gzip stream or NGSP")
    if layout.degree > MAX_DEGREE:
        note(f"{path}: SH degree {layout.degree}: the bands above {MAX_DEGREE} are left out")
    return gaussians, dict([RENDER_MODE]) if layout.flags & ANTIALIASED else {}


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_gzip(file: BinaryIO, path: str | Path) -> tuple[_Layout, ParameterDict]:
    """Read version 1, 2 or 3."""
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            layout = _layout(stream.read(HEADER.size), path, (1, 2, 3))
            _check_length(stream, layout.total * sum(layout.widths), path)
            records = stream.read(MAX_RECORDS) if layout.flags & HAS_EXTENSIONS else b""
            stream.seek(HEADER.size)
            return layout, _decode(layout, lambda attribute: stream, records, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); export or copy it again") from error


def _read_streams(file: BinaryIO, path: str | Path) -> tuple[_Layout, ParameterDict]:
    """Read version 4."""
    zstandard = _zstandard()
    head = file.read(32)
    layout = _layout(head[: HEADER.size], path, (4,))
    streams, table, size = head[15], int.from_bytes(head[16:20], "little"), os.fstat(file.fileno()).st_size
    if streams < sum(width > 0 for width in layout.widths) or not 32 <= table <= size - 16 * streams:
        raise UserError(f"{path} has no room for its {streams} streams; export or copy it again")
    records = file.read(table - 32) if layout.flags & HAS_EXTENSIONS else b""
    file.seek(table)
    lengths = struct.unpack(f"<{2 * streams}Q", file.read(16 * streams))[::2]  # packed; unpacked lie between
    offsets = [table + 16 * streams + sum(lengths[:stream]) for stream in range(streams)]
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def source(attribute: int) -> _Readable:
        if offsets[attribute] > size:
            raise UserError(f"{path} has a stream beyond its end; export or copy it again")
        file.seek(offsets[attribute])
        return unpacker.stream_reader(file, closefd=False)

    try:
        for attribute, width in enumerate(layout.widths):
            if width:
                _check_length(source(attribute), layout.total * width, path)
        return layout, _decode(layout, source, records, path)
    except zstandard.ZstdError as error:
        raise UserError(f"{path} is damaged ({error}); export or copy it again") from error


def _layout(head: bytes, path: str | Path, versions: tuple[int, ...]) -> _Layout:
    """Parse the first 16 bytes; raises UserError for an invalid header, or a scene larger than 4 GiB."""
    if len(head) < HEADER.size:
        raise UserError(f"{path} ends within its header; export or copy it again")
    magic, version, count, degree, fraction, flags, _ = HEADER.unpack(head)
    if magic != MAGIC or version not in versions:
        raise UserError(f"{path} is no .spz of version 1, 2, 3 or 4; convert it with Niantic's tools")
    if degree > MAX_STORED_DEGREE or fraction > POSITION_BITS:
        raise UserError(
            f"{path} has SH degree {degree} and {fraction} bits; expected at most {MAX_STORED_DEGREE} "
            f"and {POSITION_BITS}"
        )
    needed = result_bytes(count, min(degree, MAX_DEGREE))
    if needed > MAX_RESULT_BYTES:
        raise UserError(
            f"{path} claims {count} Gaussians, which take {needed / 2**30:.1f} GiB; expected at most "
            f"{MAX_RESULT_BYTES >> 30}"
        )
    return _Layout(version, count, degree, fraction, flags)


def _check_length(stream: _Readable, length: int, path: str | Path) -> None:
    """Inflate `length` bytes and discard them; raises UserError when the stream is shorter."""
    while length > 0:
        content = stream.read(min(length, 1 << 20))
        if not content:
            raise UserError(f"{path} ends before its last Gaussian; export or copy it again")
        length -= len(content)


def _decode(
    layout: _Layout, source: Callable[[int], _Readable], records: bytes, path: str | Path
) -> ParameterDict:
    """Decode the attributes in turn, in pieces; source opens an attribute's stream."""
    degree = min(layout.degree, MAX_DEGREE)
    axes = _axes(records, path)
    arrays = allocate(layout.total, degree)

    def read(attribute: int) -> Iterator[tuple[slice, np.ndarray]]:
        width = layout.widths[attribute]
        if not width:
            return
        stream = source(attribute)
        for piece in pieces(layout.total):
            rows = piece.stop - piece.start
            content = stream.read(rows * width)
            if len(content) < rows * width:
                raise UserError(f"{path} ends before its {layout.total} Gaussians; export or copy it again")
            yield piece, np.frombuffer(content, "u1").reshape(rows, width)

    for piece, rows in read(0):
        arrays["means"][piece] = rows.view("<f2") if layout.version == 1 else _fixed(rows, layout.fraction)
    for piece, rows in read(1):
        arrays["opacities"][piece] = logit(rows[:, 0] / 255.0)
    for piece, rows in read(2):
        arrays["sh0"][piece, 0] = (rows / np.float32(255) - 0.5) / COLOR_SCALE
    for piece, rows in read(3):
        arrays["scales"][piece] = rows / np.float32(SCALE_STEPS) - SCALE_OFFSET
    for piece, rows in read(4):
        arrays["quats"][piece] = (_first_three if layout.version < 3 else _smallest_three)(rows)
    for piece, rows in read(5):
        kept = rows[:, : 3 * degree * (degree + 2)]
        arrays["shN"][piece] = ((kept - np.float32(128)) / 128).reshape(len(rows), -1, 3)
    gaussians = from_arrays(**arrays)
    if axes != "RUB":
        turn_axes(gaussians, axes)
    return gaussians


def _fixed(rows: np.ndarray, fraction: int) -> np.ndarray:
    """Decode centers [N, 3] of three bytes a coordinate, sign-extended."""
    fixed = np.zeros((len(rows), 3, 4), "u1")
    fixed[:, :, 1:] = rows.reshape(-1, 3, 3)
    return fixed.view("<i4")[:, :, 0] / np.float32(1 << 8 + fraction)


def _first_three(rows: np.ndarray) -> np.ndarray:
    """Decode quaternions wxyz of versions 1 and 2: x y z over [-1, 1], w not negative."""
    xyz = rows / np.float32(127.5) - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(1)))
    return np.column_stack([w, xyz])


def _smallest_three(rows: np.ndarray) -> np.ndarray:
    """Decode quaternions wxyz of version 3 and 4."""
    words = np.ascontiguousarray(rows).view("<u4")[:, 0]
    fields = words[:, None] >> np.array([20, 10, 0], np.uint32)  # sign and 9 bits each
    others = (fields & 511) / np.float32(OTHERS_STEPS)
    xyzw = from_smallest_three(words >> 30, np.where(fields & 512, -others, others))
    return xyzw[:, [3, 0, 1, 2]]


def _axes(records: bytes, path: str | Path) -> str:
    """Return the axes that a record (type, length, value) names, or the default; raises UserError."""
    stream, number = io.BytesIO(records), 0
    while len(head := stream.read(8)) == 8:
        kind, length = struct.unpack("<II", head)
        value = stream.read(length)
        if kind == AXES_EXTENSION:
            number = int.from_bytes(value[:4], "little")
    if number > len(AXES):
        raise UserError(f"{path} is stored in axes number {number}; expected 1 to {len(AXES)}, or 0 for none")
    return AXES[number - 1] if number else "RUB"
