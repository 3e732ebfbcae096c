"""Regularizers that text-to-3D adds to score distillation: pure functions to scalars, to be minimized.

There is no photometric loss to constrain a scene, so these keep it opaque or empty, compact and round.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import Activated, activated
from splatdistill.scene.rendering import Render

GAPS = 32  # of the width of what may be filled in a silhouette, half of it, in a side of a picture
CELLS = 16  # in a side of a picture, whose mean colors a coarse hold compares
SOFT = (0.25, 0.4)  # transparency of a silhouette that is held to its outline, and of one that is not


@dataclass(frozen=True)
class LossWeights:
    """The weight of each regularizer of this module, by its name; 0 turns it off."""

    alpha_entropy: float = 0.0
    sparsity: float = 0.0
    opacity_binarisation: float = 0.0
    scale_penalty: float = 0.0
    anisotropy: float = 0.0
    depth_smoothness: float = 0.0


@dataclass(frozen=True)
class HoldWeights:
    """How strongly a run holds on to the splat that it starts from; 0: not at all.

    Args:
        rgb: weight of the mean squared error of the colors of its views.
        coarse: the same of the mean colors of cells of the views; see `recolored`. A teacher that would draw
            a thing in other colors then mends only what is finer.
        alpha: the same of alpha beyond the silhouette, which may shrink, but not grow; see `overgrowth`.
        means: weight of the mean squared distance of the centers from where they, or their ancestors, were.
        colors: the same of the colors of degree 0.
        clean: the teacher's surprise (`training.surprise`) at pictures without damage, by which a run grips:
            grip = exp(-fall (surprise / clean - 1)) multiplies the weights, all but `alpha` and `coarse`,
            and 1 - grip the learning rates: a splat that does not surprise the teacher stays as it is.
            0: no grip, and all weights as given.
        fall: how fast the grip falls.
        final: what all weights fall to over the run, as a share of their start: as the level of noise falls
            the teacher pulls less and less, and would lose against an even hold.
    """

    rgb: float = 0.0
    coarse: float = 0.0
    alpha: float = 0.0
    means: float = 0.0
    colors: float = 0.0
    clean: float = 0.0
    fall: float = 8.0
    final: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0.0:
                raise ValueError(f"hold.{field.name} must be at least 0, got {getattr(self, field.name)}")

    def grip(self, surprise: float) -> float:
        """Return the grip, from 0 to 1, on a splat at which the teacher is so surprised."""
        if self.clean <= 0.0:
            return 0.0
        return math.exp(-self.fall * max(surprise / self.clean - 1.0, 0.0))

    @property
    def sees(self) -> bool:
        """Whether views are compared."""
        return self.rgb > 0.0 or self.coarse > 0.0 or self.alpha > 0.0


def alpha_entropy(alpha: Tensor) -> Tensor:
    """Return the mean binary entropy of rendered alpha in nats: 0 where every pixel is object or background.

    alpha [V, H, W, 1]. Source: the opaqueness loss of threestudio.
    """
    alpha = alpha.clamp(1e-3, 1 - 1e-3)  # bounds the gradient
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()


def sparsity(alpha: Tensor) -> Tensor:
    """Return the mean of rendered alpha [V, H, W, 1]: the share of the image that is covered."""
    return alpha.mean()


def opacity_binarisation(opacities: Tensor) -> Tensor:
    """Return the mean of 4 o (1 - o) over opacities [N]: 0 when each is 0 or 1, 1 when all are 0.5."""
    return (4 * opacities * (1 - opacities)).mean()


def scale_penalty(scales: Tensor) -> Tensor:
    """Return the mean standard deviation in world units; keeps Gaussians small (3DGS-MCMC, 2404.09591).

    scales [N, 3].
    """
    return scales.mean()


def anisotropy(scales: Tensor, ratio: float = 10.0) -> Tensor:
    """Return the mean excess of the axis ratio over `ratio`; penalizes needles (PhysGaussian, 2311.12198).

    scales [N, 3].
    """
    return (scales.amax(-1) / scales.amin(-1) - ratio).clamp(min=0).mean()


def depth_smoothness(depth: Tensor, alpha: Tensor) -> Tensor:
    """Return the mean absolute depth difference of neighboring covered pixels, in world units.

    depth, alpha [V, H, W, 1]; pairs are weighted by the product of their (detached) alphas, so that the loss
    cannot be lowered by becoming transparent.
    """
    weight = alpha.detach()
    total = depth.new_zeros(())
    for axis in (1, 2):
        pairs = weight.narrow(axis, 1, weight.shape[axis] - 1) * weight.narrow(
            axis, 0, weight.shape[axis] - 1
        )
        total = total + (depth.diff(dim=axis).abs() * pairs).sum() / pairs.sum().clamp(min=1.0)
    return total


def reference_errors(render: Render, rgb: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean squared errors of color and alpha against a reference picture (Zero-1-to-3, 2303.11328).

    rgb [V, H, W, 3] before the background that was rendered, alpha [V, H, W, 1].
    """
    return (render.rgb - rgb).square().mean(), (render.alpha - alpha).square().mean()


