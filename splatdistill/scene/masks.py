"""Masks of a splat: the Gaussians that a run may change, and the region where new ones may be born.

A mask is written as box:x0,y0,z0,x1,y1,z1 or sphere:x,y,z,radius in the splat's own frame, as `above`, which
is the space on top of the splat, or as the path of a .npy of indices or of booleans. Any other text is words,
which a teacher has to find in the splat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.scene.gaussians import extent, from_tensors, rgb_to_sh0

SHAPES = {"box": ("x0,y0,z0,x1,y1,z1", 6), "sphere": ("x,y,z,radius", 4)}
ABOVE = "above"
WIDER, LEAST = 1.25, 0.45  # width of the space above a splat, beside its narrower width and its longest side
SUNK = 0.02  # how far that reaches into it, beside its longest side
MARGIN = 0.1  # of the box around chosen Gaussians, as a share of its sides
FAINT = 0.1  # opacity of a seed


@dataclass(frozen=True, eq=False)
class Mask:
    """Which Gaussians may change, and a box, or an ellipsoid in it, that bounds them and their offspring."""

    rows: Tensor  # [N] bool
    middle: Tensor  # [3]
    half: Tensor  # [3] half the box's sides, above 0
    round: bool = False

    def holds(self, points: Tensor) -> Tensor:
        """Return which points [P, 3] are in the region: [P] bool."""
        return self._reach(points) <= 1.0

    def _reach(self, points: Tensor) -> Tensor:
        """Return how far out points [P, 3] are, 1 at the surface: [P]."""
        scaled = (points - self.middle.to(points)) / self.half.to(points)
        return scaled.norm(dim=-1) if self.round else scaled.abs().amax(-1)

    @property
    def tips(self) -> Tensor:
        """The middles of the region's six sides [6, 3]."""
        return torch.cat([self.middle + self.half.diag(), self.middle - self.half.diag()])

    def moved(self, shift: tuple[float, float, float], scale: float) -> Mask:
        """Return the mask of the scene that `gaussians.moved` returns for the same arguments."""
        middle = (self.middle + self.middle.new_tensor(shift)) * scale
        return replace(self, middle=middle, half=self.half * scale)

    def to(self, device: torch.device) -> Mask:
        """Return the same mask on another device."""
        return replace(
            self, rows=self.rows.to(device), middle=self.middle.to(device), half=self.half.to(device)
        )

    @torch.no_grad()
    def keep_inside_(self, means: Tensor, free: Tensor) -> None:
        """Move, in place, the centers of `free` [N] Gaussians that left the region back to its surface."""
        middle, half = self.middle.to(means), self.half.to(means)
        if self.round:
            inside = (means - middle) / self._reach(means).clamp(min=1.0)[:, None] + middle
        else:
            inside = torch.minimum(torch.maximum(means, middle - half), middle + half)
        means.copy_(torch.where(free[:, None], inside, means))

    def seeds(self, count: int, coefficients: int, generator: torch.Generator) -> ParameterDict:
        """Create faint round gray Gaussians, uniform in the region.

        Args:
            count: how many.
            coefficients: of the spherical harmonics above degree 0, K - 1.
            generator: source of the random numbers, on the CPU.
        """
        direction = torch.randn(count, 3, generator=generator)
        if self.round:
            direction = torch.nn.functional.normalize(direction, dim=-1)
            place = direction * torch.rand(count, 1, generator=generator) ** (1 / 3)
        else:
            place = 2.0 * torch.rand(count, 3, generator=generator) - 1.0
        volume = float(self.half.prod()) * (4 / 3 * math.pi if self.round else 8.0)
        sigma = 0.5 * (volume / max(count, 1)) ** (1 / 3)
        rgb = 0.5 + 0.1 * torch.randn(count, 1, 3, generator=generator)
        return from_tensors(
            means=self.middle.cpu() + place * self.half.cpu(),
            scales=torch.full((count, 3), math.log(sigma)),
            quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
            opacities=torch.full((count,), math.log(FAINT / (1 - FAINT))),
            sh0=rgb_to_sh0(rgb),
            shN=torch.zeros(count, coefficients, 3),
        )


