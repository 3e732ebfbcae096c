"""Binary glTF 2.0 files (.glb) of one mesh primitive: the container, accessors and what they must state."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatdistill import __version__
from splatdistill.files import atomic_write

COMPONENT_TYPES = {"f4": 5126, "u4": 5125, "u2": 5123, "u1": 5121}  # NumPy -> glTF
ACCESSOR_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
POINTS, TRIANGLES = 0, 4


class Primitive(NamedTuple):
    """A mesh primitive: attributes by semantic, each [N] or [N, 3 or 4], and what else its JSON says.

    Attributes of a whole-number type are normalised fractions. indices [M], if any, are unsigned.
    """

    mode: int
    attributes: dict[str, np.ndarray]
    indices: np.ndarray | None = None
    properties: dict[str, Any] = {}  # noqa: RUF012 - never changed
    materials: tuple[dict[str, Any], ...] = ()


def write_primitive(
    path: str | Path, primitive: Primitive, extensions: list[str], comments: dict[str, str] | None
) -> None:
    """Write a file whose scene is one node with one mesh of this primitive, under no transform.

    extensions are the names that the file uses; comments go to asset.extras. Raises UserError when the file
    cannot be written.
    """
    views, accessors, content = [], [], bytearray()

    def add(values: np.ndarray, target: int) -> int:
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        view = {"buffer": 0, "byteOffset": len(content), "byteLength": values.nbytes, "target": target}
        width = values.shape[1] if values.ndim > 1 else 1
        accessor: dict[str, Any] = {
            "bufferView": len(views),
            "componentType": COMPONENT_TYPES[values.dtype.str[1:]],
            "count": len(values),
            "type": ACCESSOR_TYPES[width],
        }
        if target == ARRAY_BUFFER and values.dtype.kind == "u":
            accessor["normalized"] = True
        content.extend(values.tobytes())
        content.extend(bytes(-len(content) % 4))
        views.append(view)
        accessors.append(accessor)
        return len(accessors) - 1

    written = {name: add(values, ARRAY_BUFFER) for name, values in primitive.attributes.items()}
    positions = primitive.attributes["POSITION"]
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    accessors[written["POSITION"]].update(bounds)
    described = {"attributes": written, "mode": primitive.mode, **primitive.properties}
    if primitive.indices is not None:
        described["indices"] = add(primitive.indices, ELEMENT_ARRAY_BUFFER)
    asset = {"version": "2.0", "generator": f"splatdistill {__version__}"}
    document = {
        "asset": {**asset, "extras": comments} if comments else asset,
        "extensionsUsed": extensions,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [described]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(content)}],
    }
    if primitive.materials:
        document["materials"] = list(primitive.materials)
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with atomic_write(path) as file:
        file.write(b"glTF" + _words(2, 12 + 8 + len(text) + 8 + len(content)))
        file.write(_words(len(text)) + b"JSON" + text)
        file.write(_words(len(content)) + b"BIN\0" + content)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def srgb_to_linear(colours: np.ndarray) -> np.ndarray:
    """Linear light of display colours in [0, 1], as glTF wants its vertex colours."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
