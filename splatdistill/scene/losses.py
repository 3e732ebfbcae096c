"""Regularizers that text-to-3D adds to score distillation: pure functions to scalars, to be minimized.

There is no photometric loss to constrain a scene, so these keep it opaque or empty, compact and round.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import Activated, activated
from splatdistill.scene.rendering import Render


@dataclass(frozen=True)
class LossWeights:
    """The weight of each regularizer of this module, by its name; 0 turns it off."""

    alpha_entropy: float = 0.0
    sparsity: float = 0.0
    opacity_binarisation: float = 0.0
    scale_penalty: float = 0.0
    anisotropy: float = 0.0
    depth_smoothness: float = 0.0


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
