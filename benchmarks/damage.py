"""Damaged and malicious splat files for benchmarks/fuzz_formats.py, by the number and the seed of a case."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from format_errors import scene
from PIL import Image

from splatdistill import formats

EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x7F800000,
    0x7FC00000,
)
HEAVY_EVERY = 500  # cases from one that is built to need memory to the next
DIGITS = frozenset(b"0123456789")
Mutator = Callable[[bytearray, np.random.Generator], bytearray]


def samples(ending: str) -> list[bytes]:
    """Sound files of a format in every flavour that its importer knows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sample{ending}"

        def written(degree: int, count: int = 12) -> bytes:
            formats.FORMATS[ending].write(path, scene(count, degree), {"prompt": "a red mushroom"})
            return path.read_bytes()

        found = [written(degree) for degree in range(4)] + [written(1, 300)]
    if ending == ".ply":
        found.append(found[0].replace(b"little", b"big"))
        found.append(found[1].replace(b"float nx", b"uchar nx") + bytes(100))
        found += dialects()
    if ending == ".spz":
        legacy = gzip.decompress(found[1])  # version 2: three bytes a rotation
        start = 16 + 12 * 16
        legacy = legacy[:start] + legacy[start : start + 36] + legacy[start + 48 :]
        found.append(gzip.compress(legacy[:4] + b"\2" + legacy[5:]))
        found += [version_4(gzip.decompress(content)) for content in found[:4]]
    return found


def dialects() -> list[bytes]:
    """Sound .ply files of other programs, 12 vertices each."""
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    names += [f"rot_{i}" for i in range(4)]
    kinds = dict.fromkeys(names, "float")
    flat = {name: kind for name, kind in kinds.items() if name != "scale_2"}
    bytes_ = {name: kind for name, kind in kinds.items() if not name.startswith("f_dc")}
    bytes_ |= dict.fromkeys(("red", "green", "blue"), "uchar")
    filtered = kinds | {"filter_3D": "double"} | {f"f_rest_{i}": "float" for i in range(72)}
    found = [flat, bytes_, filtered]
    heads = ["", "element face 2\nproperty list uchar int vertex_indices\n", ""]
    files = []
    for table, before in zip(found, heads):
        rows = np.zeros(
            12, [(n, {"float": "<f4", "uchar": "u1", "double": "<f8"}[k]) for n, k in table.items()]
        )
        for column, name in enumerate(rows.dtype.names or ()):
            rows[name] = np.arange(12) / (column + 1)
        head = f"ply\nformat binary_little_endian 1.0\n{before}element vertex 12\n"
        head += "".join(f"property {kind} {name}\n" for name, kind in table.items()) + "end_header\n"
        faces = 2 * struct.pack("<B3i", 3, 0, 1, 2) if before else b""
        files.append(head.encode() + faces + rows.tobytes())
    text = "ply\nformat ascii 1.0\nelement vertex 12\n" + "".join(
        f"property float {name}\n" for name in names
    )
    lines = [" ".join(str((i + 1) / (row + 2)) for i in range(len(names))) for row in range(12)]
    return [*files, (text + "end_header\n" + "\n".join(lines) + "\n").encode()]


