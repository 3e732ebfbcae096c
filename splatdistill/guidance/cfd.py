"""Consistent Flow Distillation: noise that lies on the object, and is seen from every side as the same."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.guidance.core import Method, sds_weight
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps, annealed
from splatdistill.priors.base import Prior
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.gaussians import activated
from splatdistill.scene.rendering import rasterize

LEAST = 1e-3  # the part of a pixel that shows the background, at least: where a surface carries no noise


class NoiseField(State):
    """The noise of a run: [N,C] on the Gaussians, drawn as they appear, and [C,h,w] for pictures without any.

    When Gaussians are pruned the rows behind them move up, which renews that part of the field.
    """

    def __init__(self, prior: Prior, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.flat = torch.randn(prior.latent_shape, generator=self.generator).to(prior.device)
        self.noise = torch.zeros(0, prior.latent_shape[0], device=prior.device)

    def carried(self, count: int, renewed: float) -> Tensor:
        """Return the noise [N,C] of `count` Gaussians, with a share `renewed` of its variance drawn anew."""
        if renewed > 0.0:
            self.noise = (1.0 - renewed) ** 0.5 * self.noise + renewed**0.5 * self._draw(len(self.noise))
        self.noise = torch.cat([self.noise[:count], self._draw(max(count - len(self.noise), 0))])
        return self.noise

    def _draw(self, count: int) -> Tensor:
        drawn = torch.randn(count, self.noise.shape[1], generator=self.generator)
        return drawn.to(self.noise.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise and its generator."""
        return {"flat": self.flat, "noise": self.noise, "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a state_dict; ValueError for noise of another teacher or that is not finite."""
        flat, noise = saved["flat"].to(self.flat.device), saved["noise"].to(self.flat.device)
        if flat.shape != self.flat.shape or noise.shape[1:] != self.noise.shape[1:]:
            raise ValueError("the noise field has another shape")
        if not (flat.isfinite().all() and noise.isfinite().all()):
            raise ValueError("the noise field is not finite")
        self.generator.set_state(saved["generator"])
        self.flat, self.noise = flat, noise


@dataclass(frozen=True)
class CFD(Method):
    """Consistent Flow Distillation, 2501.05445: SDS's gradient, with one noise field on the object.

    Here the Gaussians carry the noise; see `carried_noise`. Other seeds are other fields, and other objects.
    Where no Gaussians are given, as for flat pictures, eps is one noise for the whole run. Guidance is that
    of the authors' settings for Stable Diffusion 2.1.

    Args:
        renewed: the share of the field's variance that is drawn anew in each step.
    """

    name: ClassVar[str] = "cfd"

    guidance: float = 75.0
    timesteps: Timesteps = annealed(0.98, 0.20)
    renewed: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.renewed <= 1.0:
            raise ValueError(f"cfd: expected renewed from 0 to 1, got {self.renewed}")

    def start(self, prior: Prior, seed: int) -> NoiseField:
        """Return the field of a seed."""
        return NoiseField(prior, seed)

    def compare(self, query: Query, state: NoiseField) -> Comparison:
        """Return (the field as the views see it, z_t)."""
        if query.scene is None or query.cameras is None:
            eps = state.flat.to(query.z).expand_as(query.z).contiguous()
        else:
            noise = state.carried(len(query.scene["means"]), self.renewed)
            eps = carried_noise(query.scene, query.cameras, noise, query.gaussian())
        return Comparison(eps, query.noised(eps))

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)


def carried_noise(scene: ParameterDict, cameras: Cameras, noise: Tensor, background: Tensor) -> Tensor:
    """Return the noise that views see of Gaussians which carry it: [V,C,h,w], white and of variance 1.

    A Gaussian counts in the one pixel where its center is, so that no two pixels share noise, with the
    weight c_i that it has in the whole picture (its blending weights summed); the background has what the
    surface leaves free, b. In each pixel eps = (sum_i c_i n_i + b n) / sqrt(sum_i c_i^2 + b^2): CFD's sum
    over the texels in a pixel, with points for texels. Two views agree in a pixel as far as it shows the same
    Gaussians in both.

    Args:
        scene: N Gaussians.
        cameras: [V].
        noise: [N,C].
        background: [V,C,h,w], independent noise where nothing is.
    """
    height, width = background.shape[-2:]
    views = cameras.resized(width, height).to(noise.device)
    seen = []
    for view, empty in zip(views, background, strict=True):
        weights, alpha, centers = visible(scene, view)
        column, row = centers.floor().long().unbind(1)
        inside = (weights > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel, c = (row * width + column)[inside], weights[inside]
        parts = [pixel.bincount(c * n, height * width) for n in noise[inside].T]
        total = torch.stack(parts).view(-1, height, width)
        squares = pixel.bincount(c.square(), height * width).view(height, width)
        free = (1.0 - alpha).clamp(min=LEAST)
        seen.append(((total + free * empty) / (squares + free.square()).sqrt()).to(background))
    return torch.stack(seen)


def visible(scene: ParameterDict, view: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Return of one view: blending weights summed over pixels [N], alpha [H,W], centers in pixels [N,2].

    The derivative of a picture's sum by the color of a Gaussian is the sum of its blending weights.
    """
    means, quats, scales, opacities, _ = (part.detach() for part in activated(scene))
    with torch.enable_grad():
        colors = torch.ones_like(means, requires_grad=True)
        picture, alpha, info = rasterize(
            means, quats, scales, opacities, colors, view.viewmats, view.Ks, view.width, view.height
        )
        (weights,) = torch.autograd.grad(picture[..., 0].sum(), colors)
    return weights[:, 0], alpha[0, ..., 0].detach(), info["means2d"][0].detach()
