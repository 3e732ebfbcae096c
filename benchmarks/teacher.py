"""How well does the teacher draw? Its own DDIM samples (50 steps), named by the judge.

`python benchmarks/teacher.py [--teacher DIR] [--samples N]` prints a table and writes
benchmarks/results/teacher.json: things, colors, front and back as the judge reads them, and pairs of
colored things that were in none of the pictures that the teacher learned from, beside true renders of them.
"""

from __future__ import annotations

import argparse
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from judge import COLORS, SIDES, THINGS, Judge, load_judge
from torch import Tensor

from splatdistill.guidance.core import sample
from splatdistill.measure.metrics import psnr
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.base import Prior, cfg
from splatdistill.scene.cameras import EVALUATION_VIEW, orbit
from splatdistill.scene.views import view_word
from splatdistill.teaching import scenes
from splatdistill.teaching.denoiser import DenoiserSettings
from splatdistill.teaching.solids import raycast

VIEWS = ("", ", front view", ", side view", ", back view")


@torch.no_grad()
def autoencoder_psnr(prior: Prior, count: int = 320) -> float:
    """Mean PSNR in dB of held-out renders after encoding and decoding."""
    images = torch.cat([torch.from_numpy(p.images) for p in scenes.groups(99, count, prior.image_size)])
    pictures = images.permute(0, 3, 1, 2).float() / 255
    return float(psnr(prior.decode(prior.encode(pictures)), pictures).mean())


@torch.no_grad()
def evaluate(prior: Prior, judge: Judge, samples: int, guidance: float, steps: int) -> dict[str, Any]:
    """Draw `samples` pictures of every thing, in different colors and views; the shares named right."""
    rows: dict[str, tuple[float, float]] = {}
    generator = torch.Generator().manual_seed(123)
    for i, thing in enumerate(THINGS):
        colors = [COLORS[(i + 5 * k) % len(COLORS)] for k in range(samples)]
        texts = [grammar.describe((thing,), (c,)) + VIEWS[k % len(VIEWS)] for k, c in enumerate(colors)]
        if prior.group > 1:  # four views of one thing
            colors = [c for c in colors[:: prior.group] for _ in range(prior.group)]
            texts = [grammar.describe((thing,), (c,)) for c in colors]
        cameras = orbit([90.0 * k for k in range(len(texts))], *EVALUATION_VIEW, 64, 64)
        condition = cfg(prior.embed([""] * len(texts)), prior.embed(texts), guidance)
        condition = prior.with_cameras(condition, cameras, torch.ones(len(texts), 3))
        z_T = torch.randn(len(texts), *prior.latent_shape, generator=generator)
        images = prior.decode(sample(prior, condition, z_T, steps=steps)).clamp(0, 1)
        things, hues = judge.name(images.float())[:2]
        rows[thing] = (
            (things.argmax(-1) == i).float().mean().item(),
            (hues.argmax(-1) == torch.tensor([COLORS.index(c) for c in colors])).float().mean().item(),
        )
        print(f"{thing:16s} object {rows[thing][0]:4.0%}  color {rows[thing][1]:4.0%}", flush=True)
    objects = [rows[name] for name in grammar.OBJECTS]
    return {
        "samples": samples * len(rows),
        "guidance": guidance,
        "object": sum(r[0] for r in rows.values()) / len(rows),
        "object_without_primitives": sum(r[0] for r in objects) / len(objects),
        "color": sum(r[1] for r in rows.values()) / len(rows),
        "by_thing": {name: {"object": r[0], "color": r[1]} for name, r in rows.items()},
    }


@torch.no_grad()
def views_followed(prior: Prior, judge: Judge, samples: int, guidance: float, steps: int) -> dict[str, float]:
    """Return the share of samples, of each thing with a front, in which the judge sees the requested side.

    Front and back, each `samples` times a thing; a multi-view teacher draws the two sides between as well.
    """
    generator, shares = torch.Generator().manual_seed(321), {}
    for i, thing in enumerate(grammar.FACING):
        right: list[bool] = []
        for k in range(samples):
            azimuths = [0.0, 90.0, 180.0, 270.0] if prior.group == 4 else [0.0, 180.0]
            cameras = orbit(azimuths, *EVALUATION_VIEW, prior.image_size, prior.image_size)
            text = grammar.describe((thing,), (COLORS[(i + 5 * k) % len(COLORS)],))
            asked = [view_word(azimuth, 15.0) for azimuth in azimuths]
            null = prior.embed([""] * len(asked))
            condition = cfg(null, prior.embed([f"{text}, {view}" for view in asked]), guidance)
            condition = prior.with_cameras(condition, cameras, torch.ones(len(asked), 3))
            z_T = torch.randn(len(asked), *prior.latent_shape, generator=generator)
            images = prior.decode(sample(prior, condition, z_T, steps=steps)).clamp(0, 1)
            said = [SIDES[j] for j in judge.name(images.float())[2].argmax(-1).tolist()]
            right += [a == b for a, b in zip(said, asked, strict=True) if b != "side view"]
        shares[thing] = sum(right) / len(right)
    return shares


Pair = tuple[tuple[str, str], tuple[str, str]]  # two things, and their colors


