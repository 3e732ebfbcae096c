"""Binary glTF 2.0 files (.glb) of one mesh primitive: container, accessors and validation."""

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatdistill import __version__
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.packing import opened

COMPONENT_TYPES = {"f4": 5126, "u4": 5125, "u2": 5123, "u1": 5121}  # NumPy -> glTF
KINDS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}  # glTF -> NumPy
MAX_JSON_BYTES = 1 << 24
ACCESSOR_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
POINTS, TRIANGLES = 0, 4


class Primitive(NamedTuple):
    """A mesh primitive: attributes by semantic, each [N] or [N, 2 to 4], and what else its JSON says.

    Attributes of a whole-number type are normalized fractions. indices [M], if any, are unsigned. picture: a
    .png, which the materials know as texture 0.
    """

    mode: int
    attributes: dict[str, np.ndarray]
    indices: np.ndarray | None = None
    properties: dict[str, Any] = {}  # noqa: RUF012 - never changed
    materials: tuple[dict[str, Any], ...] = ()
    picture: bytes = b""


@dataclass
class _Buffer:
    """The binary part of a file, with the views and accessors that say what is where in it."""

    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)

    def view(self, values: bytes, **more: Any) -> int:
        """Append bytes; return the number of their view."""
        self.views.append({"buffer": 0, "byteOffset": len(self.content), "byteLength": len(values), **more})
        self.content.extend(values + bytes(-len(values) % 4))
        return len(self.views) - 1

    def add(self, values: np.ndarray, target: int) -> int:
        """Append an array [n] or [n, width]; return the number of its accessor."""
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        accessor: dict[str, Any] = {
            "bufferView": self.view(values.tobytes(), target=target),
            "componentType": COMPONENT_TYPES[values.dtype.str[1:]],
            "count": len(values),
            "type": ACCESSOR_TYPES[values.shape[1] if values.ndim > 1 else 1],
        }
        if target == ARRAY_BUFFER and values.dtype.kind == "u":
            accessor["normalized"] = True
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def write_primitive(
    path: str | Path, primitive: Primitive, extensions: list[str], comments: dict[str, str] | None
) -> None:
    """Write a file whose scene is one node with one mesh of this primitive, under no transform.

    extensions are the names that the file uses; comments go to asset.extras. Raises UserError when the file
    cannot be written.
    """
    buffer = _Buffer()
    written = {name: buffer.add(values, ARRAY_BUFFER) for name, values in primitive.attributes.items()}
    positions = primitive.attributes["POSITION"]
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    buffer.accessors[written["POSITION"]].update(bounds)
    described = {"attributes": written, "mode": primitive.mode, **primitive.properties}
    if primitive.indices is not None:
        described["indices"] = buffer.add(primitive.indices, ELEMENT_ARRAY_BUFFER)
    pictures = {}
    if primitive.picture:
        pictures["images"] = [{"bufferView": buffer.view(primitive.picture), "mimeType": "image/png"}]
        pictures["textures"] = [{"source": 0}]
    asset = {"version": "2.0", "generator": f"splatdistill {__version__}"}
    document = {
        "asset": {**asset, "extras": comments} if comments else asset,
        "extensionsUsed": extensions,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [described]}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.content)}],
        **pictures,
    }
    if primitive.materials:
        document["materials"] = list(primitive.materials)
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with atomic_write(path) as file:
        file.write(b"glTF" + _words(2, 12 + 8 + len(text) + 8 + len(buffer.content)))
        file.write(_words(len(text)) + b"JSON" + text)
        file.write(_words(len(buffer.content)) + b"BIN\0" + buffer.content)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def srgb_to_linear(colors: np.ndarray) -> np.ndarray:
    """Convert display colors in [0, 1] to linear light, as glTF stores vertex colors."""
    colors = np.clip(colors, 0.0, 1.0)
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Convert linear light in [0, 1] to display colors."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


