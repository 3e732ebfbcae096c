"""What a run may start from besides a splat: a point cloud (.ply) or a mesh (.glb, .obj), as Gaussians.

A mesh is sampled evenly over its area with flat Gaussians that lie in its triangles; its vertex colors are
kept, and of a .glb the materials' plain colors and their textures of color.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.formats.glb import EXTENSION, primitives
from splatdistill.formats.gltf import (
    TRIANGLES,
    Binary,
    fractions,
    linear_to_srgb,
    open_binary,
    srgb_to_linear,
)
from splatdistill.formats.packing import Note, warn
from splatdistill.formats.ply import read_elements, read_points
from splatdistill.scene.gaussians import from_tensors, rgb_to_sh0
from splatdistill.scene.orientation import rotate_, rotation_between

SAMPLES = 20_000  # Gaussians that a mesh becomes
MOST_POINTS = 1_000_000  # of a point cloud; a larger one is thinned
OPACITY = 0.9  # of the Gaussians of a surface
POINT_OPACITY = 0.5
FLATNESS = 0.1  # thickness of a Gaussian on a triangle, as a share of its width
MESH_UP, POINTS_UP = "y", "z"
MOST_LINES = 20_000_000  # of an .obj
MOST_PIXELS = 1 << 26  # of a texture


class Surface(NamedTuple):
    """Triangles [F, 3, 3], and the colors of their corners [F, 3, 3] in [0, 1], as displayed.

    pictures [h, w, 3] uint8 multiply these; picture [F] says which one, -1 for none, and places [F, 3, 2]
    where in it the corners are.
    """

    corners: np.ndarray
    colors: np.ndarray
    picture: np.ndarray
    places: np.ndarray
    pictures: tuple[np.ndarray, ...] = ()

    @classmethod
    def plain(cls, corners: np.ndarray, colors: np.ndarray) -> Surface:
        """Return one without pictures."""
        return cls(corners, colors, np.full(len(corners), -1), np.zeros((len(corners), 3, 2)))

    def painted(self, faces: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the colors [n, 3] at points of triangles `faces` [n], `shares` [n, 3] of their corners."""
        colors = (shares[:, :, None] * self.colors[faces]).sum(1)
        for index, picture in enumerate(self.pictures):
            rows = np.flatnonzero(self.picture[faces] == index)
            at = (shares[rows, :, None] * self.places[faces[rows]]).sum(1) % 1.0
            x, y = (at * picture.shape[1::-1]).astype(int).T
            light = srgb_to_linear(picture[y, x] / 255) * srgb_to_linear(colors[rows])
            colors[rows] = linear_to_srgb(light)
        return colors


def read_shape(
    path: str | Path, up: str | None = None, *, program: str | None = None, note: Note = warn
) -> ParameterDict:
    """Return what `read_scene` does, without the comments."""
    return read_scene(path, up, program=program, note=note)[0]


def read_scene(
    path: str | Path, up: str | None = None, *, program: str | None = None, note: Note = warn
) -> tuple[ParameterDict, dict[str, str]]:
    """Read a splat with its comments, or a point cloud or a mesh as Gaussians, into the world frame.

    Args:
        path: the file; its ending and its content say what it is.
        up: its axis up, where that differs from the format's: a mesh has +Y, a point cloud +Z.
        program: of a splat, one of `conventions.CONVENTIONS`.
        note: called with a line about each thing that was left out or supplied.

    Raises:
        UserError: a damaged file, or one that holds none of these.
    """
    path = Path(path)
    if holds_splats(path):
        return formats.read_splat(path, up, program=program, note=note)
    ending, own = path.suffix.lower(), MESH_UP
    if ending == ".ply":
        scene, own = of_points(*read_points(path), note=note), POINTS_UP
    else:
        scene = of_surface(_read_obj(path) if ending == ".obj" else _read_triangles(path, note))
    if program:
        raise UserError(f"{path} is no splat; say what is up in it with --from-up, not --from")
    if (up := up or own) != "z":
        rotate_(scene, rotation_between(up, "z"))
    note(f"{path} holds no splat; {len(scene['means'])} Gaussians on its surface stand for it")
    return scene, {}


def holds_splats(path: Path) -> bool:
    """Return whether a file is to be read as a splat; broken and absent ones are, whose reader says why."""
    ending = path.suffix.lower()
    if ending in (".glb", ".ply") and path.is_file():
        return _has_splats(path) if ending == ".glb" else _is_splat(path)
    return ending != ".obj"


