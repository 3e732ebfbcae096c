"""The bundle of real 3D models: its list of entries, and readers of its two kinds of files.

The bundle's README says what the fields mean. GLB files hold a static mesh of base colors; an entry of
Sweet Home 3D's furniture is an OBJ file in an archive of the Debian package sweethome3d-furniture.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.formats.gltf import srgb_to_linear
from splatdistill.teaching.meshes import TEXTURE, Mesh, face_normals, joined

COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
FAINTEST = 0.4  # alpha of glass and cloth: less would not be seen
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@dataclass(frozen=True)
class Entry:
    """One model of the bundle; see the bundle's README for the fields."""

    id: str
    file: str
    noun: str
    also: tuple[str, ...]
    phrases: tuple[str, ...]
    front_azimuth_deg: float | None
    symmetric: bool
    tintable: bool
    rank: int
    rotation: tuple[float, ...] = ()


def read_rows(bundle: Path) -> list[dict[str, Any]]:
    """Return the rows of a bundle's assets.json; raises UserError when it cannot be read."""
    path = bundle / "assets.json"
    try:
        rows = json.loads(path.read_text("utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it is no list")
        return rows
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the list of models {path}: {error}; expected the bundle's assets.json"
        ) from error


def load_entries(bundle: Path) -> list[Entry]:
    """Return the entries of a bundle's assets.json; raises UserError when it cannot be read."""
    path = bundle / "assets.json"
    try:
        return [_entry(row) for row in read_rows(bundle)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"cannot read the list of models {path}: {error}; expected the bundle's assets.json"
        ) from error


def _entry(row: dict[str, Any]) -> Entry:
    known: dict[str, Any] = {name: row[name] for name in Entry.__dataclass_fields__ if name in row}
    known["also"], known["phrases"] = tuple(row["also"]), tuple(row["phrases"])
    known["rotation"] = tuple(np.ravel(row.get("rotation", ())).tolist())
    return Entry(**known)


def load_mesh(entry: Entry, bundle: Path, system: Path = Path("/")) -> Mesh:
    """Load the model of an entry, standing on z = 0, front toward +X, longest side 1.

    `system` is the folder of the Debian package's files. Raises UserError for a file that is missing or
    broken.
    """
    try:
        if "!/" in entry.file:
            archive, inside = entry.file.split("!/")
            mesh = read_obj(_archive(str(system / archive)), inside)
        else:
            mesh = read_glb((bundle / entry.file).read_bytes())
    except (OSError, ValueError, KeyError, IndexError, struct.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read model {entry.id} ({entry.file}): {error}; expected the bundle complete, and for "
            ".sh3f files the Debian package sweethome3d-furniture"
        ) from error
    turn = np.radians(entry.front_azimuth_deg or 0.0)
    up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y up to z up
    front = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    matrix = front @ up
    if entry.rotation:
        matrix = matrix @ np.reshape(entry.rotation, (3, 3))
    return mesh.moved(matrix).grounded()


def _texture(data: bytes) -> np.ndarray:
    """Decode an image file as [128, 128, 4] uint8."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(picture.resize((TEXTURE, TEXTURE), Image.Resampling.BOX))


def read_glb(data: bytes) -> Mesh:
    """Read the triangles of a binary glTF file without node transforms, in the file's axes."""
    length = struct.unpack_from("<I", data, 12)[0]
    tree = json.loads(data[20 : 20 + length])
    body = data[28 + length :]

    def view(index: int) -> bytes:
        place = tree["bufferViews"][index]
        start = place.get("byteOffset", 0)
        return body[start : start + place["byteLength"]]

    def array(index: int) -> np.ndarray:
        accessor = tree["accessors"][index]
        kind, width = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        stride = tree["bufferViews"][accessor["bufferView"]].get("byteStride", kind.itemsize * width)
        raw = view(accessor["bufferView"])[accessor.get("byteOffset", 0) :]
        values = np.ndarray((accessor["count"], width), kind, raw, strides=(stride, kind.itemsize))
        return values / np.iinfo(kind).max if accessor.get("normalized") else np.array(values)

    textures: dict[int, np.ndarray] = {}
    parts = []
    for primitive in (p for mesh in tree["meshes"] for p in mesh["primitives"]):
        rows = array(primitive["indices"]).ravel().astype(np.int64)
        given = {name: array(index)[rows] for name, index in primitive["attributes"].items()}
        material = tree["materials"][primitive["material"]] if "material" in primitive else {}
        look = material.get("pbrMetallicRoughness", {})
        colors = np.ones((len(rows), 4), np.float32) * look.get("baseColorFactor", [1.0] * 4)
        if "COLOR_0" in given:
            colors[:, : given["COLOR_0"].shape[1]] *= given["COLOR_0"]
        if material.get("alphaMode", "OPAQUE") == "OPAQUE":
            colors[:, 3] = 1.0
        layer = -1
        if "baseColorTexture" in look and "TEXCOORD_0" in given:
            image = tree["textures"][look["baseColorTexture"]["index"]]["source"]
            if image not in textures:
                picture = _texture(view(tree["images"][image]["bufferView"])).copy()
                if material.get("alphaMode", "OPAQUE") == "OPAQUE":
                    picture[..., 3] = 255
                textures[image] = picture
            layer = list(textures).index(image)
        normals = given.get("NORMAL", face_normals(given["POSITION"]))
        parts.append((given["POSITION"], normals, colors, given.get("TEXCOORD_0"), layer))
    return _mesh(parts, list(textures.values()))


