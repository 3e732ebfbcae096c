"""Claims about which of the things that a name means a teacher sees: in samples, and in noisy views."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from splatdistill.guidance.core import sample
from splatdistill.guidance.dsd import DSD, PathStart
from splatdistill.guidance.latents import branches
from splatdistill.guidance.noise import Inversion, ddim_inversion
from splatdistill.guidance.query import add_noise, gaussian_like
from splatdistill.measure.claims.base import (
    GUIDANCE,
    MODELS,
    SEEDS,
    Claim,
    Findings,
    Lab,
    interval,
    share,
)
from splatdistill.measure.claims.latents import DDIM_STEPS
from splatdistill.measure.runs import VIEWS
from splatdistill.priors.album import OFFSET, SHOWN
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.priors.views import TOLD, nearest_page
from splatdistill.scene.cameras import EVALUATION_VIEW, OrbitRanges, sample_orbit, turntable
from splatdistill.scene.gaussians import init_blob
from splatdistill.scene.likeness import Look, coverage
from splatdistill.scene.rendering import render

TIMES = (700, 800, 900, 950, 979)


def true_models(lab: Lab, text: str) -> list[Look]:
    """Return how the true models of a prompt's thing look."""
    truth, (asked,) = lab.jury.truth, lab.jury.vocabulary.asked(text)
    assert truth is not None
    return [look for look, noun in zip(truth.looks, truth.nouns, strict=True) if noun == asked.noun]