def of_points(points: np.ndarray, colors: np.ndarray | None, note: Note = warn) -> ParameterDict:
    """Return round Gaussians at points [N, 3], as large as the points are apart.

    colors are [N, 3] in [0, 1], or None for gray. Raises UserError when no point is finite.
    """
    keep = np.isfinite(points).all(1) & (np.abs(points) < 1e30).all(1)
    if colors is not None:
        keep &= np.isfinite(colors).all(1)
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise UserError("the point cloud holds no finite point")
    if len(rows) > MOST_POINTS:
        note(f"{len(rows)} points are thinned to {MOST_POINTS}")
        rows = rows[np.linspace(0, len(rows) - 1, MOST_POINTS).astype(np.int64)]
    means = torch.from_numpy(points[rows].astype(np.float32))
    shown = torch.full_like(means, 0.5) if colors is None else torch.from_numpy(colors[rows])
    sigma = 0.5 * _spacing(means)
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(means), 4)
    return _gaussians(means, torch.full((len(means), 3), math.log(sigma)), quats, shown, POINT_OPACITY)


def of_surface(surface: Surface, count: int = SAMPLES) -> ParameterDict:
    """Return `count` flat Gaussians, spread evenly over the triangles; raises UserError without an area."""
    corners = torch.from_numpy(surface.corners).double()
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normals = torch.linalg.cross(first, second)  # [F, 3], twice the area long
    areas = normals.norm(dim=1).nan_to_num(0.0, 0.0, 0.0) / 2
    total = float(areas.sum())
    if not 0.0 < total < 1e30:
        raise UserError("the mesh has no triangle with an area")
    # Systematic sampling: sample k lies where the summed area reaches (k + 1/2) / count of the whole.
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * (total / count)
    faces = torch.searchsorted(areas.cumsum(0), places).clamp(max=len(areas) - 1)
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, count, generator=generator, dtype=torch.float64)
    fold = u + v > 1.0
    u, v = torch.where(fold, 1 - u, u), torch.where(fold, 1 - v, v)
    shares = torch.stack([1 - u - v, u, v], 1)[:, :, None]  # [count, 3 corners, 1]
    means = (shares * corners[faces]).sum(1)
    colors = torch.from_numpy(surface.painted(faces.numpy(), shares[:, :, 0].numpy()))
    sigma = 0.7 * math.sqrt(total / count)
    scales = torch.tensor([sigma, sigma, FLATNESS * sigma]).log().expand(count, 3)
    quats = _turned_to(normals[faces] / (2 * areas[faces])[:, None])
    return _gaussians(means.float(), scales, quats.float(), colors.float(), OPACITY)


def _gaussians(means: Tensor, scales: Tensor, quats: Tensor, rgb: Tensor, opacity: float) -> ParameterDict:
    count = len(means)
    return from_tensors(
        means=means,
        scales=scales,
        quats=quats,
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh0=rgb_to_sh0(rgb)[:, None],
        shN=torch.zeros(count, 0, 3),
    )


def _turned_to(normals: Tensor) -> Tensor:
    """Return the quaternions [N, 4] that turn +Z to unit normals [N, 3]."""
    x, y, z = normals.unbind(1)
    down = z < -1 + 1e-9  # half a turn about X
    w = torch.where(down, 0.0, 1 + z)
    quats = torch.stack([w, torch.where(down, 1.0, -y), torch.where(down, 0.0, x), torch.zeros_like(x)], 1)
    return torch.nn.functional.normalize(quats, dim=1)


def _spacing(points: Tensor) -> float:
    """Return the median distance of a point to its nearest neighbor, from up to 2,000 of them."""
    if len(points) < 2:
        return 0.05
    some = points[torch.linspace(0, len(points) - 1, min(len(points), 2000)).long()]
    nearest = []
    for part in some.split(50):
        distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.masked_fill(distances <= 0.0, torch.inf).amin(1))
    found = torch.cat(nearest)
    found = found[found.isfinite()]
    return float(found.median()) if len(found) else 0.05


def _is_splat(path: Path) -> bool:
    """Return whether the vertices of a .ply are Gaussians rather than points; broken files are left alone."""
    try:
        elements, _ = read_elements(path, ("vertex",))
    except UserError:
        return True  # the splat's reader says what is wrong
    names = set(elements["vertex"].dtype.names or ()) if "vertex" in elements else set()
    splat = any(name.startswith(("opacity", "scale", "rot", "packed_", "f_dc")) for name in names)
    return splat or not {"x", "y", "z"} <= names


def _has_splats(path: Path) -> bool:
    binary = open_binary(path)
    return any(EXTENSION in (primitive.get("extensions") or {}) for primitive, _ in primitives(binary))


