"""Niantic's .spz: about 20 bytes a Gaussian and one more for each SH coefficient, compressed.

Attributes follow each other, each for all Gaussians: centres in 24-bit fixed point, opacities, colours and
log scales in bytes, quaternions xyzw as the index of the largest component and 10 bits for each other (in
version 2: x y z in bytes), higher SH bands in bytes over [-1, 1). Versions 2 and 3 are one gzip stream,
header and all; version 4 has a plain header and one Zstandard stream for each attribute. +Y is up.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.packing import (
    allocate,
    from_smallest_three,
    logit,
    opened,
    pieces,
    quantize,
    smallest_three,
    to_splats,
)
from splatdistill.scene.gaussians import from_arrays

MAGIC = 0x5053474E  # NGSP
HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, streams (4)
HAS_EXTENSIONS = 0x2
AXES_EXTENSION, RIGHT_UP_BACK = 0xADBE0003, 4
FREE_BYTES = 8 << 20  # a file of any size may unpack to this much,
MAX_RATIO = 8  # and to no more than this times its own size: real scenes stay below 5
MAX_WINDOW = 1 << 23  # bytes that a Zstandard stream may look back
POSITION_BITS = 23  # and a sign
MIN_FRACTION, MAX_FRACTION = 4, 22  # bits behind the point that we write
COLOUR_SCALE, SCALE_STEPS, SCALE_OFFSET = 0.15, 16.0, 10.0
OTHERS_STEPS = 511 * math.sqrt(2)  # of a smaller quaternion component


def write_spz(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene, version 3, in its order; return how many Gaussians were left out.

    Those are the ones that are not finite, or more than half a million units away. Log scales are clipped to
    [-10, 5.9], higher SH coefficients to [-1, 1); comments have no place. The points keep as many bits behind
    the point as the farthest one allows. Raises UserError when nothing is left or the file cannot be written.
    """
    splats, dropped = to_splats(gaussians, reach=((1 << POSITION_BITS) - 1) / (1 << MIN_FRACTION))
    count, degree = len(splats.means), math.isqrt(splats.shN.shape[1] + 1) - 1
    farthest = max(float(np.abs(splats.means).max()), 1e-9)
    bits = math.floor(math.log2(((1 << POSITION_BITS) - 1) / farthest))
    bits = min(max(bits, MIN_FRACTION), MAX_FRACTION)
    fixed = np.rint(splats.means * np.float64(1 << bits)).astype("<i4")
    largest, others = smallest_three(splats.quats[:, [1, 2, 3, 0]].astype(np.float64))  # xyzw
    words = largest.astype(np.uint32)
    for component in others.T:
        magnitude = np.rint(np.abs(component) * OTHERS_STEPS).astype(np.uint32)
        words = words << 10 | (component < 0).astype(np.uint32) << 9 | np.minimum(magnitude, 511)
    parts = [
        fixed.view("u1").reshape(count, 3, 4)[:, :, :3],  # the lower three bytes
        quantize(splats.opacities, 255),
        quantize(splats.sh0 * COLOUR_SCALE + 0.5, 255),
        np.rint((splats.log_scales + SCALE_OFFSET) * SCALE_STEPS).clip(0, 255),
        words.astype("<u4").view("u1"),
        np.rint(splats.shN * 128.0 + 128.0).clip(0, 255),
    ]
    content = HEADER.pack(MAGIC, 3, count, degree, bits, 0, 0)
    content += b"".join(part.astype("u1").tobytes() for part in parts)
    with atomic_write(path) as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(content)
    return dropped


class _Layout(NamedTuple):
    """What the header says."""

    version: int
    count: int
    degree: int
    fraction: int  # bits behind the point

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes a Gaussian of the centres, opacities, colours, scales, rotations and higher bands."""
        return 9, 1, 3, 3, 3 if self.version == 2 else 4, 3 * self.degree * (self.degree + 2)


def read_spz(path: str | Path) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene of version 2, 3 or 4, and no comments; version 4 needs the zstandard package.

    Extensions are skipped, but one that names other axes is refused. Raises UserError for anything that is
    not a whole .spz, and for one that unpacks to more than 8 times its size (8 MiB are always allowed).
    Memory: that of the result and little more.
    """
    with opened(path) as file:
        start = file.read(4)
        file.seek(0)
        if start == MAGIC.to_bytes(4, "little"):
            return _read_streams(file, path), {}
        if start[:2] == b"\x1f\x8b":
            return _read_gzip(file, path), {}
    raise UserError(f"{path} does not start like an .spz; expected a gzip stream or NGSP")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_gzip(file: BinaryIO, path: str | Path) -> ParameterDict:
    """Read version 2 or 3."""
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            layout = _layout(stream.read(HEADER.size), file, path, (2, 3))
            return _decode(layout, lambda attribute: stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); export or copy it again") from error


