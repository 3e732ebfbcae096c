"""The texture of a mesh: charts of its surface, cut and laid out by xatlas, and filled with colors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from splatdistill.errors import UserError

SIDE = 1024  # pixels
PADDING = 2  # pixels between charts
REACH = 0.75  # pixels beyond its edges that a triangle colors
PIXELS = 1 << 18  # looked at at a time
Colors = Callable[[np.ndarray], np.ndarray]


class Layout(NamedTuple):
    """A mesh whose vertices are doubled where charts meet."""

    vertices: np.ndarray  # [Q] which of the old ones each is
    faces: np.ndarray  # [F, 3] uint32
    places: np.ndarray  # [Q, 2] float32 in the picture, from 0 to 1 rightward and downward


def lay_out(vertices: np.ndarray, faces: np.ndarray, side: int = SIDE) -> Layout:
    """Cut a mesh into charts and lay them out in a square; vertices [P, 3], faces [F, 3].

    Raises UserError when xatlas is missing.
    """
    try:
        import xatlas
    except ImportError:
        raise UserError("a texture needs xatlas; pip install 'splatdistill[formats]'") from None
    atlas, pack, chart = xatlas.Atlas(), xatlas.PackOptions(), xatlas.ChartOptions()
    pack.resolution, pack.padding, pack.bilinear = side, PADDING, True
    chart.max_iterations = 1
    atlas.add_mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    atlas.generate(chart, pack)
    which, cut, places = atlas[0]
    if atlas.atlas_count > 1:  # one square was too small
        pack.resolution = 0  # then the density is chosen so that one is enough
        atlas = xatlas.Atlas()
        atlas.add_mesh(vertices.astype(np.float32), faces.astype(np.uint32))
        atlas.generate(chart, pack)
        which, cut, places = atlas[0]
    return Layout(which.astype(np.int64), cut.astype(np.uint32), places.astype(np.float32))


def fill(layout: Layout, vertices: np.ndarray, colors: Colors, side: int = SIDE) -> np.ndarray:
    """Return the picture [S, S, 3] uint8 of a layout.

    Args:
        layout: of the mesh.
        vertices: its places [P, 3] in space.
        colors: gives colors [n, 3] in [0, 1] at places [n, 3].
        side: of the picture in pixels.
    """
    from scipy.ndimage import distance_transform_edt

    corners = layout.places.astype(np.float64)[layout.faces] * side  # [F, 3, 2] in pixels
    space = vertices[layout.vertices].astype(np.float64)[layout.faces]  # [F, 3, 3]
    low = np.floor(corners.min(1) - 0.5).astype(int).clip(0, side - 1)  # [F, 2]
    size = (np.ceil(corners.max(1) + 0.5).astype(int).clip(1, side) - low).max(1)
    wide = 2 ** np.ceil(np.log2(size)).astype(int)  # pixels a side of the square that is looked at
    found = []
    for width in np.unique(wide):
        faces = np.flatnonzero(wide == width)
        for part in np.array_split(faces, -(-len(faces) * int(width) ** 2 // PIXELS)):
            found.append(_inside(corners[part], space[part], low[part], int(width), side))
    picture, filled = np.zeros((side, side, 3)), np.zeros((side, side), bool)
    if found:
        row, column, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        picture[row, column] = colors(points).clip(0, 1)
        filled[row, column] = True
    if filled.any():  # what no triangle covers takes the nearest color, so that no seam shows from afar
        nearest: Any = distance_transform_edt(~filled, return_distances=False, return_indices=True)
        picture = picture[tuple(nearest)]
    return (picture * 255).round().astype(np.uint8)


def _inside(
    corners: np.ndarray, space: np.ndarray, low: np.ndarray, width: int, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and columns [n] of the pixels that triangles touch, and their places [n, 3] in space.

    Pixels that are half outside take the nearest place inside, nearly.

    Args:
        corners: in pixels, [F, 3, 2].
        space: the same in space, [F, 3, 3].
        low: the first pixel [F, 2] that is looked at.
        width: how many are, along both axes.
        side: of the picture.
    """
    step = np.arange(width)
    x = low[:, 0, None, None] + step[None, None]  # [F, 1, w]
    y = low[:, 1, None, None] + step[None, :, None]  # [F, w, 1]
    (ax, ay), (bx, by) = (corners[:, k].T - corners[:, 0].T for k in (1, 2))
    area = ax * by - ay * bx
    sound = np.abs(area) > 1e-12
    area = np.where(sound, area, 1.0)
    ax, ay, bx, by, area = (value[:, None, None] for value in (ax, ay, bx, by, area))
    dx, dy = x + 0.5 - corners[:, 0, 0, None, None], y + 0.5 - corners[:, 0, 1, None, None]
    b, c = (dx * by - dy * bx) / area, (dy * ax - dx * ay) / area
    shares = np.stack([1 - b - c, b, c], -1)  # [F, w, w, 3]
    longest = np.linalg.norm(corners - corners[:, [1, 2, 0]], axis=2).max(1)[:, None, None]
    touched = shares.min(-1) >= -REACH * longest / np.abs(area)
    touched &= sound[:, None, None] & (x < side) & (y < side)
    face, row, column = np.nonzero(touched)
    kept = shares[face, row, column].clip(0, None)
    kept /= kept.sum(1, keepdims=True)
    return low[face, 1] + row, low[face, 0] + column, (kept[:, :, None] * space[face]).sum(1)
