"""The scene: 3D Gaussians as a ParameterDict with gsplat's names, and functions to create one.

means [N, 3]; scales [N, 3] log; quats [N, 4] wxyz, any length; opacities [N] logit; sh0 [N, 1, 3] and
shN [N, K - 1, 3] spherical-harmonic coefficients of the color, K = (degree + 1)^2.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from splatdistill.reference.raster import SH0

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")
Values = TypeVar("Values", Tensor, np.ndarray)
CONTIGUOUS = torch.contiguous_format  # also of tensors without elements, whose strides a checkpoint holds

Gaussians = ParameterDict
"""A scene of N Gaussians, as gsplat's trainers keep them: means [N,3], log scales [N,3], quats wxyz [N,4] of
any length, logit opacities [N], and spherical harmonics sh0 [N,1,3] and shN [N,K-1,3]."""


class Activated(NamedTuple):
    """Gaussians as a renderer takes them: activated scales and opacities, all SH coefficients together."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] wxyz, not normalized
    scales: Tensor  # [N, 3] standard deviations, world units
    opacities: Tensor  # [N] in (0, 1)
    sh: Tensor  # [N, K, 3]


def activated(gaussians: ParameterDict) -> Activated:
    """Return the activated values of the parameters, differentiably."""
    return Activated(
        gaussians["means"],
        gaussians["quats"],
        gaussians["scales"].exp(),
        gaussians["opacities"].sigmoid(),
        torch.cat([gaussians["sh0"], gaussians["shN"]], 1),
    )


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """Return covariances [N, 3, 3] from quaternions [N, 4] of any length and standard deviations [N, 3].

    Standard deviations are clamped to 1e17, so that their squares are finite in float32.
    """
    scales = scales.clamp(max=1e17)
    axes = normalized_quat_to_rotmat(torch.nn.functional.normalize(quats, dim=-1)) * scales[:, None]
    return axes @ axes.transpose(1, 2)


def rgb_to_sh0(rgb: Values) -> Values:
    """Return the degree-0 SH coefficient of a color in [0, 1], any shape."""
    return (rgb - 0.5) / SH0


def sh0_to_rgb(sh0: Values) -> Values:
    """Return the color of a degree-0 SH coefficient, any shape; the inverse of `rgb_to_sh0`."""
    return sh0 * SH0 + 0.5


def from_tensors(**tensors: Tensor) -> ParameterDict:
    """Make a trainable float32 scene from one tensor for each of NAMES (copied), in gsplat's order."""
    copies = {name: tensors[name].detach().float().clone(memory_format=CONTIGUOUS) for name in NAMES}
    return ParameterDict([(name, Parameter(copy)) for name, copy in copies.items()])  # a dict would be sorted


def from_arrays(**arrays: np.ndarray) -> ParameterDict:
    """Make a trainable scene from one float32 array for each of NAMES, whose memory it shares."""
    return ParameterDict([(name, Parameter(torch.from_numpy(arrays[name]))) for name in NAMES])


