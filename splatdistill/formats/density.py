"""Sum of Gaussians on a voxel grid, in time bounded by the grid rather than by their sizes.

A Gaussian whose smallest standard deviation spans many cells is smooth: it is summed on a coarser grid of a
pyramid, and interpolated. Only cells inside the ellipsoid are visited: for every column of cells, the
interval where a quadratic in the height stays below the cutoff.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CUT = 3.0  # standard deviations
NARROWEST = 0.5  # standard deviation in cells: a thinner Gaussian could fall between the points of the grid
SMOOTH = 4.0  # smallest standard deviation in cells on the grid of a Gaussian: interpolation errs below 1 %
SEEN = 0.05  # opacity from which a Gaussian counts for the size of the grid
COLUMNS = 1 << 15  # visited at a time
DEEPEST = 7  # of the pyramid


class Grid(NamedTuple):
    """The points of a grid, and density and color there."""

    density: np.ndarray  # [X, Y, Z] float32, summed opacity
    color: np.ndarray  # [X, Y, Z, 3] float32, weighted by it
    origin: np.ndarray  # [3] float64, the first point
    cell: float  # the spacing

    def colors(self, points: np.ndarray) -> np.ndarray:
        """Return the colors [P, 3] at points [P, 3] in cells."""
        density = _interpolate(self.density[..., None], points)
        return _interpolate(self.color, points) / np.maximum(density, 1e-6)


class _Gaussians(NamedTuple):
    """Gaussians in units of grid cells."""

    means: np.ndarray  # [N, 3]
    precisions: np.ndarray  # [N, 3, 3]
    reach: np.ndarray  # [N, 3] half sides of the boxes
    values: np.ndarray  # [N, 4] opacity, and color weighted by it


def rasterize_density(
    means: np.ndarray,
    rotations: np.ndarray,
    scales: np.ndarray,
    opacities: np.ndarray,
    rgb: np.ndarray,
    resolution: int,
) -> Grid:
    """Return the summed opacity and color of Gaussians, with `resolution` cells along the longest side.

    means [N, 3], rotations [N, 3, 3] and scales [N, 3] in float64; opacities [N]; rgb [N, 3]. The grid holds
    every visible Gaussian and a border of empty points, so that surfaces close.
    """
    reach = CUT * np.sqrt((rotations**2 * scales[:, None] ** 2).sum(2))
    seen = opacities >= SEEN if (opacities >= SEEN).any() else opacities > 0
    low, high = (means - reach)[seen].min(0), (means + reach)[seen].max(0)
    cell = float((high - low).max()) / resolution
    origin = low - 2 * cell
    shape = np.ceil((high - origin) / cell).astype(int) + 3
    sigmas = np.maximum(scales / cell, NARROWEST)
    levels = np.floor(np.log2(sigmas.min(1) / SMOOTH)).clip(0, DEEPEST).astype(int)
    total = np.zeros((*shape, 4), np.float32)
    for level in np.unique(levels):
        index, step = levels == level, 2.0**level
        widths = np.maximum(sigmas[index] / step, NARROWEST)
        whitening = (
            rotations[index] / widths[:, None]
        )  # [N, 3, 3]: offset @ whitening is in standard deviations
        values = opacities[index, None] * np.hstack([np.ones((index.sum(), 1)), rgb[index]])
        gaussians = _Gaussians(
            (means[index] - origin) / (cell * step),
            whitening @ whitening.transpose(0, 2, 1),
            CUT * np.sqrt((rotations[index] ** 2 * widths[:, None] ** 2).sum(2)),
            values,
        )
        coarse = np.zeros((*(-(-(shape - 1) // int(step)) + 1), 4), np.float32)
        _accumulate(coarse, gaussians)
        total += _finer(coarse, int(step), shape)
    total[[0, -1]] = total[:, [0, -1]] = total[:, :, [0, -1]] = 0  # the border stays empty
    return Grid(np.ascontiguousarray(total[..., 0]), total[..., 1:], origin, cell)


def _accumulate(grid: np.ndarray, gaussians: _Gaussians) -> None:
    """Add Gaussians to a grid [X, Y, Z, 4] in place."""
    means, precisions, _, values = gaussians
    flat, height = grid.reshape(-1, 4), grid.shape[2]
    for n, x, y in _columns(gaussians, grid.shape[:2]):
        A = precisions[n]  # [C, 3, 3]
        dx, dy = x - means[n, 0], y - means[n, 1]
        # squared distance a dz^2 + 2 b dz + c, below the cut between two roots
        a, b = A[:, 2, 2], A[:, 0, 2] * dx + A[:, 1, 2] * dy
        c = A[:, 0, 0] * dx * dx + 2 * A[:, 0, 1] * dx * dy + A[:, 1, 1] * dy * dy
        half = np.sqrt(np.maximum(b * b - a * (c - CUT * CUT), 0)) / a
        first = np.ceil(means[n, 2] - b / a - half).clip(0, height).astype(int)
        last = np.floor(means[n, 2] - b / a + half).clip(-1, height - 1).astype(int)
        counts = np.maximum(last - first + 1, 0)
        column = np.repeat(np.arange(len(n)), counts)
        z = np.arange(len(column)) - np.repeat(counts.cumsum() - counts, counts) + first[column]
        dz = z - means[n, 2][column]
        squared = (a[column] * dz + 2 * b[column]) * dz + c[column]
        weight = np.exp(-0.5 * squared) * (squared <= CUT * CUT)
        place = (x[column] * grid.shape[1] + y[column]) * height + z
        for channel in range(4):
            np.add.at(flat[:, channel], place, (weight * values[n[column], channel]).astype(np.float32))


def _columns(
    gaussians: _Gaussians, shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all columns [x, y] of the grid covered by bounding boxes, in batches: Gaussian index, x and y."""
    size = np.array(shape[:2])
    low, high = gaussians.means - gaussians.reach, gaussians.means + gaussians.reach
    first = np.ceil(low[:, :2]).clip(0, size).astype(int)
    extent = np.maximum(np.floor(high[:, :2]).clip(-1, size - 1).astype(int) - first + 1, 0)  # [N, 2]
    ends = extent.prod(1).cumsum()
    for start in range(0, int(ends[-1]), COLUMNS):
        index = np.arange(start, min(start + COLUMNS, int(ends[-1])))
        n = np.searchsorted(ends, index, "right")
        within = index - (ends[n] - extent[n].prod(1))
        yield n, first[n, 0] + within // extent[n, 1], first[n, 1] + within % extent[n, 1]


def _finer(coarse: np.ndarray, step: int, shape: np.ndarray) -> np.ndarray:
    """Interpolate a coarse grid [x, y, z, 4], `step` cells apart, at the points of the fine one."""
    for axis, size in enumerate(shape if step > 1 else ()):
        points = np.arange(size)
        fraction = ((points % step) / np.float32(step)).astype(np.float32)
        fraction = fraction.reshape([-1 if k == axis else 1 for k in range(4)])
        low = coarse.take(points // step, axis)
        high = coarse.take(np.minimum(points // step + 1, coarse.shape[axis] - 1), axis)
        coarse = low + fraction * (high - low)
    return coarse


def _interpolate(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return trilinear values [P, C] of a grid [X, Y, Z, C] at points [P, 3] in cells."""
    most = np.array(grid.shape[:3]) - 2
    low = np.floor(points).astype(int).clip(0, most)
    fraction = (points - low).clip(0, 1)
    result = np.zeros((len(points), grid.shape[3]))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, fraction, 1 - fraction).prod(1)
        result += weight[:, None] * grid[tuple((low + corner).T)]
    return result
