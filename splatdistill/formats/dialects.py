"""Dialects of splats in .ply files: property names of other programs, and how to decode them.

Beside the layout of the authors: 2D Gaussians (two scales; the third is set thin), colors as red green blue,
any number of SH bands (those above 3 are left out), the 3D filter of Mip-Splatting.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from splatdistill.errors import UserError
from splatdistill.formats.storable import FLAT
from splatdistill.scene.gaussians import rgb_to_sh0

MAX_DEGREE = 3
COLORS = ["red", "green", "blue"]
SCAFFOLD = "anchors of Scaffold-GS, whose Gaussians a network makes; store those with its own tools"
STRANGERS = {  # a property -> whose dialect it is, and what to do
    "f_anchor_feat_0": SCAFFOLD,
    "f_offset_0": SCAFFOLD,
    "trbf_center": "a splat that moves (Spacetime Gaussians); store one moment of it as a splat",
    "motion_0": "a splat that moves; store one moment of it as a splat",
    "t": "a splat that moves (4D Gaussians); store one moment of it as a splat",
}


class Layout(NamedTuple):
    """The vertex properties that hold each value."""

    scales: list[str]  # one for a round Gaussian, two for a flat one, or three
    colors: list[str]
    rest: int  # SH coefficients above 0 of a channel, as stored
    degree: int  # of those that are read
    filtered: bool  # whether there is a 3D filter
    notes: list[str]

    def decode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of some vertices, by the names of `gaussians.NAMES`."""
        scales = gather(rows, self.scales)
        if len(self.scales) < 3:
            third = scales if len(self.scales) == 1 else np.full((len(rows), 1), FLAT, np.float32)
            scales = np.hstack([scales, third, third])[:, :3]
        opacities = gather(rows, ["opacity"])
        if self.filtered:
            scales, opacities = _filtered(scales, opacities, gather(rows, ["filter_3D"]))
        colors = gather(rows, self.colors)
        if self.colors == COLORS:
            kind = rows.dtype[COLORS[0]]
            colors = rgb_to_sh0(colors / np.float32(np.iinfo(kind).max if kind.kind in "ui" else 1))
        kept = (self.degree + 1) ** 2 - 1
        names = [f"f_rest_{channel * self.rest + i}" for channel in range(3) for i in range(kept)]
        return {
            "means": gather(rows, ["x", "y", "z"]),
            "sh0": colors,
            "shN": gather(rows, names).reshape(len(rows), 3, kept).transpose(0, 2, 1),
            "opacities": opacities,
            "scales": scales,
            "quats": gather(rows, [f"rot_{i}" for i in range(4)]),
        }


def gather(rows: np.ndarray, names: list[str]) -> np.ndarray:
    """Return vertex properties as float32 [N, len(names)]; a double out of range becomes inf."""
    columns = np.empty((len(rows), len(names)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, name in enumerate(names):
            columns[:, column] = rows[name]
    return columns


def _filtered(scales: np.ndarray, opacities: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply a 3D filter of width [N, 1] to log scales [N, 3], logit opacities [N, 1] (2311.16493, eq. 7)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wide = np.logaddexp(2.0 * scales, 2.0 * np.log(np.abs(width.astype(np.float64)))) / 2
        alpha = np.exp((scales - wide).sum(1, keepdims=True)) / (1 + np.exp(-opacities.astype(np.float64)))
        return wide, np.log(alpha / (1 - alpha))


def layout_of(dtype: np.dtype, path: str | Path) -> Layout:
    """Return the layout of a vertex type; raises UserError, naming the dialect, when it is not a splat."""
    names = dtype.names or ()
    for name, what in STRANGERS.items():
        if name in names:
            raise UserError(f"{path} holds {what}")
    scales = [name for name in ("scale_0", "scale_1", "scale_2") if name in names]
    colors = (
        COLORS if "f_dc_0" not in names and set(COLORS) <= set(names) else [f"f_dc_{i}" for i in range(3)]
    )
    needed = ["x", "y", "z", *colors, "opacity", *[f"scale_{i}" for i in range(max(len(scales), 1))]]
    missing = [name for name in [*needed, *(f"rot_{i}" for i in range(4))] if name not in names]
    if missing and {"x", "y", "z"} <= set(names) and "opacity" not in names and not scales:
        raise UserError(
            f"{path} is a point cloud or a mesh (its vertices have no opacity and scale), not a splat"
        )
    if missing:
        raise UserError(f"{path} has no property {missing[0]}; expected the .ply of a Gaussian splat")
    notes = []
    if len(scales) < 3:
        notes.append(
            "2D Gaussians: the third scale is thin" if len(scales) == 2 else "one scale: all are round"
        )
    total = sum(name.startswith("f_rest_") for name in names)
    stored = math.isqrt(total // 3 + 1) - 1
    if total != 3 * stored * (stored + 2) or any(f"f_rest_{i}" not in names for i in range(total)):
        raise UserError(
            f"{path} has {total} f_rest properties; expected 0, 9, 24 or 45: whole SH bands in three channels"
        )
    if stored > MAX_DEGREE:
        notes.append(f"SH degree {stored}: the bands above {MAX_DEGREE} are left out")
    if "filter_3D" in names:
        notes.append("the 3D filter of Mip-Splatting is applied")
    degree = min(stored, MAX_DEGREE)
    return Layout(scales, colors, total // 3, degree, "filter_3D" in names, notes)