def _mesh(parts: list[tuple], textures: list[np.ndarray]) -> Mesh:
    """Assemble a mesh of parts (positions, normals, colors, uvs or None, layer)."""
    none = np.zeros((0, TEXTURE, TEXTURE, 4), np.uint8)
    meshes = []
    for positions, normals, colors, uvs, layer in parts:
        count = len(positions)
        uvs = np.zeros((count, 2)) if uvs is None else uvs
        layers = np.full(count, layer, np.float32)
        positions, normals, colors, uvs = (np.array(x, np.float32) for x in (positions, normals, colors, uvs))
        meshes.append(Mesh(positions, normals, colors, uvs, layers, none))
        meshes[-1].colors[:, 3] = np.maximum(meshes[-1].colors[:, 3], FAINTEST)
    return replace(joined(meshes), textures=np.stack(textures) if textures else none)


@lru_cache(maxsize=8)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def read_obj(archive: zipfile.ZipFile, inside: str) -> Mesh:
    """Read the triangles of an OBJ file, with its MTL file and images in an archive, in the file's axes.

    Kd is taken as display color (sRGB), as Sweet Home 3D does; a texture replaces it.
    """
    values: dict[str, list[str]] = {"v": [], "vt": [], "vn": []}
    faces: dict[str, list[list[str]]] = {}
    libraries: list[str] = []
    current = ""
    for line in archive.read(inside).decode("utf-8", "replace").replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word in values:
            values[word].append(rest)
        elif word == "f":
            corners = rest.split()
            chosen = faces.setdefault(current, [])
            chosen.extend([corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1))
        elif word == "usemtl":
            current = rest.strip()
        elif word == "mtllib":
            libraries.append(rest.strip())
    v, vt, vn = (_numbers(values[name], width) for name, width in (("v", 3), ("vt", 2), ("vn", 3)))
    folder = PurePosixPath(inside).parent
    materials: dict[str, dict[str, str]] = {}
    there = set(archive.namelist())
    for path in (str(folder / name) for name in libraries):
        found = path if path in there else str(PurePosixPath(inside).with_suffix(".mtl"))  # misnamed in one
        if found in there:
            materials.update(_materials(archive.read(found).decode("utf-8", "replace")))
    textures: list[np.ndarray] = []
    parts = []
    for name, triangles in faces.items():
        rows = _corners(triangles, (len(v), len(vt), len(vn)))
        look = materials.get(name, {})
        color = np.array([float(x) for x in look.get("Kd", "0.7 0.7 0.7").split()[:3]])
        alpha = float(look.get("d", "1").split()[-1])
        layer, uvs = -1, None
        picture = _picture(archive, folder, look.get("map_Kd", ""))
        if picture is not None and (rows[:, 1] >= 0).all():
            color, layer, uvs = np.ones(3), len(textures), vt[rows[:, 1]] * [1.0, -1.0]
            textures.append(picture)
        positions = v[rows[:, 0]]
        flat = face_normals(positions)
        normals = np.where((rows[:, 2] >= 0)[:, None], vn[rows[:, 2]], flat) if len(vn) else flat
        colors = np.broadcast_to(np.append(srgb_to_linear(color), alpha), (len(rows), 4))
        parts.append((positions, normals, colors, uvs, layer))
    return _mesh(parts, textures)


def _numbers(lines: list[str], width: int) -> np.ndarray:
    return np.array([line.split()[:width] for line in lines], np.float32).reshape(-1, width)


def _corners(triangles: list[list[str]], counts: tuple[int, int, int]) -> np.ndarray:
    """Return indices [3 n, 3] of position, texture and normal from "7/1/3" or "-1//2"; -1 for none."""
    table = []
    for corner in (c for triangle in triangles for c in triangle):
        row = [int(part) if part else 0 for part in (corner + "//").split("/")[:3]]
        table.append([i - 1 if i > 0 else n + i if i < 0 else -1 for i, n in zip(row, counts, strict=True)])
    return np.array(table, np.int64).reshape(-1, 3)


def _materials(text: str) -> dict[str, dict[str, str]]:
    """Parse MTL: the last value of each key, for each material's name."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            current = found.setdefault(rest.strip(), {})
        elif word:
            current[word] = rest.strip()
    return found


def _picture(archive: zipfile.ZipFile, folder: PurePosixPath, name: str) -> np.ndarray | None:
    """Return the texture of that name beside the OBJ file; None if it is missing."""
    if not name:
        return None
    try:
        return _texture(archive.read(str(folder / name.replace("\\", "/"))))
    except KeyError:
        return None