def _read_streams(file: BinaryIO, path: str | Path) -> ParameterDict:
    """Read version 4."""
    try:
        import zstandard
    except ImportError:
        raise UserError("an .spz of version 4 needs zstandard; pip install 'splatdistill[formats]'") from None
    head = file.read(32)
    layout = _layout(head[: HEADER.size], file, path, (4,))
    streams, table, size = head[15], int.from_bytes(head[16:20], "little"), os.fstat(file.fileno()).st_size
    if streams < sum(width > 0 for width in layout.widths) or not 32 <= table <= size - 16 * streams:
        raise UserError(f"{path} has no room for its {streams} streams; export or copy it again")
    if head[14] & HAS_EXTENSIONS:
        _check_axes(file.read(table - 32), path)
    file.seek(table)
    lengths = struct.unpack(f"<{2 * streams}Q", file.read(16 * streams))[::2]  # packed; unpacked lie between
    offsets = [table + 16 * streams + sum(lengths[:stream]) for stream in range(streams)]
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def source(attribute: int) -> zstandard.ZstdDecompressionReader:
        if offsets[attribute] > size:
            raise UserError(f"{path} has a stream beyond its end; export or copy it again")
        file.seek(offsets[attribute])
        return unpacker.stream_reader(file, closefd=False)

    try:
        return _decode(layout, source, path)
    except zstandard.ZstdError as error:
        raise UserError(f"{path} is damaged ({error}); export or copy it again") from error


def _layout(head: bytes, file: BinaryIO, path: str | Path, versions: tuple[int, ...]) -> _Layout:
    """Parse the first 16 bytes and hold their claims against the size of the file; raises UserError."""
    if len(head) < HEADER.size:
        raise UserError(f"{path} ends within its header; export or copy it again")
    magic, version, count, degree, fraction, *_ = HEADER.unpack(head)
    if magic != MAGIC or version not in versions:
        raise UserError(f"{path} is no .spz of version 2, 3 or 4; convert it with Niantic's tools")
    if degree > 3 or fraction > POSITION_BITS:
        raise UserError(f"{path} has SH degree {degree} and {fraction} bits; expected at most 3 and 23")
    layout = _Layout(version, count, degree, fraction)
    unpacked, size = sum(layout.widths) * count, os.fstat(file.fileno()).st_size
    if unpacked > max(FREE_BYTES, MAX_RATIO * size):
        raise UserError(
            f"{path} has {size} bytes and claims {count} Gaussians, {unpacked} bytes; expected at most "
            f"{MAX_RATIO} times its size"
        )
    return layout


def _decode(layout: _Layout, source: Callable[[int], _Readable], path: str | Path) -> ParameterDict:
    """Decode the attributes in turn, some Gaussians at a time; source opens an attribute's stream."""
    arrays = allocate(layout.count, layout.degree)

    def read(attribute: int) -> Iterator[tuple[slice, np.ndarray]]:
        width = layout.widths[attribute]
        if not width:
            return
        stream = source(attribute)
        for piece in pieces(layout.count):
            rows = piece.stop - piece.start
            content = stream.read(rows * width)
            if len(content) < rows * width:
                raise UserError(f"{path} ends before its {layout.count} Gaussians; export or copy it again")
            yield piece, np.frombuffer(content, "u1").reshape(rows, width)

    for piece, rows in read(0):
        fixed = np.zeros((len(rows), 3, 4), "u1")
        fixed[:, :, 1:] = rows.reshape(-1, 3, 3)
        arrays["means"][piece] = fixed.view("<i4")[:, :, 0] / np.float32(1 << 8 + layout.fraction)
    for piece, rows in read(1):
        arrays["opacities"][piece] = logit(rows[:, 0] / 255.0)
    for piece, rows in read(2):
        arrays["sh0"][piece, 0] = (rows / np.float32(255) - 0.5) / COLOUR_SCALE
    for piece, rows in read(3):
        arrays["scales"][piece] = rows / np.float32(SCALE_STEPS) - SCALE_OFFSET
    for piece, rows in read(4):
        arrays["quats"][piece] = (_first_three if layout.version == 2 else _smallest_three)(rows)
    for piece, rows in read(5):
        arrays["shN"][piece] = ((rows - np.float32(128)) / 128).reshape(len(rows), -1, 3)
    return from_arrays(**arrays)


def _first_three(rows: np.ndarray) -> np.ndarray:
    """Quaternions wxyz of version 2: x y z over [-1, 1], w not negative."""
    xyz = rows / np.float32(127.5) - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(1)))
    return np.column_stack([w, xyz])


def _smallest_three(rows: np.ndarray) -> np.ndarray:
    """Quaternions wxyz of version 3 and 4."""
    words = np.ascontiguousarray(rows).view("<u4")[:, 0]
    fields = words[:, None] >> np.array([20, 10, 0], np.uint32)  # sign and 9 bits each
    others = (fields & 511) / np.float32(OTHERS_STEPS)
    xyzw = from_smallest_three(words >> 30, np.where(fields & 512, -others, others))
    return xyzw[:, [3, 0, 1, 2]]


def _check_axes(records: bytes, path: str | Path) -> None:
    """Look through extensions (type, length, value) for axes other than ours; raises UserError."""
    offset = 0
    while offset + 8 <= len(records):
        kind, length = struct.unpack_from("<II", records, offset)
        value = int.from_bytes(records[offset + 8 : offset + 8 + length][:4], "little")
        if kind == AXES_EXTENSION and value not in (0, RIGHT_UP_BACK):
            raise UserError(f"{path} is stored in axes number {value}; expected right, up, back (4)")
        offset += 8 + length
