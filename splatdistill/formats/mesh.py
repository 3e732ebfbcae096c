"""A triangle mesh from a scene, for programs that cannot read splats: .glb, its colors in a texture, or .obj.

The Gaussians are summed on a voxel grid, each with its opacity at the center and cut at three standard
deviations; marching cubes finds a level set of the sum; quadric edge collapse reduces the triangles. Colors
are view-independent, with the same weights; an .obj has them at its vertices. Needs scikit-image,
fast-simplification, and for a .glb xatlas.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.density import Grid, rasterize_density
from splatdistill.formats.gltf import TRIANGLES, Primitive, write_primitive
from splatdistill.formats.packing import Note, Splats, to_splats, warn
from splatdistill.formats.texture import Colors, fill, lay_out
from splatdistill.reference.raster import rotation_matrices
from splatdistill.scene.gaussians import sh0_to_rgb

LEVEL = 0.5  # of the summed opacity, where the surface is: there silhouettes agree best with renders
RESOLUTIONS = (8, 512)
LEAST_TRIANGLES = 100
LARGEST = 1e18  # coordinate of a vertex: its square is a float32 still
FAR = 30.0  # times the median distance from the middle: what is farther out, or larger, is no part of it


class Mesh(NamedTuple):
    """Triangles, counter-clockwise from outside."""

    vertices: np.ndarray  # [P, 3] float32
    normals: np.ndarray  # [P, 3] float32, unit length
    colors: np.ndarray  # [P, 3] float32 in [0, 1], as displayed
    faces: np.ndarray  # [F, 3] uint32
    shade: Colors  # colors [n, 3] as displayed, at places [n, 3]


def write_mesh(
    path: str | Path,
    gaussians: ParameterDict,
    comments: dict[str, str] | None = None,
    resolution: int = 128,
    triangles: int = 20_000,
    note: Note = warn,
) -> int:
    """Write the surface of a scene as .obj or .glb by the path's ending; return its number of triangles.

    Args:
        path: the file.
        gaussians: the scene.
        comments: stored in asset.extras of a .glb.
        resolution: cells along the longest side.
        triangles: about the largest number of triangles.
        note: called with a line about what was left out.

    Raises:
        UserError: there is no surface, a package is missing, or the file cannot be written.
    """
    mesh = surface(to_splats(gaussians)[0], resolution, triangles, note)
    if Path(path).suffix.lower() == ".glb":
        _write_glb(path, mesh, comments)
    else:
        _write_obj(path, mesh)
    return len(mesh.faces)


def surface(splats: Splats, resolution: int, triangles: int = 20_000, note: Note = warn) -> Mesh:
    """Return the level set LEVEL of the summed opacity; raises UserError when it is empty."""
    try:
        from fast_simplification import simplify
        from skimage.measure import marching_cubes
    except ImportError:
        raise UserError(
            "a mesh needs scikit-image and fast-simplification; pip install 'splatdistill[formats]'"
        ) from None
    lowest, highest = RESOLUTIONS
    if not lowest <= resolution <= highest:
        raise UserError(f"a grid of {resolution} cells; expected {lowest} to {highest}")
    if triangles < LEAST_TRIANGLES:
        raise UserError(f"a mesh of {triangles} triangles; expected at least {LEAST_TRIANGLES}")
    near = _near(splats)
    if not near.all():
        note(f"{int((~near).sum())} of {len(near)} Gaussians left out of the mesh: far off, or huge")
    grid, middle = _grid(splats.select(near), resolution)
    if not grid.density.min() < LEVEL < grid.density.max():
        raise UserError(f"the scene is nowhere as dense as {LEVEL}; there is no surface to export")
    vertices, faces, _, _ = marching_cubes(grid.density, LEVEL)
    if len(faces) > triangles:
        vertices, faces, *_ = simplify(vertices.astype(np.float32), faces, target_count=triangles)
    placed = grid.origin + grid.cell * vertices.astype(np.float64) + middle
    if not grid.cell > np.abs(placed).max() * 2**-22 or np.abs(placed).max() > LARGEST:
        raise UserError("the scene is too large, or too far from the origin, for a mesh in float32")
    faces = faces[:, ::-1].astype(np.uint32)
    corner = grid.origin + middle

    def shade(places: np.ndarray) -> np.ndarray:
        return grid.colors((places - corner) / grid.cell).clip(0, 1)

    colors = grid.colors(vertices).clip(0, 1).astype(np.float32)
    return Mesh(placed.astype(np.float32), _normals(vertices, faces), colors, faces, shade)


def _near(splats: Splats) -> np.ndarray:
    """Return which Gaussians [N] belong to the object: none beyond FAR in distance or size."""
    seen = splats.opacities >= np.median(splats.opacities)
    means = splats.means.astype(np.float64)
    distances = np.linalg.norm(means - np.median(means[seen], 0), axis=1)
    sizes = np.exp(splats.log_scales.max(1).astype(np.float64))
    limit = FAR * max(float(np.median(distances[seen])), float(np.median(sizes[seen])))
    near = (distances <= limit) & (sizes <= limit)
    return near if near.any() else np.ones_like(near)


def _grid(splats: Splats, resolution: int) -> tuple[Grid, np.ndarray]:
    """Return the summed opacity and color of Gaussians, and their median center [3]."""
    means = splats.means.astype(np.float64)
    middle = np.median(means, 0)
    rotations = rotation_matrices(torch.from_numpy(splats.quats).double()).numpy()  # [N, 3, 3]
    scales = np.exp(splats.log_scales.astype(np.float64))
    rgb = sh0_to_rgb(splats.sh0)
    return rasterize_density(means - middle, rotations, scales, splats.opacities, rgb, resolution), middle


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit normals [P, 3] float32: the area-weighted mean of adjacent faces' normals."""
    corners = vertices.astype(np.float64)[faces]  # [F, 3, 3]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((len(vertices), 3))
    for corner in range(3):
        np.add.at(normals, faces[:, corner], areas)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-300), [0.0, 0.0, 1.0]).astype(np.float32)


def _write_glb(path: str | Path, mesh: Mesh, comments: dict[str, str] | None) -> None:
    layout = lay_out(mesh.vertices, mesh.faces)
    picture = io.BytesIO()
    Image.fromarray(fill(layout, mesh.vertices, mesh.shade)).save(picture, "PNG", optimize=False)
    attributes = {
        "POSITION": mesh.vertices[layout.vertices],
        "NORMAL": mesh.normals[layout.vertices],
        "TEXCOORD_0": layout.places,
    }
    surface = {"metallicFactor": 0, "baseColorTexture": {"index": 0}}
    plain = {"pbrMetallicRoughness": surface, "extensions": {"KHR_materials_unlit": {}}}
    indices, material = layout.faces.reshape(-1), {"material": 0}
    primitive = Primitive(TRIANGLES, attributes, indices, material, (plain,), picture.getvalue())
    write_primitive(path, primitive, ["KHR_materials_unlit"], comments)


def _write_obj(path: str | Path, mesh: Mesh) -> None:
    """Write vertices with colors (v x y z r g b), normals, and faces that use both."""
    content = io.StringIO()
    np.savetxt(content, np.hstack([mesh.vertices, mesh.colors]), "v %.6g %.6g %.6g %.4f %.4f %.4f")
    np.savetxt(content, mesh.normals, "vn %.4f %.4f %.4f")
    np.savetxt(content, np.repeat(mesh.faces + 1, 2, 1), "f %d//%d %d//%d %d//%d")
    with atomic_write(path) as file:
        file.write(b"# splatdistill: v x y z red green blue\n" + content.getvalue().encode("ascii"))
