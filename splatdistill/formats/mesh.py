"""A triangle mesh with vertex colours from a scene, for tools that know no splats: .obj, or .glb.

The Gaussians are summed on a grid of cubes, each with its opacity at the centre and cut at three standard
deviations; marching cubes finds where the sum crosses a level. Colours are the view-independent ones,
weighted alike. Needs scikit-image.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.gltf import TRIANGLES, Primitive, srgb_to_linear, write_primitive
from splatdistill.formats.packing import Splats, quantize, to_splats
from splatdistill.reference.raster import rotation_matrices
from splatdistill.scene.gaussians import sh0_to_rgb

LEVEL = 0.5  # of the summed opacity, where the surface is: there silhouettes agree best with renders
CUT = 3.0  # standard deviations
NARROWEST = 0.5  # standard deviation in cells: a thinner Gaussian could fall between the points of the grid
SEEN = 0.05  # opacity from which a Gaussian counts for the size of the grid
RESOLUTIONS = (8, 512)


class Mesh(NamedTuple):
    """Triangles, counter-clockwise from outside."""

    vertices: np.ndarray  # [P, 3] float32
    normals: np.ndarray  # [P, 3] float32, unit length
    colours: np.ndarray  # [P, 3] float32 in [0, 1], as displayed
    faces: np.ndarray  # [F, 3] uint32


def write_mesh(
    path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None, resolution: int = 128
) -> int:
    """Write the surface of a scene as .obj or .glb by the path's ending; return its number of triangles.

    resolution: cells along the longest side. comments go to asset.extras of a .glb. Raises UserError when
    there is no surface, scikit-image is missing or the file cannot be written.
    """
    mesh = surface(to_splats(gaussians)[0], resolution)
    if Path(path).suffix.lower() == ".glb":
        _write_glb(path, mesh, comments)
    else:
        _write_obj(path, mesh)
    return len(mesh.faces)


def surface(splats: Splats, resolution: int) -> Mesh:
    """The surface where the summed opacity is LEVEL; raises UserError when there is none."""
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        raise UserError("a mesh needs scikit-image; pip install 'splatdistill[formats]'") from None
    lowest, highest = RESOLUTIONS
    if not lowest <= resolution <= highest:
        raise UserError(f"a grid of {resolution} cells; expected {lowest} to {highest}")
    density, colour, origin, cell = rasterize_density(splats, resolution)
    if not density.min() < LEVEL < density.max():
        raise UserError(f"the scene is nowhere as dense as {LEVEL}; there is no surface to export")
    vertices, faces, normals, _ = marching_cubes(density, LEVEL)
    colours = _interpolate(colour, vertices) / _interpolate(density[..., None], vertices)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(
        (origin + cell * vertices).astype(np.float32),
        normals.astype(np.float32),
        colours.clip(0, 1).astype(np.float32),
        faces[:, ::-1].astype(np.uint32),
    )


def rasterize_density(splats: Splats, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The summed opacity [X, Y, Z], the colours weighted by it [X, Y, Z, 3], the first point and the spacing.

    The grid holds every visible Gaussian and a border of empty points, so that surfaces close.
    """
    rotations = rotation_matrices(torch.from_numpy(splats.quats).double()).numpy()  # [N, 3, 3]
    scales = np.exp(splats.log_scales.astype(np.float64))
    reach = CUT * np.sqrt((rotations**2 * scales[:, None] ** 2).sum(2))  # [N, 3] half sides of the boxes
    seen = splats.opacities >= SEEN if (splats.opacities >= SEEN).any() else splats.opacities > 0
    low, high = (splats.means - reach)[seen].min(0), (splats.means + reach)[seen].max(0)
    cell = float((high - low).max()) / resolution
    origin = low - 2 * cell
    shape = np.ceil((high - origin) / cell).astype(int) + 3
    density, colour = np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    scales = np.maximum(scales, NARROWEST * cell)
    whitening = rotations / scales[:, None]  # [N, 3, 3]: offset @ whitening is in standard deviations
    reach = CUT * np.sqrt((rotations**2 * scales[:, None] ** 2).sum(2))
    first = np.clip(np.ceil((splats.means - reach - origin) / cell), 1, shape - 1).astype(int)
    last = np.clip(np.floor((splats.means + reach - origin) / cell), 0, shape - 2).astype(int)
    rgb = sh0_to_rgb(splats.sh0)
    for n in range(len(splats.means)):
        box = tuple(slice(a, b + 1) for a, b in zip(first[n], last[n]))
        points = [
            origin[k] + cell * np.arange(s.start, s.stop) - splats.means[n, k] for k, s in enumerate(box)
        ]
        offsets = np.stack(np.meshgrid(*points, indexing="ij"), -1)
        squared = ((offsets @ whitening[n]) ** 2).sum(-1)
        weight = splats.opacities[n] * np.exp(-0.5 * squared) * (squared <= CUT * CUT)
        density[box] += weight
        colour[box] += weight[..., None] * rgb[n]
    return density, colour, origin, cell


def _interpolate(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear values [P, C] of a grid [X, Y, Z, C] at points [P, 3] in cells."""
    low = np.minimum(np.floor(points).astype(int), np.array(grid.shape[:3]) - 2)
    fraction = points - low
    result = np.zeros((len(points), grid.shape[3]))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, fraction, 1 - fraction).prod(1)
        result += weight[:, None] * grid[tuple((low + corner).T)]
    return result


def _write_glb(path: str | Path, mesh: Mesh, comments: dict[str, str] | None) -> None:
    attributes = {
        "POSITION": mesh.vertices,
        "NORMAL": mesh.normals,
        "COLOR_0": quantize(np.insert(srgb_to_linear(mesh.colours), 3, 1, 1), 65535).astype("u2"),
    }
    plain = {"pbrMetallicRoughness": {"metallicFactor": 0}, "extensions": {"KHR_materials_unlit": {}}}
    indices, material = mesh.faces.reshape(-1), {"material": 0}
    primitive = Primitive(TRIANGLES, attributes, indices, material, (plain,))
    write_primitive(path, primitive, ["KHR_materials_unlit"], comments)


def _write_obj(path: str | Path, mesh: Mesh) -> None:
    """Vertices with colours (v x y z r g b), normals, and faces that use both."""
    content = io.StringIO()
    np.savetxt(content, np.hstack([mesh.vertices, mesh.colours]), "v %.6g %.6g %.6g %.4f %.4f %.4f")
    np.savetxt(content, mesh.normals, "vn %.4f %.4f %.4f")
    np.savetxt(content, np.repeat(mesh.faces + 1, 2, 1), "f %d//%d %d//%d %d//%d")
    with atomic_write(path) as file:
        file.write(b"# splatdistill: v x y z red green blue\n" + content.getvalue().encode("ascii"))
