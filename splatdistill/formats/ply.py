"""The .ply of 3D Gaussian Splatting (2308.04079), in the property layout of its authors.

x y z, nx ny nz (zeros), f_dc_0..2, f_rest_* (channel-major), opacity, scale_0..2, rot_0..3 (wxyz): float32,
binary little endian, raw parameters (log scales, logit opacities).
"""

import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.gaussians import finite_mask, from_tensors

MAX_HEADER_BYTES = 1 << 20
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


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}_{i}" for i in range(count)]


def write_ply(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene and return how many Gaussians were left out because a parameter was not finite.

    comments become header lines `comment key: value` (values in any characters, escaped to printable ASCII).
    The file appears whole or not at all. Raises UserError when it cannot be written.
    """
    keep = finite_mask(gaussians)
    values = {name: tensor.detach()[keep].cpu() for name, tensor in gaussians.items()}
    means = values["means"]
    sh_rest = values["shN"].transpose(1, 2).flatten(1)  # [N, 3 (K - 1)] channel-major
    columns = [means, torch.zeros_like(means), values["sh0"].flatten(1), sh_rest]
    columns += [values["opacities"][:, None], values["scales"], values["quats"]]
    rows = torch.cat(columns, 1).numpy().astype("<f4")
    header = _header(len(rows), sh_rest.shape[1], comments or {})
    with atomic_write(path) as file:
        file.write(header)
        file.write(rows.tobytes())
    return len(keep) - len(rows)


def _header(count: int, rest: int, comments: dict[str, str]) -> bytes:
    names = ["x", "y", "z", "nx", "ny", "nz", *_names("f_dc", 3), *_names("f_rest", rest)]
    names += ["opacity", *_names("scale", 3), *_names("rot", 4)]
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {_escape(key)}: {_escape(value)}" for key, value in comments.items()]
    lines += [f"element vertex {count}", *(f"property float {name}" for name in names), "end_header", ""]
    header = "\n".join(lines).encode("ascii")
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
        return text.encode("ascii").decode("unicode_escape")
    except UnicodeError:
        return text  # another program's comment


def read_ply(path: str | Path) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene and its header comments of the form `key: value`.

    Takes binary files of either byte order with SH degrees 0 to 3, and ignores properties and elements that
    it does not know; values are kept as they are, finite or not. Raises UserError for anything that is not a
    whole splat .ply, before it allocates more than a small multiple of the file's size.
    """
    try:
        with open(path, "rb") as file:
            header = _parse_header(file, path)
            file.seek(header.offset)
            vertices = np.fromfile(file, header.dtype, header.count)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = header.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in found)
    needed = ["x", "y", "z", *_names("f_dc", 3), *_names("f_rest", rest), "opacity"]
    needed += [*_names("scale", 3), *_names("rot", 4)]
    missing = [name for name in needed if name not in found]
    if missing or rest not in (0, 9, 24, 45):
        what = f"no property {missing[0]}" if missing else f"{rest} f_rest properties, not 0, 9, 24 or 45"
        raise UserError(f"{path} has {what}; expected the .ply of a Gaussian splat")

    def gather(names: list[str]) -> torch.Tensor:
        rows = np.empty((header.count, len(names)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a double too large for float32 becomes inf
            for column, name in enumerate(names):
                rows[:, column] = vertices[name]
        return torch.from_numpy(rows)

    gaussians = from_tensors(
        means=gather(["x", "y", "z"]),
        scales=gather(_names("scale", 3)),
        quats=gather(_names("rot", 4)),
        opacities=gather(["opacity"])[:, 0],
        sh0=gather(_names("f_dc", 3))[:, None],
        shN=gather(_names("f_rest", rest)).reshape(header.count, 3, rest // 3).transpose(1, 2),
    )
    return gaussians, header.comments


class _Header(NamedTuple):
    """Where the vertices of a .ply lie and how a row is laid out."""

    offset: int  # bytes
    count: int
    dtype: np.dtype
    comments: dict[str, str]


def _parse_header(file: BinaryIO, path: str | Path) -> _Header:
    """Parse a header and check its claims against the size of the file; raises UserError."""
    head = file.read(MAX_HEADER_BYTES)
    end = re.search(rb"\nend_header\r?\n", head)
    if not head.startswith((b"ply\n", b"ply\r\n")) or end is None:
        raise UserError(f"{path} has no .ply header; expected the .ply of a Gaussian splat")
    order, comments = "", {}
    elements: dict[str, tuple[int, dict[str, str]]] = {}  # name -> count, {property: NumPy type}
    fields: dict[str, str] = {}
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
            case ["element", name, digits] if digits.isdecimal() and name not in elements:
                elements[name] = int(digits[:20]), (fields := {})
            case ["property", kind, name] if kind in TYPES and elements and name not in fields:
                fields[name] = order + TYPES[kind]
            case ["property", "list", *_] if "vertex" in list(elements)[:-1]:
                pass  # the faces of a mesh, after the vertices: never read
            case _:
                raise UserError(
                    f"{path} has the header line {line[:60]!r}; expected that of a binary splat .ply"
                )
    if not order or "vertex" not in elements:
        raise UserError(f"{path} has no format or vertex line; expected the .ply of a Gaussian splat")
    offset = end.end()
    for name, (count, fields) in elements.items():
        dtype = np.dtype(list(fields.items()))
        if name == "vertex":
            break
        offset += count * dtype.itemsize
    size = os.fstat(file.fileno()).st_size
    if offset + count * dtype.itemsize > size:
        raise UserError(
            f"{path} has {size} bytes, too few for its {count} Gaussians; export or copy it again"
        )
    return _Header(offset, count, dtype, comments)
