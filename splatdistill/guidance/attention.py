"""Words found in a splat: a teacher's cross-attention to them, lifted from views to the Gaussians.

In every view the picture with a little noise is denoised under a prompt with the words in it. How much each
place looks at their tokens, against the mean of the prompt's other words, is a map; each Gaussian's share is
the mean of the maps over the pixels, weighted by what it contributes to them (as in 2311.14521).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.guidance.query import add_noise, gaussian_like
from splatdistill.priors.base import Prior, cfg
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.view_transformer import Layer
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.gaussians import activated
from splatdistill.scene.rendering import rasterize, render

LEVELS = (0.1, 0.15, 0.2)  # of noise, as shares of T: little, so that the picture decides
PLACES = 256  # of a layer that is read, at most: finer ones see texture
VIEWS, RING = 24, 4  # around the scene; in each ring, which some teachers see together
HEIGHTS = (30.0, 5.0)  # of the rings, elevation in degrees
SHARE = 0.5  # of the way from the median Gaussian to the one at the top percentile, above which one is chosen
FILL = ("a", "an", "the", "of", "on", "its")


def words_found(prior: Prior, gaussians: ParameterDict, words: str, prompt: str, seed: int = 0) -> Tensor:
    """Return which Gaussians show the words: [N] bool on the CPU.

    Args:
        prior: a teacher whose network attends to the words of a text.
        gaussians: the scene, in the unit sphere.
        words: such as "the hat"; a the, a or an is passed over.
        prompt: what the whole scene shows; the words are added where it lacks them.
        seed: of the noise.

    Raises:
        UserError: no such teacher, no word, or nothing found.
    """
    if not isinstance(prior, LatentPrior) or prior.needs_picture or prior.group not in (1, RING):
        raise UserError(
            f"--mask '{words}': prior '{prior.name}' has no cross-attention to words; give a box, a sphere "
            "or a .npy, or another --prior"
        )
    wanted = [word for word in re.findall(r"[\w-]+", words.lower()) if word not in FILL]
    if not wanted:
        raise UserError(f"--mask '{words}': expected a shape, a .npy, or words such as 'the hat'")
    given = re.findall(r"[\w-]+", prompt.lower())
    text = prompt if all(word in given for word in wanted) else f"{prompt} {' '.join(wanted)}".strip()
    places = prior.word_places(text, wanted)
    cameras = views_around(prior.image_size)
    maps = attention_maps(prior, gaussians, cameras, text, places, seed)
    shares = lifted(gaussians, cameras, maps)
    known = shares[shares.isfinite()]
    low, high = known.quantile(0.5), known.quantile(0.99)
    found = shares > low + SHARE * (high - low)
    if not bool(found.any()):
        raise UserError(f"--mask '{words}': nothing like it was found; give a box or a sphere")
    return found.cpu()


def views_around(size: int) -> Cameras:
    """Return VIEWS cameras around the scene, in rings of RING, each evenly around at one height."""
    rings = VIEWS // RING
    azimuths = [360.0 / RING * k + 360.0 / VIEWS * ring for ring in range(rings) for k in range(RING)]
    heights = [HEIGHTS[ring % len(HEIGHTS)] for ring in range(rings) for _ in range(RING)]
    return orbit(azimuths, heights, 3.0, 40.0, size, size)


@torch.no_grad()
def attention_maps(
    prior: LatentPrior,
    gaussians: ParameterDict,
    cameras: Cameras,
    text: str,
    places: tuple[list[int], list[int]],
    seed: int,
) -> Tensor:
    """Return how much each place of each view looks at some words rather than at others: [V, H, W].

    places: of these words' tokens in the text, and of the others'.
    """
    mine, others = places
    views = render(gaussians, cameras, torch.ones(3, device=gaussians["means"].device)).rgb
    z = prior.encode(views.permute(0, 3, 1, 2))
    embeddings = prior.embed([text] * len(z))
    generator, total = torch.Generator().manual_seed(seed), torch.zeros_like(views[..., 0])
    cond = prior.with_cameras(cfg(embeddings, embeddings, 1.0), cameras, torch.ones(len(z), 3))
    extra = () if cond.extra is None else (cond.extra[1],)
    with recorded(prior.unet) as seen:
        for level in LEVELS:
            t = torch.full((len(z),), int(level * len(prior.alphas_cumprod)))
            z_t = add_noise(prior, z, t, gaussian_like(z, generator))
            prior.network(z_t, t.to(z.device), cond.embeddings[1], *extra)
    for scores in last_coarse(seen, len(LEVELS)):  # [V, heads, h w, L]
        scores = scores.mean(1)
        of_words = scores[..., mine].mean(-1)
        against = scores[..., others].mean(-1) if others else torch.zeros_like(of_words)
        side = round(of_words.shape[1] ** 0.5)
        relative = (of_words / (of_words + against + 1e-9)).view(len(z), 1, side, side)
        total += F.interpolate(relative, total.shape[-2:], mode="bicubic")[:, 0]
    return total / len(LEVELS)


def last_coarse(seen: list[Tensor], calls: int) -> list[Tensor]:
    """Return, of each of `calls` passes, the scores of the last layer that has at most PLACES places.

    The decoder's last layers tell things apart; the encoder's and the middle's look at the scene as a whole.
    """
    layers = len(seen) // calls
    coarse = [k for k in range(layers) if seen[k].shape[2] <= PLACES] or [layers - 1]
    return seen[coarse[-1] :: layers]


@contextmanager
def recorded(unet: Any) -> Iterator[list[Tensor]]:
    """Record the attention of a network to a text's tokens: [V, heads, h w, L] of each layer's call.

    A UNet attends to them alone; a ViewTransformer also to the places of all views, which have the rest.
    """
    seen: list[Tensor] = []
    handles = []

    def hook(module: Any, args: Any, kwargs: Any, _: Any) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        if hidden is None or text is None or hidden.ndim != 3:
            return
        query, key = (module.head_to_batch_dim(x) for x in (module.to_q(hidden), module.to_k(text)))
        scores = (query.float() @ key.float().transpose(1, 2) * module.scale).softmax(-1)
        seen.append(scores.view(len(hidden), -1, *scores.shape[1:]))

    def of_views(module: Any, args: Any, _: Any) -> None:
        seen.append(module.attention(*args))

    for name, module in unet.named_modules():
        if isinstance(module, Layer) and module.words is not None:
            handles.append(module.register_forward_hook(of_views))
        if name.endswith("attn2") and hasattr(module, "head_to_batch_dim"):
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    if not handles:
        raise UserError("this teacher's network has no cross-attention; give a box, a sphere or a .npy")
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def lifted(gaussians: ParameterDict, cameras: Cameras, maps: Tensor) -> Tensor:
    """Return the mean of maps [V, H, W] over each Gaussian's pixels, weighted by its part in them: [N].

    Alpha blending is linear in the colors, so the gradient of sum(map * picture) by a Gaussian's color is the
    sum of its weights times the map. What no view sees is NaN.
    """
    scene = activated(gaussians)
    sums = []
    for values in (maps, torch.ones_like(maps)):
        colors = torch.ones_like(scene.means).requires_grad_()
        drawn, _, _ = rasterize(
            scene.means.detach(),
            scene.quats.detach(),
            scene.scales.detach(),
            scene.opacities.detach(),
            colors,
            cameras.viewmats.to(maps.device),
            cameras.Ks.to(maps.device),
            cameras.width,
            cameras.height,
        )
        (gradient,) = torch.autograd.grad((drawn[..., 0] * values).sum(), colors)
        sums.append(gradient[:, 0])
    return torch.where(sums[1] > 1e-6, sums[0] / sums[1].clamp(min=1e-6), torch.nan)
