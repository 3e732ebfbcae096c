"""The compressed .ply of PlayCanvas and SuperSplat: 16 bytes a Gaussian, one more for each SH coefficient.

Gaussians lie in Morton order, in chunks of 256. A chunk holds the bounds of its centers, log scales and
colors (18 floats); a Gaussian holds four 32-bit words of fractions between them: position and scale in
11 10 11 bits, the quaternion as the index of its largest component and 10 bits for each other, and the
color and opacity in bytes.
An element `sh` follows with the higher bands (channel-major), 256 steps over [-4, 4].
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.dialects import gather
from splatdistill.formats.packing import (
    Splats,
    allocate,
    from_smallest_three,
    logit,
    pieces,
    quantize,
    smallest_three,
    to_splats,
)
from splatdistill.scene.gaussians import from_arrays, rgb_to_sh0, sh0_to_rgb

CHUNK = 256  # Gaussians
AXES, CHANNELS = ("x", "y", "z"), ("r", "g", "b")
SCALE_AXES = ("scale_x", "scale_y", "scale_z")
PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
GROUPS: tuple[tuple[str, ...], ...] = (AXES, SCALE_AXES, CHANNELS)  # what a chunk bounds
LOG_SCALE_BOUND = 20.0  # readers clip log scales to this
SH_RANGE = 8.0  # of the higher bands, around 0
SH_VALUES = ((np.arange(256) + 0.5) / 256 - 0.5).astype(np.float32) * SH_RANGE
SH_VALUES[[0, -1]] = -SH_RANGE / 2, SH_RANGE / 2
ROTATION_RANGE = np.sqrt(0.5)  # of the three smaller components, around 0


def bounds_of(axes: tuple[str, ...]) -> list[str]:
    """Return the property names of a group's lower bounds, then upper bounds, in a chunk."""
    return [f"{side}_{axis}" for side in ("min", "max") for axis in axes]


def encode(gaussians: ParameterDict) -> tuple[dict[str, np.ndarray], int]:
    """Encode a scene in Morton order; also return how many Gaussians were left out."""
    splats, dropped = to_splats(gaussians)
    splats = splats.select(morton_order(splats.means))
    count = len(splats.means)
    chunks, words = _encode(splats)
    sh = splats.shN.transpose(0, 2, 1).reshape(count, -1)  # channel-major
    sh = np.clip(np.floor((sh / SH_RANGE + 0.5) * 256), 0, 255).astype("u1")
    elements = {
        "chunk": _rows(chunks.astype("<f4"), [name for group in GROUPS for name in bounds_of(group)]),
        "vertex": _rows(words.astype("<u4"), PACKED),
    }
    if sh.shape[1]:
        elements["sh"] = _rows(sh, [f"f_rest_{i}" for i in range(sh.shape[1])])
    return elements, dropped


def _rows(values: np.ndarray, names: list[str]) -> np.ndarray:
    """Convert a table [N, len(names)] to structured rows [N]."""
    return np.ascontiguousarray(values).view([(name, values.dtype.str) for name in names])[:, 0]