def condition(teacher: Prior, text: str, count: int, first: int = 0) -> Conditioning:
    """Return the conditioning of `count` of the turntable's views, evenly around from number `first`."""
    cameras = turntable(VIEWS, *EVALUATION_VIEW, teacher.image_size)[first :: VIEWS // count]
    return teacher.with_cameras(branches(teacher, text, GUIDANCE, count), cameras, torch.ones(count, 3))


def look_of(teacher: Prior, z: Tensor) -> Look:
    """Return how latents [V, C, h, w] look."""
    seen = teacher.decode(z).clamp(0, 1).float().cpu()
    return Look.of(seen, coverage(seen))


def agreement(look: Look, model: Look) -> float:
    """Return the mean IoU of the silhouettes of views and those of a true model from the same cameras."""
    true = model.shapes[:: VIEWS // len(look.shapes)]
    both, either = (look.shapes & true).sum((1, 2)), (look.shapes | true).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def taken(teacher: Prior, z_t: Tensor, ab: float, cond: Conditioning) -> int:
    """Return the number of the model that a teacher with an album takes at latents z_t [V, C, h, w]."""
    assert cond.extra is not None
    pages = cond.extra[1, :, TOLD:].unflatten(1, (-1, SHOWN * (OFFSET + z_t[0].numel()))).float()
    page = nearest_page(z_t, torch.full((len(z_t),), ab).to(z_t), pages, teacher.group)
    return int((pages[0] == page[0]).all(1).nonzero()[0])


@torch.no_grad()
def views_agree(lab: Lab) -> Findings:
    """Compare four views that are denoised together with four that are denoised each by itself."""
    found: dict[str, list[float]] = {"together": [], "each by itself": []}
    for k, text in enumerate(lab.texts):
        models = true_models(lab, text)
        for seed in range(SEEDS * lab.seeds):
            noise = lab.noise(1000 * k + seed, lab.together.group)
            for name, teacher in zip(found, (lab.together, lab.prior), strict=True):
                z = sample(teacher, condition(teacher, text, len(noise)), noise, DDIM_STEPS)
                look = look_of(teacher, z)
                found[name].append(max(agreement(look, model) for model in models))
    rows = [(name, [interval(values)]) for name, values in found.items()]
    better = interval([a - b for a, b in zip(*found.values(), strict=True)])
    rows.append(("together less apart, of the same noise", [better]))
    holds = better.low > 0
    reading = (
        f"The silhouettes of four views are {'' if holds else 'not clearly '}nearer to those of one true "
        "model where the views are denoised together."
    )
    conditions = {"prompts": lab.texts, "seeds": SEEDS * lab.seeds, "models of a thing": MODELS}
    return Findings(["IoU with the nearest model"], rows, holds, reading, conditions)


@torch.no_grad()
def paths_agree(lab: Lab) -> Findings:
    """Count the seeds whose DDIM paths, from one noise for all views, end at one model from all cameras."""
    rows, every, sets = [], [], VIEWS // lab.together.group
    for text in lab.texts:
        same = []
        for seed in range(SEEDS * lab.seeds):
            noise = PathStart.of_seed(lab.together, seed).noise.expand(lab.together.group, -1, -1, -1)
            ends = set()
            for first in range(sets):
                cond = condition(lab.together, text, len(noise), first)
                ends.add(taken(lab.together, sample(lab.together, cond, noise, DSD().steps), 1.0, cond))
            same.append(len(ends) == 1)
        rows.append((text, [share(same)]))
        every += same
    rows.append(("all", [share(every)]))
    reading = (
        f"Of {len(every)} seeds {sum(every)} end at one model from all {sets} sets of cameras. Where they do "
        "not, DSD pulls a splat to several models at once."
    )
    conditions = {"steps": DSD().steps, "guidance": GUIDANCE, "models of a thing": MODELS}
    return Findings(["one model from all cameras"], rows, share(every).low > 0.5, reading, conditions)


@torch.no_grad()
def noise_chooses(lab: Lab) -> Findings:
    """Count how often the first steps of a run are pulled to the model that most of them are pulled to.

    A run begins as a ball, which is no model yet: the noise decides what the teacher sees in it.
    """
    found: dict[str, list[list[float]]] = {name: [[] for _ in TIMES] for name in ("random", "inverted")}
    teacher, count, draws = lab.together, lab.together.group, lab.draws // 2
    inversion = Inversion(guidance=0.0, eta=0.0, tau=0.0)
    for k, text in enumerate(lab.texts):
        generator = torch.Generator().manual_seed(k)
        scene = init_blob(6000, radius=0.6, generator=generator)
        models: dict[str, list[list[int]]] = {name: [[] for _ in TIMES] for name in found}
        for _ in range(draws):
            cameras = sample_orbit(OrbitRanges(), count, teacher.image_size, generator, group=count)
            cond = branches(teacher, text, GUIDANCE, count)
            cond = teacher.with_cameras(cond, cameras, torch.ones(count, 3))
            seen = render(scene, cameras, torch.ones(3)).rgb.permute(0, 3, 1, 2)
            z = teacher.encode(seen.to(teacher.device))
            for i, time in enumerate(TIMES):
                t, ab = torch.full((count,), time), float(teacher.alphas_cumprod[time])
                random = add_noise(teacher, z, t, gaussian_like(z, generator))
                inverted = ddim_inversion(teacher, z, t, cond, inversion, generator)[1]
                for name, z_t in (("random", random), ("inverted", inverted)):
                    models[name][i].append(taken(teacher, z_t, ab, cond))
        for name, cells in models.items():
            for i, numbers in enumerate(cells):
                found[name][i].append(Counter(numbers).most_common(1)[0][1] / draws)
    rows = [(name, [interval(shares) for shares in cells]) for name, cells in found.items()]
    pairs = [zip(*cells, strict=True) for cells in zip(*found.values(), strict=True)]
    rows.append(("inverted less random", [interval([b - a for a, b in both]) for both in pairs]))
    holds = rows[2][1][-1].low > 0
    reading = (
        f"In a ball from anywhere at t = {TIMES[-1]} the teacher takes the model that it takes most often in "
        f"{100 * rows[0][1][-1].mean:.0f} % of the draws of random noise, and in "
        f"{100 * rows[1][1][-1].mean:.0f} % with inverted noise."
    )
    conditions = {"prompts": lab.texts, "cameras": draws, "guidance": GUIDANCE, "models of a thing": MODELS}
    return Findings([f"t = {time}" for time in TIMES], rows, holds, reading, conditions)


OF_MODELS = [
    Claim(
        "sdi-5",
        "2405.15891, section 5",
        "Random noise pulls a run to another thing at every step; inverted noise to one.",
        noise_chooses,
    ),
    Claim(
        "dsd-paths",
        "2412.06780",
        "One noise is one thing from all cameras: what DSD takes from a teacher of pictures for granted.",
        paths_agree,
    ),
    Claim(
        "mv-1",
        "2308.16512, section 3",
        "Views that are denoised together show one thing; views that are denoised apart do not.",
        views_agree,
    ),
]