def is_words(text: str) -> bool:
    """Return whether a mask is neither a shape nor a file, so that a teacher has to find it."""
    kind = text.partition(":")[0].strip().lower()
    return kind not in (*SHAPES, ABOVE) and not text.endswith(".npy")


def is_file(text: str) -> bool:
    """Return whether a mask is a file."""
    return not is_words(text) and text.partition(":")[0].strip().lower() not in (*SHAPES, ABOVE)


def read_mask(text: str, gaussians: ParameterDict) -> Mask:
    """Return the mask that a shape or a file describes.

    Args:
        text: see the top of this file; not words.
        gaussians: the scene, in its own frame.

    Raises:
        UserError: text or a file of another form, or a file of another scene.
    """
    if is_file(text):
        return around(gaussians, _read_rows(Path(text), len(gaussians["means"])), text)
    kind, _, numbers = text.partition(":")
    kind = kind.strip().lower()
    if kind == ABOVE:
        return above(gaussians)
    form, count = SHAPES[kind]
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"--mask {text}: expected {kind}:{form}, {count} numbers in the splat's own frame")
    if kind == "box":
        low, high = torch.tensor(values[:3]), torch.tensor(values[3:])
        middle, half = (low + high) / 2, (high - low) / 2
    else:
        middle, half = torch.tensor(values[:3]), torch.full((3,), values[3])
    if not bool((half > 0).all()):
        what = "x0 < x1, y0 < y1 and z0 < z1" if kind == "box" else "a radius above 0"
        raise UserError(f"--mask {text}: expected {what}")
    mask = Mask(torch.empty(0, dtype=torch.bool), middle, half, kind == "sphere")
    return replace(mask, rows=mask.holds(gaussians["means"].detach().cpu()))


def box_text(middle: Tensor, half: Tensor) -> str:
    """Return a box as a mask is written."""
    corners = torch.cat([middle - half, middle + half]).tolist()
    return "box:" + ",".join(f"{value:.5g}" for value in corners)


def above(gaussians: ParameterDict) -> Mask:
    """Return the box on top of a splat: about as wide as it is, and as high as its longest side."""
    low, high = extent(gaussians)
    sides = high - low
    width = torch.maximum(WIDER * sides[:2].min(), LEAST * sides.max())
    half = torch.stack([width, width, sides.max()]) / 2
    middle = (low + high) / 2
    middle[2] = high[2] + half[2] - SUNK * sides.max()
    mask = Mask(torch.empty(0, dtype=torch.bool), middle, half.clamp(min=1e-6))
    return replace(mask, rows=mask.holds(gaussians["means"].detach().cpu()))


def around(gaussians: ParameterDict, rows: Tensor, text: str) -> Mask:
    """Return the mask of chosen Gaussians [N] bool, whose region is the box around them with a margin.

    text: for the message. Raises UserError when none is chosen.
    """
    if not bool(rows.any()):
        raise UserError(f"--mask {text}: no Gaussian of the splat is in it")
    means = gaussians["means"].detach().cpu()[rows]
    low, high = means.amin(0), means.amax(0)
    sides = (high - low).clamp(min=1e-3 * float((high - low).max().clamp(min=1e-3)))
    return Mask(rows, (low + high) / 2, sides * (0.5 + MARGIN))


def _read_rows(path: Path, count: int) -> Tensor:
    """Read a .npy of indices below `count`, or of `count` booleans: [N] bool; raises UserError."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"--mask {path}: it cannot be read as a .npy ({reason})") from error
    rows = torch.zeros(count, dtype=torch.bool)
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "biu":
        raise UserError(f"--mask {path}: expected a list of indices, or a boolean for each Gaussian")
    if found.dtype.kind == "b" and len(found) != count:
        raise UserError(f"--mask {path}: {len(found)} booleans for {count} Gaussians")
    if found.dtype.kind != "b" and len(found) and not (found.min() >= 0 and found.max() < count):
        raise UserError(f"--mask {path}: expected indices from 0 to {count - 1}, the splat's Gaussians")
    rows[torch.from_numpy(found if found.dtype.kind == "b" else found.astype(np.int64))] = True
    return rows
