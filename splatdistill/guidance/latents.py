"""Distillation of latents, one image each, without a scene."""

from collections.abc import Callable

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.core import (
    Distillation,
    FixedNoise,
    Method,
    distill,
    sampling_timesteps,
    x0_weight,
)
from splatdistill.guidance.dsd import DSD, PathStart
from splatdistill.guidance.query import Query, Source, State
from splatdistill.priors.base import Conditioning, Prior, cfg
from splatdistill.scene.cameras import Cameras

Watcher = Callable[[int, Tensor, Distillation], None]  # the step, the latents before it, their distillation


def branches(prior: Prior, text: str, guidance: float, count: int, null: str = "") -> Conditioning:
    """Return the branches of a text against a null text, for `count` pictures."""
    unconditional, conditional = prior.embed([null]), prior.embed([text])
    return cfg(unconditional.expand(count, -1, -1), conditional.expand(count, -1, -1), guidance)


def unwatched(step: int, z: Tensor, found: Distillation) -> None:
    """Do nothing; the default callback."""


def distill_latents(
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
    state: State | None = None,
) -> Tensor:
    """Optimize latents z [B,C,h,w] by a method with `steps` steps of Adam at `rate`; return them.

    The method's own timesteps are run through once; cond holds the scale of guidance. An editing method needs
    a source, and may start from its latents. state: the method's; None for a fresh one from seed 0.
    """
    z = z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=rate, betas=(0.9, 0.99))
    levels, state = len(prior.alphas_cumprod), method.start(prior, 0) if state is None else state
    for step in range(steps):
        t = method.timesteps.sample(step / max(steps - 1, 1), len(z), levels, generator, prior.group)
        progress = step / max(steps - 1, 1)
        found = distill(prior, z, t, cond, method, generator, source, cameras, state, progress=progress)
        watch(step, z.detach(), found)
        optimizer.zero_grad()
        (found.loss * len(z)).backward()  # images are independent
        optimizer.step()
    return z.detach()


@torch.no_grad()
def cached_sdi(
    prior: Prior, cond: Conditioning, z_T: Tensor, steps: int, watch: Watcher = unwatched
) -> Tensor:
    """Run SDI with the last step's prediction as noise and the target assigned: the DDIM sample of z_T.

    z_T and the result [B,C,h,w]. Source: 2405.15891, section 4.
    """
    z, eps = from_noise(prior, z_T, int(sampling_timesteps(len(prior.alphas_cumprod), steps)[0]))
    for step, t in enumerate(sampling_timesteps(len(prior.alphas_cumprod), steps)):
        now = t.expand(len(z))
        found = distill(prior, z, now, cond, FixedNoise(eps=eps))
        watch(step, z, found)
        weight = ops.send(x0_weight(prior, now), z).view(-1, 1, 1, 1)
        z, eps = found.target, eps + found.gradient / weight
    return z


@torch.no_grad()
def dsd_star(prior: Prior, cond: Conditioning, steps: int, seed: int, count: int) -> Tensor:
    """Run DSD for as many steps as its DDIM path has, replacing z by the target: the path's end [B,C,h,w].

    Source: DSD* of 2412.06780. Each step takes its noise from the path at the level before.
    """
    levels = len(prior.alphas_cumprod)
    grid = torch.linspace(levels - 1, 0, steps + 1).long()
    path, start = DSD(steps=steps, spread=0.0), PathStart.of_seed(prior, seed)
    z, eps = from_noise(prior, start.noise.expand(count, -1, -1, -1), int(grid[0]))
    for k, t in enumerate(grid):
        now = t.expand(count)
        if k:
            eps = path.on_path(Query(prior, z, grid[k - 1].expand(count), cond), start)
        z = distill(prior, z, now, cond, FixedNoise(eps=eps)).x0_hat
    return z


def from_noise(prior: Prior, z_T: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Return clean latents and noise that mix to z_T [B,C,h,w] at t, where the noise is z_T itself."""
    ab = prior.alphas_cumprod[t].item()
    return z_T * ((1.0 - (1.0 - ab) ** 0.5) / ab**0.5), z_T.contiguous()