class Binary(NamedTuple):
    """An opened .glb: its JSON, and its binary chunk as mapped bytes."""

    path: str | Path
    document: dict[str, Any]
    content: np.ndarray  # [bytes] uint8

    def item(self, kind: str, index: object) -> dict[str, Any]:
        """Return an object of the document by its index in a list; raises UserError when there is none."""
        items = self.document.get(kind)
        if not isinstance(items, list) or type(index) is not int or not 0 <= index < len(items):
            raise UserError(f"{self.path} refers to {kind} that it does not have; export or copy it again")
        if not isinstance(items[index], dict):
            raise UserError(f"{self.path} has {kind} that are no objects; export or copy it again")
        return items[index]

    def values(self, index: object, width: int) -> np.ndarray:
        """Return an accessor's rows [N, width] in its own type, mapped; raises UserError if invalid."""
        accessor = self.item("accessors", index)
        kind = KINDS.get(accessor.get("componentType", 0)) if _whole(accessor.get("componentType")) else None
        count, start = accessor.get("count"), accessor.get("byteOffset", 0)
        if kind is None or ACCESSOR_TYPES.get(width) != accessor.get("type") or "bufferView" not in accessor:
            raise UserError(f"{self.path} has accessor {index}, which is no plain one of {width} numbers")
        if "sparse" in accessor:
            raise UserError(f"{self.path} has a sparse accessor {index}; store it without")
        view = self.item("bufferViews", accessor["bufferView"])
        if view.get("extensions"):
            names = ", ".join(map(str, view["extensions"]))
            raise UserError(f"{self.path} is compressed by {names[:80]}; store it without compression")
        if view.get("buffer", 0) != 0 or "uri" in self.item("buffers", 0):
            raise UserError(f"{self.path} keeps its values in another file; store it as one .glb")
        dtype = np.dtype((f"<{kind}", (width,)))
        offset, length = view.get("byteOffset", 0), view.get("byteLength", -1)
        stride = view.get("byteStride", dtype.itemsize)
        numbers = (count, start, offset, length, stride)
        if not all(_whole(number) for number in numbers) or stride < dtype.itemsize:
            raise UserError(f"{self.path} has accessor {index} of no sound place; export or copy it again")
        end = start + (count - 1) * stride + dtype.itemsize if count else 0
        if end > length or offset + length > len(self.content):
            raise UserError(
                f"{self.path} ends before the values of accessor {index}; export or copy it again"
            )
        if not count:
            return np.empty((0, width), f"<{kind}")
        base = self.content[offset + start : offset + end]
        return np.lib.stride_tricks.as_strided(base.view(), (count, dtype.itemsize), (stride, 1)).view(
            f"<{kind}"
        )

    def bytes_of(self, index: object) -> bytes:
        """Return the bytes of a buffer view; raises UserError if it is invalid."""
        view = self.item("bufferViews", index)
        start, length = view.get("byteOffset", 0), view.get("byteLength")
        sound = _whole(start) and _whole(length) and start + length <= len(self.content)
        if not sound or view.get("buffer", 0) != 0 or "uri" in self.item("buffers", 0):
            raise UserError(f"{self.path} has buffer view {index} of no sound place; export or copy it again")
        return self.content[start : start + length].tobytes()


def _whole(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 32


def open_binary(path: str | Path) -> Binary:
    """Open a .glb and read its JSON; raises UserError for an invalid file."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic, version, length = struct.unpack("<4sII", file.read(12).ljust(12, b"\0"))
        json_length, json_kind = struct.unpack("<I4s", file.read(8).ljust(8, b"\0"))
        if magic != b"glTF" or version != 2 or json_kind != b"JSON":
            raise UserError(f"{path} is no .glb of version 2")
        if length > size or 20 + json_length > length or json_length > MAX_JSON_BYTES:
            raise UserError(f"{path} has {size} bytes, too few for what it holds; export or copy it again")
        try:
            document = json.loads(file.read(json_length).rstrip(b" \0"))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise UserError(f"{path} has no sound JSON; export or copy it again")
        binary_length, binary_kind = struct.unpack("<I4s", file.read(8).ljust(8, b"\0"))
        start = 28 + json_length
        if binary_kind != b"BIN\0" or start + binary_length > length or not binary_length:
            return Binary(path, document, np.empty(0, np.uint8))
        return Binary(path, document, np.memmap(file, np.uint8, "r", start, (binary_length,)))


def fractions(values: np.ndarray) -> np.ndarray:
    """Return rows as float32; integers are normalized by their type's maximum (glTF 2.0, 3.6.2.2)."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return np.maximum(values / np.float32(np.iinfo(values.dtype).max), -1).astype(np.float32)