def init_blob(
    count: int,
    radius: float = 0.6,
    scale: float | None = None,
    opacity: float = 0.1,
    sh_degree: int = 0,
    color_noise: float = 0.1,
    generator: torch.Generator | None = None,
) -> ParameterDict:
    """Create `count` round gray Gaussians, uniform in a ball around the origin.

    Args:
        count: number of Gaussians.
        radius: of the ball, in world units.
        scale: standard deviation; the default is half the mean spacing in the ball.
        opacity: in (0, 1).
        sh_degree: degree of the spherical harmonics.
        color_noise: standard deviation of normal noise around the gray value 0.5.
        generator: source of the random numbers.
    """
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    distance = radius * torch.rand(count, 1, generator=generator) ** (1 / 3)  # uniform in volume
    spacing = radius * math.cbrt(4 / 3 * math.pi / max(count, 1))
    sigma = 0.5 * spacing if scale is None else scale
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    rgb = 0.5 + color_noise * torch.randn(count, 1, 3, generator=generator)
    return from_tensors(
        means=direction * distance,
        scales=torch.full((count, 3), math.log(sigma)),
        quats=quats,
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh0=rgb_to_sh0(rgb),
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def sh_degree_of(gaussians: ParameterDict) -> int:
    """Return the SH degree of a scene, from its number of coefficients."""
    return math.isqrt(gaussians["shN"].shape[1] + 1) - 1


def moved(gaussians: ParameterDict, shift: tuple[float, float, float], scale: float) -> ParameterDict:
    """Return a scene shifted and then scaled about the origin."""
    means = (gaussians["means"].detach() + gaussians["means"].new_tensor(shift)) * scale
    scales = gaussians["scales"].detach() + math.log(scale)
    return from_tensors(**{**gaussians, "means": means, "scales": scales})


def extent(gaussians: ParameterDict, outliers: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper corner [3] of a scene's visible centers, without a share of outliers."""
    solid = gaussians["opacities"].detach().sigmoid() >= min(0.1, gaussians["opacities"].max().sigmoid())
    means = gaussians["means"].detach().cpu()[solid.cpu()][:1_000_000]
    ends = (outliers, 1.0 - outliers)
    low, high = (torch.stack([axis.quantile(q) for axis in means.T]) for q in ends)
    return low, high


def placement(
    gaussians: ParameterDict, radius: float = 0.78, besides: Tensor | None = None
) -> tuple[tuple[float, float, float], float]:
    """Return the shift and scale for `moved` that center a scene within `radius`, except for outliers.

    besides: points [P, 3] that are to be within it as well.
    A scene already within 1 of the origin, with its center within 0.3, is left in place.
    """
    solid = gaussians["opacities"].detach().sigmoid() >= min(0.1, gaussians["opacities"].max().sigmoid())
    means = gaussians["means"].detach()[solid].double()
    low, high = (torch.stack([axis.quantile(q) for axis in means.T[:, :1_000_000]]) for q in (0.01, 0.99))
    if besides is not None:
        low, high = torch.minimum(low, besides.amin(0)), torch.maximum(high, besides.amax(0))
    middle = (low + high) / 2
    reach = float((means[:1_000_000] - middle).norm(dim=1).quantile(0.99).clamp(min=1e-6))
    if besides is not None:
        reach = max(reach, float((besides - middle).norm(dim=1).max()))
    if reach + float(middle.norm()) <= 1.0 and float(middle.norm()) <= 0.3:
        return (0.0, 0.0, 0.0), 1.0
    x, y, z = (-middle).tolist()
    return (x, y, z), radius / reach


def select(gaussians: ParameterDict, mask: Tensor | slice) -> ParameterDict:
    """Return a copy of the chosen Gaussians; mask [N] bool, indices, or a slice."""
    return from_tensors(**{name: gaussians[name][mask] for name in NAMES})


def joined(first: ParameterDict, second: ParameterDict) -> ParameterDict:
    """Return the Gaussians of two scenes of the same SH degree, those of the first before the others."""
    return from_tensors(**{name: torch.cat([first[name], second[name]]) for name in NAMES})


def painted(gaussians: ParameterDict, rows: Tensor, rgb: tuple[float, float, float]) -> ParameterDict:
    """Return a copy whose Gaussians in `rows` [N] bool have one color in [0, 1] from every side."""
    copy = select(gaussians, slice(None))
    with torch.no_grad():
        copy["sh0"][rows] = rgb_to_sh0(copy["sh0"].new_tensor(rgb))
        copy["shN"][rows] = 0.0
    return copy


def finite_mask(gaussians: ParameterDict) -> Tensor:
    """Return which Gaussians have only finite parameters: [N] bool."""
    rows = [gaussians[name].detach().isfinite().flatten(1).all(1) for name in NAMES if name != "opacities"]
    return torch.stack([gaussians["opacities"].detach().isfinite(), *rows]).all(0)


@torch.no_grad()
def clamp_to_sphere_(gaussians: ParameterDict, radius: float) -> None:
    """Move, in place, every center outside a sphere around the origin back to its surface."""
    means = gaussians["means"]
    means.mul_((radius / means.norm(dim=-1, keepdim=True)).clamp(max=1.0))
