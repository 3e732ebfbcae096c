"""How far a splat is from what a teacher would draw: it tells a damaged splat from a sound one."""

from __future__ import annotations

import torch

from splatdistill.config.schema import Config
from splatdistill.guidance.core import Views
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.query import add_noise, gaussian_like, predicted_noise
from splatdistill.priors.base import alpha_bar_at
from splatdistill.scene.cameras import sample_orbit
from splatdistill.scene.rendering import render
from splatdistill.scene.rounding import coarseness
from splatdistill.training.origin import Origin

LEVEL = 0.2  # of noise, as a share of T: shapes stay, and what is blurred, torn or noisy is drawn otherwise
VIEWS = 12


@torch.no_grad()
def surprise(config: Config, guide: Guide, origin: Origin) -> float:
    """Return the error of the teacher's one-step estimates of the origin's noised latents, beside its detail.

    The mean squared error, over the summed mean squared differences of neighbors: a scene with more edges has
    more of both, while blur lessens the detail and not the error. In a splat whose centers lie on a coarse
    grid, up to half of it is put down to rounding: it moves edges by less than a teacher knows their place.

    Views are drawn as in training, on white; the prompt is the run's, without guidance. The same in every
    call.
    """
    prior, device = guide.prior, origin.placed["means"].device
    generator = torch.Generator().manual_seed(0)
    count = -(-VIEWS // prior.group) * prior.group
    group = prior.group if prior.group > 1 else 1
    ranges, size = config.views.ranges, config.views.size
    cameras = sample_orbit(ranges, count, size, generator, group, prior.places_deg)
    named = config.backgrounds.in_prompt and "white" in config.backgrounds.colors
    white = torch.ones(count, 3, device=device)
    rgb = render(origin.placed, cameras, white).rgb
    z = prior.encode(rgb.permute(0, 3, 1, 2)).contiguous()
    views = Views(rgb, cameras, white, ["white"] * count if named else None)
    cond = guide.conditioning(guide.prompts, views).with_guidance(1.0)
    t = torch.full((count,), int(LEVEL * len(prior.alphas_cumprod)))
    eps = gaussian_like(z, generator)
    missed = predicted_noise(prior, add_noise(prior, z, t, eps), t, cond) - eps
    alpha_bar = float(alpha_bar_at(prior, t[:1]))
    detail = sum(float(z.diff(dim=axis).square().mean()) for axis in (2, 3))
    error = float(missed.square().mean()) * (1.0 - alpha_bar) / alpha_bar
    return error / max(detail, 1e-12) / (1.0 + coarseness(origin.raw))
