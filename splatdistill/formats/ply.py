"""Reading and writing of every .ply, by plyfile (GPL-3.0), which only this module imports.

The .ply of 3D Gaussian Splatting (2308.04079) in the property layout of its authors: x y z, nx ny nz (zeros),
f_dc_0..2, f_rest_* (channel-major), opacity, scale_0..2, rot_0..3 (wxyz): float32, binary little endian, raw
parameters (log scales, logit opacities). And the compressed .ply, whose values compressed_ply.py knows.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyListProperty, PlyParseError
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.compressed_ply import decode, encode
from splatdistill.formats.dialects import Layout, layout_of
from splatdistill.formats.packing import ROWS, Note, allocate, opened, pieces, warn
from splatdistill.formats.plyheader import Comments, Guarded, Header, comment_lines, read_header
from splatdistill.formats.storable import storable
from splatdistill.scene.gaussians import from_arrays

MAX_PIECE_BYTES = 1 << 22  # of a file that are decoded at a time
MAX_TEXT_BYTES = 1 << 26  # a file of text is parsed row by row
ELEMENTS = ("vertex", "chunk", "sh")  # those that splats have


def numbered(prefix: str, count: int) -> list[str]:
    """Return property names prefix_0, prefix_1, ..."""
    return [f"{prefix}_{i}" for i in range(count)]


def write_ply(path: str | Path, gaussians: ParameterDict, comments: Comments | None = None) -> int:
    """Write a scene and return how many Gaussians were left out, by `storable`.

    comments become header lines `comment key: value` (values in any characters, escaped to printable ASCII).
    The file appears whole or not at all. Raises UserError when it cannot be written.
    """
    kept, account = storable(gaussians)
    values = {name: tensor.detach().cpu() for name, tensor in kept.items()}
    means = values["means"]
    sh_rest = values["shN"].transpose(1, 2).flatten(1)  # [N, 3 (K - 1)] channel-major
    columns = [means, torch.zeros_like(means), values["sh0"].flatten(1), sh_rest]
    columns += [values["opacities"][:, None], values["scales"], values["quats"]]
    names = ["x", "y", "z", "nx", "ny", "nz", *numbered("f_dc", 3), *numbered("f_rest", sh_rest.shape[1])]
    names += ["opacity", *numbered("scale", 3), *numbered("rot", 4)]
    rows = torch.cat(columns, 1).numpy().astype("<f4", copy=False)
    write_elements(path, {"vertex": rows.view([(name, "<f4") for name in names])[:, 0]}, comments)
    return account.dropped


def write_compressed_ply(path: str | Path, gaussians: ParameterDict, comments: Comments | None = None) -> int:
    """Write a scene in Morton order and return how many Gaussians were left out, by `storable`.

    comments as in `write_ply`. Raises UserError when nothing is left or the file cannot be written.
    """
    elements, dropped = encode(gaussians)
    write_elements(path, elements, comments)
    return dropped


def write_elements(path: str | Path, elements: Mapping[str, np.ndarray], comments: Comments | None) -> None:
    """Write structured arrays [N] as the elements of a little-endian .ply, in their order."""
    described = [PlyElement.describe(rows, name) for name, rows in elements.items()]
    lines = comment_lines(comments or {})
    with atomic_write(path) as file:
        PlyData(described, byte_order="<", comments=lines).write(file)


def read_ply(path: str | Path, note: Note = warn) -> tuple[ParameterDict, Comments]:
    """Read a scene and its header comments; those not of the form `key: value` are lines under the key "".

    Takes binary files of either byte order, files of text, and the dialects of dialects.py; ignores
    properties and elements that it does not know; values are kept as they are, finite or not. A compressed
    .ply is read as well. note is called about what was left out or supplied.
    Raises UserError for anything that is not a whole splat .ply. Memory: that of the result and little more.
    """
    elements, comments = read_elements(path, ELEMENTS)
    if "vertex" not in elements:
        raise UserError(f"{path} has no vertex element; expected the .ply of a Gaussian splat")
    if "packed_position" in (elements["vertex"].dtype.names or ()):
        return decode(elements, path), comments
    layout = layout_of(elements["vertex"].dtype, path)
    for text in layout.notes:
        note(f"{path}: {text}")
    return _gaussians(elements["vertex"], layout), comments


def _gaussians(rows: np.ndarray, layout: Layout) -> ParameterDict:
    """Decode rows in pieces, so that little memory is needed beside the result."""
    arrays = allocate(len(rows), layout.degree)
    for piece in pieces(len(rows), max(1, min(ROWS, MAX_PIECE_BYTES // rows.dtype.itemsize))):
        for name, values in layout.decode(rows[piece]).items():
            arrays[name][piece] = values.reshape(arrays[name][piece].shape)
    return from_arrays(**arrays)


def read_points(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a point cloud: positions [N, 3] and colors [N, 3] in [0, 1], float32, or None without colors.

    Takes any .ply whose vertices have x y z; red green blue may be whole numbers or fractions. Faces and
    other properties are ignored. Raises UserError for anything else.
    """
    elements, _ = read_elements(path, ("vertex",))
    rows = elements.get("vertex")
    names = () if rows is None else rows.dtype.names or ()
    if rows is None or not {"x", "y", "z"} <= set(names):
        raise UserError(f"{path} has no vertices with x, y and z; expected a point cloud")
    points = np.stack([rows[axis] for axis in "xyz"], 1).astype(np.float32)
    if not {"red", "green", "blue"} <= set(names):
        return points, None
    colors = np.stack([rows[channel] for channel in ("red", "green", "blue")], 1)
    most = np.iinfo(colors.dtype).max if colors.dtype.kind in "ui" else 1
    return points, (colors / np.float32(most)).astype(np.float32)