def _encode(splats: Splats) -> tuple[np.ndarray, np.ndarray]:
    """Encode Gaussians in their order as chunks [ceil(N / 256), 18] and packed words [N, 4]."""
    scales = splats.log_scales.clip(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
    starts = np.arange(0, len(scales), CHUNK)
    chunk = np.arange(len(scales)) // CHUNK
    chunks, fractions = [], []
    for values in (splats.means, scales, sh0_to_rgb(splats.sh0)):
        low, high = (f.reduceat(values, starts).astype(np.float64) for f in (np.minimum, np.maximum))
        extent = np.where(high > low, high - low, 1.0)
        chunks += [low, high]
        fractions.append((values - low[chunk]) / extent[chunk])
    colors = np.column_stack([fractions[2], splats.opacities])
    largest, others = smallest_three(splats.quats.astype(np.float64))
    rotations = _pack(others * ROTATION_RANGE + 0.5, (10, 10, 10)) | largest.astype(np.uint32) << 30
    packed = [_pack(fractions[0], (11, 10, 11)), rotations]
    packed += [_pack(fractions[1], (11, 10, 11)), _pack(colors, (8, 8, 8, 8))]
    return np.column_stack(chunks), np.column_stack(packed)


def _pack(fractions: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Pack numbers in [0, 1] [N, len(bits)] into one 32-bit word a row, the first one in the highest bits."""
    words = np.zeros(len(fractions), np.uint32)
    for column, width in enumerate(bits):
        words = words << width | quantize(fractions[:, column], (1 << width) - 1)
    return words


def _unpack(words: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Unpack words; the inverse of `_pack`."""
    fractions = np.empty((len(words), len(bits)), np.float32)
    for column, width in reversed(list(enumerate(bits))):
        fractions[:, column] = (words & ((1 << width) - 1)) / np.float32((1 << width) - 1)
        words = words >> width
    return fractions


def morton_order(means: np.ndarray) -> np.ndarray:
    """Return the order of points [N, 3] along a Z-order curve through 1024^3 cells of their bounding box."""
    low, high = means.min(0).astype(np.float64), means.max(0).astype(np.float64)
    cells = quantize((means - low) / np.where(high > low, high - low, 1.0), 1023)
    codes = np.zeros(len(means), np.uint32)
    for bit in range(10):
        for axis in range(3):
            codes |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return codes.argsort(kind="stable")


def decode(elements: Mapping[str, np.ndarray], path: str | Path) -> ParameterDict:
    """Decode the elements of a compressed .ply; raises UserError."""
    degree = _checked_degree(elements, path)
    vertex, chunk = elements["vertex"], elements["chunk"]
    arrays = allocate(len(vertex), degree)
    groups = {group: gather(chunk, bounds_of(group)) for group in GROUPS if _bounded(chunk, group)}
    for piece in pieces(len(vertex)):
        rows = vertex[piece]
        index = np.arange(piece.start, piece.stop) // CHUNK

        def between(group: tuple[str, ...], fractions: np.ndarray, index: np.ndarray = index) -> np.ndarray:
            low, high = np.split(groups[group][index], 2, 1)
            with np.errstate(over="ignore", invalid="ignore"):
                return low * (1 - fractions) + high * fractions

        arrays["means"][piece] = between(AXES, _unpack(rows["packed_position"], (11, 10, 11)))
        arrays["scales"][piece] = between(SCALE_AXES, _unpack(rows["packed_scale"], (11, 10, 11)))
        colors = _unpack(rows["packed_color"], (8, 8, 8, 8))
        rgb = between(CHANNELS, colors[:, :3]) if CHANNELS in groups else colors[:, :3]
        with np.errstate(over="ignore"):
            arrays["sh0"][piece, 0] = rgb_to_sh0(rgb)
        arrays["opacities"][piece] = logit(colors[:, 3])
        words = rows["packed_rotation"]
        others = (_unpack(words, (10, 10, 10)) - np.float32(0.5)) / np.float32(ROTATION_RANGE)
        arrays["quats"][piece] = from_smallest_three(words >> 30, others)
        if degree:
            steps = np.ascontiguousarray(elements["sh"][piece]).view("u1")
            arrays["shN"][piece] = SH_VALUES[steps.reshape(len(rows), 3, -1)].transpose(
                0, 2, 1
            )  # channel-major
    return from_arrays(**arrays)


def _bounded(chunk: np.ndarray, group: tuple[str, ...]) -> bool:
    """Return whether chunks store bounds of a group; the format's first version had none for colors."""
    return set(bounds_of(group)) <= set(chunk.dtype.names or ())


def _checked_degree(elements: Mapping[str, np.ndarray], path: str | Path) -> int:
    """Return the SH degree of a compressed .ply; raises UserError when its elements are inconsistent."""
    vertex = elements["vertex"]
    if "chunk" not in elements:
        raise UserError(f"{path} has no chunk element; expected a compressed splat .ply")
    chunk = elements["chunk"]
    needed = [*bounds_of(AXES), *bounds_of(SCALE_AXES)]
    missing = [name for name in needed if name not in (chunk.dtype.names or ())]
    missing += [n for n in PACKED if n not in (vertex.dtype.names or ()) or vertex.dtype[n].str[1:] != "u4"]
    if missing:
        raise UserError(f"{path} has no usable property {missing[0]}; expected a compressed splat .ply")
    if len(chunk) != -(-len(vertex) // CHUNK):
        raise UserError(
            f"{path} has {len(chunk)} chunks for {len(vertex)} Gaussians; expected one for {CHUNK}"
        )
    if "sh" not in elements:  # gsplat writes one without properties
        return 0
    sh = elements["sh"]
    degree = {9: 1, 24: 2, 45: 3}.get(len(sh.dtype.names or ()))
    if (
        degree is None
        or len(sh) != len(vertex)
        or sh.dtype != np.dtype([(f"f_rest_{i}", "u1") for i in range(degree * (degree + 2) * 3)])
    ):
        raise UserError(f"{path} has an sh element of another shape; expected 9, 24 or 45 bytes a Gaussian")
    return degree