def _read_triangles(path: Path, note: Note) -> Surface:
    """Read the triangles of all nodes of a .glb; raises UserError when there are none."""
    binary, parts, pictures, unread = open_binary(path), [], [], False
    for primitive, matrix in primitives(binary):
        attributes = primitive.get("attributes")
        if primitive.get("mode", TRIANGLES) != TRIANGLES or not isinstance(attributes, dict):
            continue
        points = fractions(binary.values(attributes.get("POSITION"), 3)).astype(np.float64)
        points = points @ matrix[:3, :3].numpy().T + matrix[:3, 3].numpy()
        if "indices" in primitive:
            faces = binary.values(primitive["indices"], 1)[:, 0].astype(np.int64)
        else:
            faces = np.arange(len(points))
        faces = faces[: len(faces) // 3 * 3].reshape(-1, 3)
        if len(faces) and faces.max() >= len(points):
            raise UserError(f"{path} has triangles of vertices that it lacks; export or copy it again")
        color, texture = _material(binary, primitive)
        colors = np.broadcast_to(color, (len(points), 3))
        if "COLOR_0" in attributes:
            colors = np.ones_like(colors) if "material" not in primitive else colors  # the default is white
            width = 4 if binary.item("accessors", attributes["COLOR_0"]).get("type") == "VEC4" else 3
            colors = colors * fractions(binary.values(attributes["COLOR_0"], width))[:, :3]
        which, places = np.full(len(faces), -1), np.zeros((len(faces), 3, 2))
        if texture is not None:
            picture = _picture(binary, texture, attributes)
            unread |= picture is None
            if picture is not None:
                which[:] = len(pictures)
                places = fractions(binary.values(attributes["TEXCOORD_0"], 2)).astype(np.float64)[faces]
                places = np.nan_to_num(places, posinf=0.0, neginf=0.0)
                pictures.append(picture)
        parts.append((points[faces], linear_to_srgb(np.asarray(colors))[faces], which, places))
    if unread:
        note(f"{path} has textures of a kind that is not read; plain colors stand for them")
    if not parts:
        raise UserError(f"{path} holds neither Gaussian splats nor triangles")
    corners, colors, which, places = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Surface(corners, colors, which, places, tuple(pictures))


def _material(binary: Binary, primitive: dict[str, Any]) -> tuple[np.ndarray, object]:
    """Return the linear color [3] of a primitive's material, and the texture that it refers to, or None."""
    if "material" not in primitive:
        return np.full(3, 0.5), None
    material = binary.item("materials", primitive["material"])
    surface = material.get("pbrMetallicRoughness")
    surface = surface if isinstance(surface, dict) else {}
    given = surface.get("baseColorFactor", [1.0, 1.0, 1.0, 1.0])
    sound = isinstance(given, list) and len(given) == 4 and all(type(x) in (int, float) for x in given)
    return np.array(given[:3] if sound else [0.5] * 3, float).clip(0, 1), surface.get("baseColorTexture")


def _picture(binary: Binary, texture: object, attributes: dict[str, Any]) -> np.ndarray | None:
    """Return the picture [h, w, 3] uint8 of a texture; None for one of a kind that is not read."""
    if not isinstance(texture, dict) or texture.get("texCoord") or texture.get("extensions"):
        return None
    if "TEXCOORD_0" not in attributes:
        return None
    source = binary.item("textures", texture.get("index")).get("source")
    image = binary.item("images", source) if source is not None else {}
    if "bufferView" not in image:
        return None
    content = binary.bytes_of(image["bufferView"])
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened:
            if not 0 < opened.width * opened.height <= MOST_PIXELS:
                return None
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _read_obj(path: Path) -> Surface:
    """Read the polygons of an .obj, cut into triangles, with colors after its vertices if it has them."""
    points: list[list[float]] = []
    colors: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    try:
        for line in _lines(path):
            kind, *words = line.split()
            if kind == "v":
                numbers = [float(word) for word in words[:6]]
                points.append(numbers[:3])
                colors.append(numbers[3:6] if len(numbers) == 6 else [0.5, 0.5, 0.5])
            elif kind == "f":
                corner = [int(word.split("/")[0]) for word in words]
                corner = [index - 1 if index > 0 else len(points) + index for index in corner]
                faces += [(corner[0], b, c) for b, c in pairwise(corner[1:])]
        where = np.array(faces, np.int64).reshape(-1, 3)
        vertices, shown = np.array(points, float).reshape(-1, 3), np.array(colors).reshape(-1, 3)
    except (ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is no sound .obj ({' '.join(str(error).split())[:100]})") from error
    if not len(where):
        raise UserError(f"{path} holds no triangle")
    if where.min() < 0 or where.max() >= len(vertices):
        raise UserError(f"{path} has triangles of vertices that it lacks; export or copy it again")
    return Surface.plain(vertices[where], shown.clip(0, 1)[where])


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of an .obj that say something."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file):
                if number > MOST_LINES:
                    raise UserError(f"{path} has more than {MOST_LINES} lines; simplify it first")
                if (text := line.split("#")[0].strip()) and text[0] in "vf":
                    yield text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
