"""Another color for a thing: what has its main color, in a mesh or in pictures, takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splatdistill.formats.gltf import linear_to_srgb, srgb_to_linear

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear light
NEAR = 0.22  # distance in sRGB within which a color is the main one
STRONG = 0.12  # chroma from which on a color has a hue
CANDIDATES, BETTER = (
    4,
    0.05,
)  # of the main color: the commonest ones; one more must have a larger share by this
LEAST = 0.25  # of a thing that its main color must have
STRIDE = 7  # pixels between those that are asked for the main color


def chroma(colors: np.ndarray) -> np.ndarray:
    """Return the strength [n] of colors [n, 3]: their distance to gray."""
    return np.linalg.norm(colors - colors.mean(-1, keepdims=True), axis=-1)


def alike(colors: np.ndarray, main: np.ndarray) -> np.ndarray:
    """Return which sRGB colors [n, 3] are shades of the main one [3]: near it, or of its hue."""
    near = np.linalg.norm(colors - main, axis=1) < NEAR
    hues = [c - c.mean(-1, keepdims=True) for c in (colors, main)]
    strength, own = chroma(colors), float(chroma(main))
    cosine = hues[0] @ hues[1] / np.maximum(strength * own, 1e-9)
    return near | ((cosine > 0.95) & (strength > STRONG) & (own > STRONG))


def lit_alike(colors: np.ndarray, main: np.ndarray) -> np.ndarray:
    """Return which sRGB colors [n, 3] are lit shades of the main one: of a gray, brighter and darker ones."""
    near = alike(colors, main)
    if float(chroma(main)) < STRONG:
        light = srgb_to_linear(colors) @ LUMINANCE / max(float(srgb_to_linear(main) @ LUMINANCE), 1e-3)
        near |= (chroma(colors) < 0.8 * STRONG) & (light > 0.35) & (light < 1.6)
    return near


def main_color(colors: np.ndarray) -> np.ndarray:
    """Return the sRGB color [3] whose shades are most of colors [n, 3], of the commonest ones."""
    bins = (colors * 5).round().astype(int) @ np.array([36, 6, 1])
    counts = np.bincount(bins)
    best, most = colors.mean(0), 0.0
    for number in counts.argsort()[::-1][:CANDIDATES]:
        if counts[number]:
            candidate = colors[bins == number].mean(0)
            share = float(lit_alike(colors, candidate).mean())
            if share > most + BETTER:
                best, most = candidate, share
    return best


def recolored(pictures: np.ndarray, color: Sequence[float]) -> np.ndarray:
    """Return pictures of one thing with its main color changed to another; its shades stay.

    Pictures without a main color come back as they are.

    Args:
        pictures: [..., 4] uint8, premultiplied.
        color: sRGB, [3].
    """
    alpha = pictures[..., 3] / 255.0
    there = alpha > 0
    cover = alpha[there]
    rgb = (pictures[there][:, :3] / 255.0 / cover[:, None]).clip(0, 1)
    solid = cover > 0.98
    if not solid.any():
        return pictures
    near = lit_alike(rgb, main_color(rgb[solid][::STRIDE]))
    if near[solid].mean() < LEAST:
        return pictures
    light = srgb_to_linear(rgb[near]) @ LUMINANCE
    bright = np.quantile(light[solid[near]], 0.8)
    shade = (light / max(float(bright), 1e-3)).clip(0.25, 1.15)[:, None]
    rgb[near] = linear_to_srgb(shade * srgb_to_linear(np.asarray(color)))
    made = pictures.copy()
    made[there, :3] = (rgb * cover[:, None] * 255 + 0.5).astype(np.uint8)
    return made
