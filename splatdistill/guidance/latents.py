"""Distillation without a third dimension: latents are what is optimised, one picture each."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from splatdistill.guidance.core import Distillation, Method, distill, sampling_timesteps
from splatdistill.guidance.methods import x0_weight
from splatdistill.guidance.noise import FixedNoise, Query, Source, TrajectorySettings
from splatdistill.priors.base import Conditioning, Prior, cfg
from splatdistill.scene.cameras import Cameras

Watcher = Callable[
    [int, Tensor, Distillation], None
]  # the step, the latents before it, what was said of them


def branches(prior: Prior, text: str, guidance: float, count: int, null: str = "") -> Conditioning:
    """A text against another, or nothing, for `count` pictures."""
    against, said = prior.embed([null]), prior.embed([text])
    return cfg(against.expand(count, -1, -1), said.expand(count, -1, -1), guidance)


def unwatched(step: int, z: Tensor, said: Distillation) -> None:
    """Nobody looks."""


def distil_latents(
    prior: Prior,
    cond: Conditioning,
    method: Method,
    z: Tensor,
    steps: int,
    rate: float,
    generator: torch.Generator,
    source: Source | None = None,
    cameras: Cameras | None = None,
    watch: Watcher = unwatched,
) -> Tensor:
    """Optimise latents z [B,C,h,w] by a method for so many steps of Adam at `rate`; the result [B,C,h,w].

    The method's own timesteps are run through once; cond holds the scale of guidance. An editing method needs
    a source, and may start from its latents.
    """
    z = z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=rate, betas=(0.9, 0.99))
    levels = len(prior.alphas_cumprod)
    for step in range(steps):
        t = method.timesteps.sample(step / max(steps - 1, 1), len(z), levels, generator, prior.group)
        said = distill(prior, z, t, cond, method, generator, source, cameras)
        watch(step, z.detach(), said)
        optimizer.zero_grad()
        (said.loss * len(z)).backward()  # each picture is its own
        optimizer.step()
    return z.detach()


@torch.no_grad()
def cached_sdi(
    prior: Prior, cond: Conditioning, z_T: Tensor, steps: int, sdi: Method, watch: Watcher = unwatched
) -> Tensor:
    """SDI whose noise is the last step's prediction and whose target is assigned: the DDIM sample of z_T.

    z_T and the result [B,C,h,w]; `sdi`: the method, whose noise source is not asked. Source: 2405.15891,
    section 4.
    """
    z, eps = from_noise(prior, z_T, int(sampling_timesteps(len(prior.alphas_cumprod), steps)[0]))
    for step, t in enumerate(sampling_timesteps(len(prior.alphas_cumprod), steps)):
        now = t.expand(len(z))
        said = distill(prior, z, now, cond, replace(sdi, noise=FixedNoise(eps), weight=x0_weight))
        watch(step, z, said)
        weight = x0_weight(prior, now).view(-1, 1, 1, 1).to(z)
        z, eps = said.target, eps + said.gradient / weight
    return z


@torch.no_grad()
def dsd_star(prior: Prior, cond: Conditioning, steps: int, seed: int, count: int, dsd: Method) -> Tensor:
    """DSD with as many steps as its DDIM path has and its target assigned: the end of that path [B,C,h,w].

    Source: DSD* of 2412.06780. Each step takes its noise from the path at the level before.
    """
    levels = len(prior.alphas_cumprod)
    grid = torch.linspace(levels - 1, 0, steps + 1).long()
    path = TrajectorySettings(steps=steps, spread=0.0, seed=seed)
    z, eps = from_noise(prior, path.start(prior).expand(count, -1, -1, -1), int(grid[0]))
    for k, t in enumerate(grid):
        now = t.expand(count)
        if k:
            eps = path.on_path(Query(prior, z, now, cond), grid[k - 1].expand(count))
        z = distill(prior, z, now, cond, replace(dsd, noise=FixedNoise(eps))).x0_hat
    return z


def from_noise(prior: Prior, z_T: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Clean latents and noise that mix to z_T [B,C,h,w] at t, the noise being z_T itself."""
    ab = prior.alphas_cumprod[t].item()
    return z_T * ((1.0 - (1.0 - ab) ** 0.5) / ab**0.5), z_T.contiguous()
