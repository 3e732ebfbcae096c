"""The one skeleton of score distillation, and the one loss scale.

eps, z_t = noise source(z, t)
gradient = w(t) (e_g(z_t) - eps)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.noise import NoiseSource, Query, Source, gaussian_like
from splatdistill.guidance.schedules import TimestepSchedule
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at
from splatdistill.scene.cameras import Cameras


@dataclass(frozen=True)
class Method:
    """A distillation method: where the noise comes from, how the residual is weighted, its paper's settings.

    weight maps (prior, t [B]) to w [B]; guidance is the scale g of e_g; timesteps is the schedule of t. An
    editing method compares with a source; one by CLIP asks no teacher; `negative` is a text that the noise
    source asks for beside.
    """

    name: str
    noise: NoiseSource
    weight: Callable[[Prior, Tensor], Tensor]
    guidance: float
    timesteps: TimestepSchedule
    edits: bool = False
    by_clip: bool = False
    negative: str | None = None


@dataclass(frozen=True, eq=False)
class Distillation:
    """What one evaluation of the skeleton gives; everything but `loss` is without gradient.

    loss: scalar whose gradient at z is gradient / B. gradient, noise, z_t, x0_hat: [B,C,h,w], x0_hat being
    the guided estimate of the clean latents. target = z - gradient (x0_hat, for SDI). norms [B]: |gradient|.
    """

    loss: Tensor
    gradient: Tensor
    target: Tensor
    x0_hat: Tensor
    noise: Tensor
    z_t: Tensor
    norms: Tensor


def distill(
    prior: Prior,
    z: Tensor,
    t: Tensor,
    cond: Conditioning,
    method: Method,
    generator: torch.Generator | None = None,
    source: Source | None = None,
    cameras: Cameras | None = None,
) -> Distillation:
    """Score distillation of latents z [B,C,h,w] at timesteps t [B].

    loss = sum |z - stopgrad(z - gradient)|^2 / (2 B), so that backward injects the gradient summed over a
    sample and averaged over the batch. `cond` holds the guidance scale of e_g. An editing method needs the
    source; VSD's student wants to know the cameras [B]. Raises ValueError for an edit without a source, and
    for a method by CLIP.
    """
    if method.edits and source is None:
        raise ValueError(f"distill: method '{method.name}' needs the source that it edits")
    if method.by_clip:
        raise ValueError("distill: CLIP's loss is of pictures, see guidance/clip.py")
    t = t.cpu()
    with torch.no_grad():
        clean = z.detach().contiguous()
        eps, z_t = method.noise(Query(prior, clean, t, cond, generator, source, cameras))
        outputs = prior.predict(z_t, t, cond)
        conversion = ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type)
        coefficients = torch.cat([conversion, method.weight(prior, t).float().unsqueeze(1)], dim=1)
        gradient, x0_hat, norms = ops.noise_residual(
            z_t, outputs, cond.weights.to(z.device), coefficients.to(z.device), eps, cond.perp_neg
        )
        target = clean - gradient
    loss = 0.5 * (z - target).square().sum() / len(z)
    return Distillation(loss, gradient, target, x0_hat, eps, z_t, norms)


def sampling_timesteps(num_timesteps: int, steps: int) -> Tensor:
    """`steps` evenly spaced timesteps [steps], from T - 1 down ("trailing": 2305.08891, section 3.3)."""
    return (num_timesteps * torch.arange(steps, 0, -1, dtype=torch.float64) / steps).round().long() - 1


@torch.no_grad()
def sample(
    prior: Prior,
    cond: Conditioning,
    z_T: Tensor,
    steps: int = 50,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """DDIM sampling (2010.02502, eq. 12): clean latents from noise z_T, both [B,C,h,w].

    The grid is `sampling_timesteps`; the last move ends at alpha_bar = 1.
    """
    x = z_T.contiguous()
    timesteps = sampling_timesteps(len(prior.alphas_cumprod), steps)
    following = [*timesteps[1:], torch.tensor(-1)]
    for t, t_next in zip(timesteps, following, strict=True):
        now = t.expand(len(x))
        ab_now, ab_next = alpha_bar_at(prior, now), alpha_bar_at(prior, t_next.expand(len(x)))
        coefficients = ops.ddim_coefficients(ab_now, ab_next, prior.prediction_type, eta).to(x.device)
        noise = gaussian_like(x, generator) if eta > 0.0 else None
        outputs, weights = prior.predict(x, now, cond), cond.weights.to(x.device)
        x = ops.ddim_step(x, outputs, weights, coefficients, noise, cond.perp_neg)
    return x
