"""How far a splat is from what a teacher would draw: it tells a damaged splat from a sound one."""

from __future__ import annotations

from itertools import combinations

import torch

from splatdistill.config.schema import Config
from splatdistill.guidance.core import Views
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.query import add_noise, gaussian_like, predicted_noise
from splatdistill.priors.base import alpha_bar_at
from splatdistill.scene.cameras import sample_orbit
from splatdistill.scene.rendering import render
from splatdistill.scene.rounding import coarseness
from splatdistill.scene.thinned import CROWDED, sparseness
from splatdistill.training.origin import Origin

LEVEL = 0.1  # of noise, as a share of T: shapes stay, and what is blurred, torn or noisy is drawn otherwise
VIEWS = 12
DRAWS = 3  # of noise
BLURRED = 2.0  # what multiplies the surprise at a splat whose Gaussians overlap far more than usual


@torch.no_grad()
def surprise(config: Config, guide: Guide, origin: Origin) -> float:
    """Return how far the teacher's one-step estimates of the origin's latents are off, beside their detail.

    Each view is noised several times, and what counts is what the errors have in common, the mean
    product of two of them: what the teacher would change, and not what it cannot know for the noise, of
    which a scene of many edges has more. It is divided by the summed mean squared differences of
    neighbors, which blur lessens. In a splat whose centers lie on a coarse grid, up to half of it is
    put down to rounding: it moves edges by less than a teacher knows their place.

    Where the Gaussians overlap far more than usual, all is blurred, and it counts more: a teacher sees little
    amiss in a smooth thing.

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
    missed = []
    for _ in range(DRAWS):
        eps = gaussian_like(z, generator)
        missed.append(predicted_noise(prior, add_noise(prior, z, t, eps), t, cond) - eps)
    common = [float((a * b).mean()) for a, b in combinations(missed, 2)]
    alpha_bar = float(alpha_bar_at(prior, t[:1]))
    detail = sum(float(z.diff(dim=axis).square().mean()) for axis in (2, 3))
    error = max(sum(common) / len(common), 0.0) * (1.0 - alpha_bar) / alpha_bar
    blur = BLURRED if 0.0 < sparseness(origin.raw) < CROWDED else 1.0
    return blur * error / max(detail, 1e-12) / (1.0 + coarseness(origin.raw))