def rezipped(content: bytes, change: Callable[[bytes], bytes], random: np.random.Generator) -> bytes:
    """Return a zip with one or all of its members changed; so damage gets past the checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members) if random.random() < 0.2 else [list(members)[random.integers(len(members))]]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, member in members.items():
            archive.writestr(name, change(member) if name in names else member)
    return packed.getvalue()


def version_4(content: bytes, extensions: bytes = struct.pack("<III", 0xADBE0003, 4, 4)) -> bytes:
    """Return an .spz of version 4 from the unpacked content of one of version 3."""
    import zstandard

    _, _, count, degree, fraction, *_ = struct.unpack("<IIIBBBB", content[:16])
    streams, offset = [], 16
    for width in filter(None, (9, 1, 3, 3, 4, 3 * degree * (degree + 2))):
        streams.append(content[offset : offset + width * count])
        offset += width * count
    packed = [zstandard.ZstdCompressor().compress(stream) for stream in streams]
    head = struct.pack(
        "<IIIBBBBI12x", 0x5053474E, 4, count, degree, fraction, 2, len(streams), 32 + len(extensions)
    )
    table = b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in zip(packed, streams))
    return head + extensions + table + b"".join(packed)


def damaged(ending: str, seeds: list[bytes], random: np.random.Generator, case: int) -> bytes:
    """Return the file of a case."""
    if case % HEAVY_EVERY == HEAVY_EVERY - 1:
        return heavy(ending, random)
    content = seeds[random.integers(len(seeds))]
    if random.random() < 0.7:
        if content[:2] == b"\x1f\x8b":
            return gzip.compress(bytes(mutated(bytearray(gzip.decompress(content)), random)), 1)
        if ending == ".sog":
            return rezipped(content, lambda member: bytes(mutated(bytearray(member), random)), random)
    return bytes(mutated(bytearray(content), random))


def mutated(content: bytearray, random: np.random.Generator) -> bytearray:
    """One to four kinds of damage after each other, more of it near the beginning, where headers are."""
    for _ in range(random.integers(1, 5)):
        content = MUTATORS[random.integers(len(MUTATORS))](content, random)
    return content


def _place(content: bytearray, random: np.random.Generator) -> int:
    limit = (
        len(content) if random.random() < 0.5 else min(len(content), 64 if random.random() < 0.5 else 1500)
    )
    return int(random.integers(limit)) if limit else 0


def flip(content: bytearray, random: np.random.Generator) -> bytearray:
    """Set some bytes at random."""
    for _ in range(random.integers(1, 9)):
        if content:
            content[_place(content, random)] = random.integers(256)
    return content


def extreme(content: bytearray, random: np.random.Generator) -> bytearray:
    """Write an extreme number, in one to eight bytes."""
    place, value = _place(content, random), EXTREMES[random.integers(len(EXTREMES))]
    width = (1, 2, 4, 8)[random.integers(4)]
    content[place : place + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return content


def digits(content: bytearray, random: np.random.Generator) -> bytearray:
    """Replace a number in text by another."""
    numbers = [place for place, letter in enumerate(content[:3000]) if letter in DIGITS]
    if numbers:
        place = numbers[random.integers(len(numbers))]
        value = (b"0", b"-1", b"255", b"256", b"99999", b"4294967296", b"9" * 30)[random.integers(7)]
        content[place : place + 1] = value
    return content


def cut(content: bytearray, random: np.random.Generator) -> bytearray:
    """End the file early."""
    return content[: random.integers(len(content) + 1)]


def splice(content: bytearray, random: np.random.Generator) -> bytearray:
    """Move, double or drop a part."""
    start, length = _place(content, random), int(random.integers(1, 200))
    part = content[start : start + length]
    if random.random() < 0.5:
        del content[start : start + length]
    place = _place(content, random)
    content[place:place] = part * int(random.integers(3))
    return content


def append(content: bytearray, random: np.random.Generator) -> bytearray:
    """Add bytes at random."""
    return content + random.bytes(int(random.integers(1, 300)))


def swap_lines(content: bytearray, random: np.random.Generator) -> bytearray:
    """Exchange two lines of a text header, or drop or double one."""
    lines = content.split(b"\n")
    a, b = random.integers(min(len(lines), 80), size=2)
    lines[a], lines[b] = lines[b], lines[a]
    if random.random() < 0.5:
        lines[a : a + 1] = lines[a : a + 1] * int(random.integers(3))
    return bytearray(b"\n".join(lines))


MUTATORS: tuple[Mutator, ...] = (flip, flip, extreme, extreme, digits, cut, splice, append, swap_lines)


def heavy(ending: str, random: np.random.Generator) -> bytes:
    """Return a file that is larger, or that claims to be."""
    count = int(random.integers(1, 40_000))
    if ending == ".splat":
        return random.bytes(32 * count)
    if ending == ".spz":
        degree, ratio = int(random.integers(4)), int(random.integers(1, 40))
        width = 20 + 3 * degree * (degree + 2)
        count = 100_000 if ratio > 8 else count * ratio // 4 + 1
        claimed = count if random.random() < 0.7 else int(random.integers(1 << 32))
        content = struct.pack("<IIIBBBB", 0x5053474E, 3, claimed, degree, 12, 0, 0)
        content += random.bytes(width * count // ratio) + bytes(width * count - width * count // ratio)
        return gzip.compress(content, 1) if random.random() < 0.7 else version_4(content)
    if random.random() < 0.3:  # a long header, around what is allowed
        line = (
            b"comment a%d: b\n",
            b"element e%d 0\n",
            b"property list char char p%d\n",
            b"property char p%d\n",
        )
        kind = line[random.integers(4)]
        body = b"".join(kind % n for n in range(random.integers(16_000)))
        return (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n" + body + b"end_header\n" + bytes(4096)
        )
    if ending == ".ply":  # one byte a number: the scene is four times as large
        rest = (0, 9, 24, 45)[random.integers(4)]
        names = [
            "x",
            "y",
            "z",
            "opacity",
            *(f"f_dc_{i}" for i in range(3)),
            *(f"f_rest_{i}" for i in range(rest)),
        ]
        names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
        header = "".join(f"property char {name}\n" for name in names)
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{header}end_header\n"
        return head.encode() + random.bytes(count * len(names))
    if ending == ".sog" and random.random() < 0.5:
        return flat_pictures(int(random.integers(1, 1 << 18)), int(random.integers(1, 2_000)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"large{ending}"
        formats.FORMATS[ending].write(path, scene(count // 4 + 1, int(random.integers(4))), None)
        content = path.read_bytes()
    return content if random.random() < 0.5 else bytes(mutated(bytearray(content), random))


def flat_pictures(count: int, side: int) -> bytes:
    """Return a .sog that claims so many Gaussians, with uniform images of this side."""
    picture, packed = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (side, side), (0, 0, 0, 255)).save(picture, "WEBP", lossless=True)
    names = ["means_l", "means_u", "scales", "quats", "sh0"]
    parts: dict[str, Any] = {name: {"files": [name], "codebook": [0.0] * 256} for name in names}
    parts["means"] = {"mins": [0, 0, 0], "maxs": [1, 1, 1], "files": ["means_l", "means_u"]}
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("meta.json", json.dumps({"version": 2, "count": count, **parts}))
        for name in names:
            archive.writestr(name, picture.getvalue())
    return packed.getvalue()