def pairs_shown(views: int) -> set[Pair]:
    """Return the pairs in the training set of `make teachers`.

    It is that of the text teacher, or of the multi-view one if views are 4, by repeating the random draws
    that come before the rendering.
    """
    settings, shown = DenoiserSettings(), set()
    for pictures, of_each in ((settings.pictures, 1), (128_000, 4))[: 1 + (views > 1)]:
        for i in range(pictures // scenes.GROUP):
            rng = np.random.default_rng((settings.seed, i))
            things = scenes.sample_structure(rng)
            if len(things) == 2:
                for colors in scenes.build(things, scenes.GROUP // of_each, rng).colors:
                    usual = [c or grammar.USUAL_COLOR[t] for t, c in zip(things, colors, strict=True)]
                    shown.add((things, tuple(usual)))
    return shown


@torch.no_grad()
def pairs_drawn(prior: Prior, pairs: list[Pair], guidance: float, steps: int) -> list[Tensor]:
    """Return a sample of each pair from the front, or of four views; pictures [V, 3, S, S]."""
    generator, drawn = torch.Generator().manual_seed(456), []
    for part in (pairs[k : k + 16] for k in range(0, len(pairs), 16)):
        count = len(part) * prior.group
        texts = [grammar.describe(*pair) for pair in part for _ in range(prior.group)]
        if prior.view_words:
            texts = [f"{text}, front view" for text in texts]
        cameras = orbit(
            [90.0 * k for k in range(count)], *EVALUATION_VIEW, prior.image_size, prior.image_size
        )
        condition = cfg(prior.embed([""] * count), prior.embed(texts), guidance)
        condition = prior.with_cameras(condition, cameras, torch.ones(count, 3))
        z_T = torch.randn(count, *prior.latent_shape, generator=generator)
        images = prior.decode(sample(prior, condition, z_T, steps=steps)).clamp(0, 1)
        drawn += images.float().split(prior.group)
    return drawn


def pairs_rendered(pairs: list[Pair], views: int) -> list[Tensor]:
    """Return what is to be drawn: a true render of each pair from the same cameras, [V, 3, 64, 64]."""
    cameras = orbit([90.0 * k for k in range(views)], *EVALUATION_VIEW, 64, 64)
    rendered = []
    for i, (things, colors) in enumerate(pairs):
        batch = scenes.build(things, 1, np.random.default_rng((789, i)), 1.0, colors)
        rgba = torch.from_numpy(raycast(np.repeat(batch.table, views, 0), cameras)).permute(0, 3, 1, 2) / 255
        rendered.append(rgba[:, :3] + 1.0 - rgba[:, 3:])
    return rendered


def pairs_named(judge: Judge, pairs: list[Pair], pictures: list[Tensor]) -> dict[str, float]:
    """Return the shares of pairs named right by the judge.

    The shares are of pairs with both things right, with both colors right, and of single things and colors.
    """
    right = []
    for ((upper, lower), (first, second)), images in zip(pairs, pictures, strict=True):
        thing, hue, _, below, its_hue = (int(p.mean(0).argmax()) for p in judge.name(images))
        right.append(
            (
                (thing == THINGS.index(upper), below == THINGS.index(lower)),
                (hue == COLORS.index(first), its_hue == COLORS.index(second)),
            )
        )
    shares: dict[str, float] = {"pairs": len(right)}
    for word, answers in zip(("object", "color"), zip(*right, strict=True), strict=True):
        shares[f"{word}s"] = sum(map(all, answers)) / len(answers)
        shares[f"{word}_of_each"] = sum(map(sum, answers)) / (2 * len(answers))
    return shares


def choose_pairs(shown: set[Pair], seen: bool, each: int = 16) -> list[Pair]:
    """Choose pairs of two colors on a common support that were shown, or never.

    There are `each` of every upper thing, or all where there are fewer.
    """
    rng, chosen = np.random.default_rng(8), []
    for upper in THINGS:
        below = [lower for lower in ("cube", "cylinder", "sphere") if lower != upper]
        pairs = [((upper, lower), colors) for lower in below for colors in permutations(COLORS, 2)]
        pairs = [pair for pair in pairs if (pair in shown) == seen]
        chosen += [pairs[i] for i in rng.permutation(len(pairs))[:each]]
    return chosen


def main() -> None:
    """Sample, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="embedded", help="a prior's name or folder")
    parser.add_argument("--samples", type=int, default=12, help="samples a thing")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    prior, start = load_prior(options.teacher, "cpu"), time.perf_counter()
    judge, drawn = load_judge(), (options.samples, options.guidance, options.steps)
    result = evaluate(prior, judge, *drawn)
    result["views_by_thing"] = views_followed(prior, judge, *drawn)
    result["views"] = sum(result["views_by_thing"].values()) / len(grammar.FACING)
    shown = pairs_shown(prior.group)
    for seen, name in ((False, "pairs_never_shown"), (True, "pairs_shown")):
        pairs = choose_pairs(shown, seen)
        result[name] = pairs_named(judge, pairs, pairs_drawn(prior, pairs, *drawn[1:]))
        result[f"{name}_true_renders"] = pairs_named(judge, pairs, pairs_rendered(pairs, prior.group))
        print(name, result[name], "true renders:", result[f"{name}_true_renders"], flush=True)
    result |= {"autoencoder_psnr_db": autoencoder_psnr(prior), "seconds": time.perf_counter() - start}
    print({k: round(v, 3) for k, v in result.items() if isinstance(v, float)})
    write_result(
        "teacher" if options.teacher == "embedded" else f"teacher-{Path(options.teacher).name}", result
    )


if __name__ == "__main__":
    main()