def read_elements(path: str | Path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], Comments]:
    """Return the wanted elements of a .ply as structured arrays [N], mapped, and its comments.

    The header's counts are checked against the file size before plyfile uses them. Raises UserError.
    """
    with opened(path) as file:
        header = read_header(file, path)
        try:
            empty = PlyData.read(io.BytesIO(header.text(dict.fromkeys(header.elements, 0))))
            elements = {element.name: element for element in empty.elements}
            rows = {name: count for name, (count, _) in header.elements.items() if elements[name].properties}
            last = max((i for i, name in enumerate(rows) if name in wanted and rows[name]), default=-1)
            before = {name: count for name, count in list(rows.items())[: last + 1] if count}
            lists = _checked(header, file, elements, before)
            source = Guarded(header.text(before), file, header.start)
            filled = PlyData.read(source, mmap="r", known_list_len=lists)
        except UserError:
            raise
        except (PlyParseError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path} is no sound .ply ({_one_line(error)}); export or copy it again"
            ) from error
        order = "<" if header.order == "=" else header.order
        found = {name: np.empty(0, elements[name].dtype(order)) for name in rows if name in wanted}
        found |= {element.name: element.data for element in filled.elements if element.name in wanted}
        return found, header.comments


def _checked(
    header: Header, file: BinaryIO, elements: dict[str, PlyElement], rows: dict[str, int]
) -> dict[str, dict[str, int]]:
    """Raise UserError unless the file has room for these rows; return the lengths of their lists.

    Lists are mapped as if all rows were like the first; plyfile then holds every row against that.
    """
    lengths: dict[str, dict[str, int]] = {}
    offset = header.start
    if header.order == "=" and header.size > MAX_TEXT_BYTES:
        raise UserError(
            f"{header.path} is a .ply of {header.size} bytes of text; convert it to a binary one first"
        )
    for name, count in rows.items():
        if header.order == "=":  # a digit and a space each, at least
            offset += 2 * count * len(elements[name].properties) - 1
        else:
            stride, lengths[name] = _stride(header, file, elements[name], offset)
            offset += count * stride
        if offset > header.size:
            raise UserError(
                f"{header.path} has {header.size} bytes, too few for its {count} rows of {name}; "
                "export or copy it again"
            )
    return lengths


def _stride(header: Header, file: BinaryIO, element: PlyElement, offset: int) -> tuple[int, dict[str, int]]:
    """Return the bytes of an element's first row, and the lengths of its lists."""
    start, lengths = offset, {}
    for prop in element.properties:
        if isinstance(prop, PlyListProperty):
            kind, content = (np.dtype(name) for name in prop.list_dtype(header.order))
            file.seek(offset)
            word = file.read(kind.itemsize).ljust(kind.itemsize, b"\0")
            lengths[prop.name] = int(np.frombuffer(word, kind)[0]) if kind.kind in "ui" else -1
            if lengths[prop.name] < 0:
                raise ValueError(f"a list of {element.name} has no length")
            offset += kind.itemsize + lengths[prop.name] * content.itemsize
        else:
            offset += np.dtype(prop.dtype(header.order)).itemsize
        if offset > header.size:
            break
    return offset - start, lengths


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    if "unexpected list length" in text:
        return "lists of different lengths before the vertices, as of faces: store the vertices alone"
    return text