def overgrowth(alpha: Tensor, before: Tensor) -> Tensor:
    """Return the mean square of what alpha has beyond the silhouette before, whose holes may be filled.

    The silhouette is closed: widened by 1 / GAPS of a picture's side, and narrowed again. So a gap of at most
    twice that is filled, and the outline, a soft one too, stays where it is. One that is mostly half
    transparent, as of a splat that lacks most of its Gaussians, is no outline to hold to: it may grow by a
    pixel.

    alpha, before [V, H, W, 1].
    """
    was = before.permute(0, 3, 1, 2)
    gap = max(1, was.shape[-1] // GAPS)
    closed = -F.max_pool2d(-F.max_pool2d(was, 2 * gap + 1, 1, gap), 2 * gap + 1, 1, gap)
    soft = (was * (1.0 - was)).sum() / was.sum().clamp(min=1e-6)
    torn = ((soft - SOFT[0]) / (SOFT[1] - SOFT[0])).clamp(0.0, 1.0)
    limit = torch.lerp(closed, F.max_pool2d(was, 3, 1, 1), torn).permute(0, 2, 3, 1)
    return (alpha - limit).clamp(min=0.0).square().mean()


def recolored(view: Render, before: Render, background: Tensor) -> Tensor:
    """Return the mean squared difference of the colors of cells, each weighted by how much of it is covered.

    A cell is a CELLS-th of a picture's side. Its color is that of the things in it alone, so neither a hole
    nor a sharper outline counts.

    background [V, 3]: what both were drawn before.
    """

    def cells(shown: Render) -> tuple[Tensor, Tensor]:
        own = shown.rgb - (1.0 - shown.alpha) * background[:, None, None]
        side = max(1, own.shape[1] // CELLS)
        pooled = F.avg_pool2d(torch.cat([own, shown.alpha], 3).permute(0, 3, 1, 2), side)
        cover = pooled[:, 3:]
        return pooled[:, :3] / cover.clamp(min=0.02), cover

    (color, cover), (color_before, cover_before) = cells(view), cells(before)
    weight = torch.minimum(cover, cover_before).detach()
    return (weight * (color - color_before).square()).mean()


def holding(
    view: Render,
    before: Render | None,
    background: Tensor,
    gaussians: ParameterDict,
    origin: ParameterDict,
    rows: Tensor,
    weights: HoldWeights,
    grip: float = 0.0,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of what holds a scene to its origin, and each term, detached and unweighted.

    Args:
        view: of the scene.
        before: the same views of the origin; None where no view is compared.
        background: [V, 3], behind both.
        gaussians: the scene.
        origin: the scene that it started from.
        rows: the ancestor [N] of each Gaussian in the origin; one beyond its end has none, and is not held.
        weights: of the terms.
        grip: what multiplies most weights, if they say so.
        progress: the share of the run that is done.
    """
    terms: dict[str, tuple[float, Tensor]] = {}
    if before is not None:
        terms["hold_rgb"] = (weights.rgb, (view.rgb - before.rgb).square().mean())
        if weights.coarse > 0.0:
            terms["hold_coarse"] = (weights.coarse, recolored(view, before, background))
        terms["hold_alpha"] = (weights.alpha, overgrowth(view.alpha, before.alpha))
    old = rows < len(origin["means"])
    for name, weight in (("means", weights.means), ("sh0", weights.colors)):
        if weight > 0.0:
            moved = (gaussians[name] - origin[name].detach()[rows.where(old, 0)]).flatten(1)
            terms[f"hold_{name}"] = (weight, (moved.square().sum(1) * old).mean())
    total = view.alpha.new_zeros(())
    scale = 1.0 + (weights.final - 1.0) * progress
    for name, (weight, value) in terms.items():
        gripped = grip if weights.clean > 0.0 and name not in ("hold_alpha", "hold_coarse") else 1.0
        total = total + gripped * scale * weight * value
    return total, {name: value.detach() for name, (_, value) in terms.items()}


TERMS: dict[str, Callable[[Render, Activated], Tensor]] = {
    "alpha_entropy": lambda render, scene: alpha_entropy(render.alpha),
    "sparsity": lambda render, scene: sparsity(render.alpha),
    "opacity_binarisation": lambda render, scene: opacity_binarisation(scene.opacities),
    "scale_penalty": lambda render, scene: scale_penalty(scene.scales),
    "anisotropy": lambda render, scene: anisotropy(scene.scales),
    "depth_smoothness": lambda render, scene: depth_smoothness(render.depth, render.alpha),
}


def regularization(
    render: Render, gaussians: ParameterDict, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the regularizers, and the detached, unweighted value of each that is on."""
    scene = activated(gaussians)
    total, values = render.alpha.new_zeros(()), {}
    for field in fields(weights):
        weight = getattr(weights, field.name)
        if weight != 0:
            value = TERMS[field.name](render, scene)
            total = total + weight * value
            values[field.name] = value.detach()
    return total, values
