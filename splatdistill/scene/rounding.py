"""Splats whose values were rounded to a coarse grid, as strong compression leaves them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import from_tensors

SHARED = 4  # values on a level of a grid, on average, below which there is none to be seen
LEAST = 0.25  # share of a variance that is left


def step_of(values: Tensor) -> float:
    """Return the step of the grid on which all values [N] lie, up to float32; 0 for none."""
    levels = values.detach().double().unique()
    gaps = levels.diff()
    if len(levels) < 3 or SHARED * len(levels) > len(values):
        return 0.0
    apart = gaps > 1e-6 * levels.abs().amax()
    if not bool(apart.any()):
        return 0.0
    step = gaps[apart].amin()
    off = (levels - levels[0]) / step
    return float(step) if bool(((off - off.round()).abs() < 0.01).all()) else 0.0


@torch.no_grad()
def rounding_blur(gaussians: ParameterDict) -> Tensor:
    """Return the variance [N, 3], along its axes, that rounded centers add to what a Gaussian covers.

    Rounding to a grid of step s moves a center by up to s / 2: on average it adds s^2 / 12 along the axis of
    the grid; 0 for centers on no grid.
    """
    steps = [step_of(gaussians["means"][:, axis]) for axis in range(3)]
    axes = normalized_quat_to_rotmat(F.normalize(gaussians["quats"], dim=-1))  # [N, 3, axis]
    blur = gaussians["means"].new_tensor(steps).square() / 12.0
    return (axes.square() * blur[:, None]).sum(1)


@torch.no_grad()
def unrounded(gaussians: ParameterDict) -> ParameterDict:
    """Return a scene without the blur of rounding, if its centers and its log scales lie on grids.

    What rounding added to the variances is subtracted; a scene of other values is returned as it is.
    """
    blur = rounding_blur(gaussians)
    if not (bool(blur.any()) and step_of(gaussians["scales"].flatten())):
        return gaussians
    variance = (2.0 * gaussians["scales"]).exp()
    narrow = 0.5 * torch.maximum(variance - blur, LEAST * variance).log()
    return from_tensors(**{**gaussians, "scales": narrow})


@torch.no_grad()
def coarseness(gaussians: ParameterDict) -> float:
    """Return how coarse the grid of the centers is beside the Gaussians, from 0 to 1.

    It is 1 where rounding adds a tenth or more to the variance of most Gaussians.
    """
    share = rounding_blur(gaussians) / (2.0 * gaussians["scales"]).exp()
    return min(10.0 * float(share.mean(1).median()), 1.0)
