"""Claims about splats: each experiment makes its runs in the lab's folder, once, and evaluates them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatdistill.config.load import resolve
from splatdistill.folder import RESULT
from splatdistill.formats.ply import read_ply
from splatdistill.guidance.core import sample
from splatdistill.guidance.dsd import DSD, PathStart
from splatdistill.guidance.latents import branches
from splatdistill.guidance.registry import METHODS
from splatdistill.measure import metrics
from splatdistill.measure.claims.base import (
    GUIDANCE,
    MODELS,
    Claim,
    Findings,
    Lab,
    Line,
    below,
    interval,
    line,
    share,
)
from splatdistill.measure.claims.groups import cost, evaluated, figure, runs, shown_figure
from splatdistill.measure.claims.latents import DDIM_STEPS
from splatdistill.measure.runs import VIEWS
from splatdistill.measure.suites import make
from splatdistill.priors import words as grammar
from splatdistill.priors.base import Prior
from splatdistill.priors.judge import COVERED
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.likeness import Look
from splatdistill.scene.rendering import render
from splatdistill.training.inputs import edit_settings, slug
from splatdistill.training.jobs import RunSpec

PUBLISHED = 100.0  # guidance of SDS in DreamFusion
GENERATORS = [name for name, method in METHODS.items() if not method.edits and "_published" not in name]
FIGURES = {  # figure of a group: heading of its column
    "object": "named",
    "saturation_to_teacher": "saturation / teacher's",
    "high_frequency_to_teacher": "high frequency / teacher's",
    "iou_share": "shape / truth's",
    "color_share": "color / truth's",
}
SPREADS = {"frechet_to_teacher": "Frechet to teacher's", "diversity": "diversity"}
SEEDS = 4  # times those of the lab, where seeds are compared


def sds_smooths(lab: Lab) -> Findings:
    """Compare SDI with SDS: in as many steps, at as many evaluations, and at SDS's published guidance."""
    (sdi_cost, _), (sds_cost, _) = cost(lab, "sdi"), cost(lab, "sds")
    longer = 20 * math.ceil(lab.steps * sdi_cost / sds_cost / 20)
    variants = {
        f"SDI, {lab.steps} steps": ("sdi", []),
        f"SDS, {lab.steps} steps": ("sds", []),
        f"SDS, {longer} steps (as many evaluations)": ("sds", [f"steps={longer}"]),
        f"SDS at guidance {PUBLISHED:g}": ("sds", [f"method.guidance={PUBLISHED:g}"]),
    }
    found, shown = {}, []
    for label, (method, words) in variants.items():
        made = runs(lab, method, words, seeds=range(SEEDS * lab.seeds))
        group = evaluated(lab, made)
        shown.append(made[:: SEEDS * lab.seeds // 2])
        found[label] = {name: figure(group, name) for name in FIGURES}
    sdi, *sds = found.values()
    sharper = all(below(row["high_frequency_to_teacher"], sdi["high_frequency_to_teacher"]) for row in sds)
    paler = all(below(sdi["saturation_to_teacher"], row["saturation_to_teacher"]) for row in sds)
    truer = all(below(row["iou_share"], sdi["iou_share"]) for row in sds)
    reading = (
        f"SDI's splats are {'' if sharper else 'not clearly '}sharper than each of SDS's, "
        f"{'' if paler else 'not clearly '}less saturated, "
        f"and {'' if truer else 'not clearly '}nearer to true shapes."
    )
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"prompts": lab.texts, "seeds": SEEDS * lab.seeds, "models of a thing": MODELS}
    return Findings([*FIGURES.values()], rows, sharper and paler, reading, conditions, shown=shown)


def dsd_is_diverse_in_3d(lab: Lab) -> Findings:
    """Measure the diversity of splats over seeds."""
    return diverse(lab, ("sds", "sdi", "dsd"))


def cfd_is_diverse(lab: Lab) -> Findings:
    """Measure the diversity of splats over seeds, which for CFD are seeds of its noise field."""
    return diverse(lab, ("sdi", "cfd"))


def diverse(lab: Lab, methods: Sequence[str]) -> Findings:
    """Compare the diversity over seeds of methods; the last one's should lie above that of the others."""
    rows: list[tuple[str, list[Any]]] = []
    shown, count = [], SEEDS * lab.seeds
    for method in methods:
        made = runs(lab, method, seeds=range(count))
        group = evaluated(lab, made, compare=False)
        shown.append(made[:count])
        cells = [figure(group, name) for name in ("diversity", "vendi_score", "object", "iou_share")]
        rows.append((method.upper(), cells))
    *others, (best, cells) = rows
    lower = [name for name, values in others if below(values[0], cells[0])]
    worse = [name for name, values in others if below(cells[2], values[2])]
    ratios = [
        f"{cells[0].mean / values[0].mean:.1f} times as much as those of {name}"
        + ("" if name in lower else " (not significantly)")
        for name, values in others
        if cells[0] and values[0]
    ]
    reading = f"Over {count} seeds the splats of {best} differ {' and '.join(ratios)}."
    if worse:
        reading += f" But they are named less often than those of {' and '.join(worse)}."
    columns = ["pairwise distance", "Vendi score", "named", "shape / truth's"]
    conditions = {"prompts": lab.texts, "seeds": count, "steps": lab.steps, "models of a thing": MODELS}
    holds = len(lower) == len(others) and not worse
    return Findings(columns, rows, holds, reading, conditions, shown=shown)


EDITS = (  # the upper object changes its color, the lower one should stay
    ("a red car on top of a blue cube", "a green car on top of a blue cube"),
    ("a yellow duck on top of a purple cylinder", "a red duck on top of a purple cylinder"),
    ("an orange snowman on top of a green cube", "a purple snowman on top of a green cube"),
    ("a red dog on top of a cyan cylinder", "a yellow dog on top of a cyan cylinder"),
    ("an orange mug on top of a blue cylinder", "a green mug on top of a blue cylinder"),
    ("a purple chair on top of a yellow cube", "a red chair on top of a yellow cube"),
)
GENTLE = [f"optimizer.{name}" for name in ("means=2e-3", "scales=4e-3", "quats=4e-3", "opacities=2e-2")]


def views(splat: Path, size: int = 64) -> tuple[Tensor, Tensor]:
    """Render a splat all around: images [8,3,S,S] on white and alpha [8,1,S,S]."""
    with torch.no_grad():
        seen = render(read_ply(splat)[0], turntable(8, *EVALUATION_VIEW, size), torch.ones(3))
    return seen.rgb.clamp(0, 1).permute(0, 3, 1, 2), seen.alpha.permute(0, 3, 1, 2)


def hues(colors: Tensor) -> Tensor:
    """Return the hue of colors [n, 3, ...] as unit vectors: brightness and saturation do not count."""
    return torch.nn.functional.normalize(colors - colors.mean(1, keepdim=True), dim=1)


def nearest(pictures: Tensor, names: Sequence[str]) -> Tensor:
    """Return the number of the color nearest in hue [V, 1, S, S] of pictures [V, 3, S, S]."""
    palette = torch.tensor([grammar.COLORS[name] for name in names])
    return torch.einsum("vchw,nc->vnhw", hues(pictures), hues(palette)).argmax(1, keepdim=True)


def of_thing(before: Tensor, alpha: Tensor, source: str) -> Tensor:
    """Return a mask [V, 1, S, S] of the thing of a pair that is edited: where its color is the nearer one."""
    named = [word for word in source.split() if word in grammar.COLORS]
    return (nearest(before, [*named, "white"]) == 0) & (alpha > 0.5)


def outside(before: Tensor, alpha: Tensor, source: str) -> Tensor:
    """Return a mask [V, 1, S, S] of pixels away from what is edited and its border."""
    return torch.nn.functional.max_pool2d(of_thing(before, alpha, source).float(), 5, 1, 2) < 0.5


def recolored(after: Tensor, there: Tensor, target: str) -> bool:
    """Return whether most of what is there [V, 1, S, S] has the first color of a prompt, by hue."""
    chromatic = [name for name, rgb in grammar.COLORS.items() if max(rgb) - min(rgb) > 0.2]
    wanted = next(i for i, name in enumerate(chromatic) if name in target.split())
    return bool((nearest(after, chromatic) == wanted)[there].float().mean() > 0.5)


def edited(lab: Lab, run: Path, target: str, method: str, steps: int) -> RunSpec:
    """Return the run that edits a finished run."""
    out = lab.runs / "edits" / f"{method}-{steps}" / slug(target)
    flags = {"prompt": target, "method": method, "steps": steps, "edit": edit_settings(run)}
    return RunSpec(out, resolve(flags, None, [*GENTLE, *lab.overrides]))


def pds_keeps(lab: Lab) -> Findings:
    """Measure the change outside the edit, against the share of edits that reach their target."""
    pairs = EDITS[: max(lab.prompts // 2, 2)]
    runs(lab, "sdi", texts=[source for source, _ in pairs])  # in parallel
    sources = {pair: run for pair in pairs for run in runs(lab, "sdi", texts=[pair[0]])}
    rows: list[tuple[str, list[Any]]] = []
    lines: list[Line] = []
    best: dict[str, float] = {}  # dB outside, where at least half of the edits succeed
    for method in ("pds", "dds", "sds"):
        points: list[tuple[float, list[float]]] = []
        for strength in (0.5, 1.0, 2.0):
            steps = max(round(lab.steps * strength), 2)
            kept, overlap, done = [], [], []
            edits = {pair: edited(lab, run, pair[1], method, steps) for pair, run in sources.items()}
            made = make(list(edits.values()), lab.jobs)
            for (source, target), job in edits.items():
                if job.folder not in made:
                    continue
                before, alpha = views(sources[source, target] / RESULT)
                after, now = views(job.folder / RESULT)
                same = outside(before, alpha, source).expand_as(before)
                kept.append(metrics.psnr_of_error((after - before)[same].square().mean()).item())
                both = ((alpha > 0.5) & (now > 0.5)).sum() / ((alpha > 0.5) | (now > 0.5)).sum().clamp(min=1)
                overlap.append(both.item())
                there = of_thing(before, alpha, source)
                said = lab.jury.row(job.folder, target)["object_first_five"]
                done.append(said and recolored(after, there, target))
            if not kept:
                continue
            rows.append(
                (f"{method.upper()}, {steps} steps", [share(done), interval(kept), interval(overlap)])
            )
            points.append((share(done).mean, kept))
        if points:
            lines.append(line(method.upper(), *zip(*points, strict=True)))
        best[method] = max((interval(kept).mean for hit, kept in points if hit >= 0.5), default=0.0)
    holds = best["pds"] > max(best["dds"], best["sds"])
    outcomes = [f"{name.upper()} keeps the rest at {value:.1f} dB" for name, value in best.items() if value]
    reading = (
        f"Where at least half of the edits succeed, {', '.join(outcomes) or 'nothing is left to compare'}."
    )
    columns = ["edit done", "PSNR outside, dB", "silhouette IoU"]
    conditions = {"edits": len(pairs), "learning_rates": "of the PDS preset, for all three"}
    axes = ("edits done", "PSNR outside the mask, dB")
    return Findings(columns, rows, holds, reading, conditions, lines, axes)


def shading_helps(lab: Lab) -> Findings:
    """Compare shapes with and without lit and textureless views."""
    columns = {"iou_share": "shape / truth's", "holes": "holes", "loose": "loose pieces", "object": "named"}
    lit_words = ["shading.lambertian=0.25", "shading.textureless=0.25"]
    found = {}
    for label, words in (("albedo alone", []), ("lit and textureless views", lit_words)):
        group = evaluated(lab, runs(lab, "sdi", words, seeds=range(lab.seeds)), compare=False)
        found[label] = {name: figure(group, name) for name in columns}
    albedo, lit = found.values()
    holds = below(albedo["iou_share"], lit["iou_share"])
    reading = f"Lit and textureless views bring shapes {'' if holds else 'not clearly '}nearer to true ones."
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"prompts": lab.texts, "seeds": lab.seeds}
    return Findings([*columns.values()], rows, holds, reading, conditions)


def true_models(lab: Lab, text: str) -> list[Look]:
    """Return how the true models of a prompt's thing look."""
    truth, (asked,) = lab.jury.truth, lab.jury.vocabulary.asked(text)
    assert truth is not None
    return [look for look, noun in zip(truth.looks, truth.nouns, strict=True) if noun == asked.noun]


@torch.no_grad()
def drawn(lab: Lab, teacher: Prior, text: str, noise: Tensor, first: int, steps: int) -> Look:
    """Sample a teacher's views of a prompt [V, C, h, w] from noise; `first`: of the turntable's views."""
    cameras = turntable(VIEWS, *EVALUATION_VIEW, teacher.image_size)[first :: VIEWS // len(noise)]
    cond = branches(teacher, text, GUIDANCE, len(noise))
    cond = teacher.with_cameras(cond, cameras, torch.ones(len(noise), 3))
    seen = teacher.decode(sample(teacher, cond, noise, steps)).clamp(0, 1).float().cpu()
    return Look.of(seen, ((1 - seen).amax(1, keepdim=True) > COVERED).float())


def agreement(look: Look, model: Look, first: int = 0) -> float:
    """Return the mean IoU of the silhouettes of views and those of a true model from the same cameras."""
    true = model.shapes[first :: VIEWS // len(look.shapes)]
    both, either = (look.shapes & true).sum((1, 2)), (look.shapes | true).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def views_agree(lab: Lab) -> Findings:
    """Compare four views that are denoised together with four that are denoised each by itself."""
    found: dict[str, list[float]] = {"together": [], "each by itself": []}
    for k, text in enumerate(lab.texts):
        models = true_models(lab, text)
        for seed in range(SEEDS * lab.seeds):
            noise = lab.noise(1000 * k + seed, lab.together.group)
            for name, teacher in zip(found, (lab.together, lab.prior), strict=True):
                look = drawn(lab, teacher, text, noise, 0, DDIM_STEPS)
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


def paths_agree(lab: Lab) -> Findings:
    """Count the seeds whose DDIM paths, from one noise for all views, end at one model from all cameras."""
    rows, every = [], []
    for text in lab.texts:
        models, same = true_models(lab, text), []
        for seed in range(SEEDS * lab.seeds):
            noise = PathStart.of_seed(lab.together, seed).noise.expand(lab.together.group, -1, -1, -1)
            ends = set()
            for first in range(VIEWS // lab.together.group):
                look = drawn(lab, lab.together, text, noise, first, DSD().steps)
                ends.add(max(range(len(models)), key=lambda i: agreement(look, models[i], first)))
            same.append(len(ends) == 1)
        rows.append((text, [share(same)]))
        every += same
    rows.append(("all", [share(every)]))
    holds = share(every).low > 0.5
    reading = (
        f"Of {len(every)} seeds {sum(every)} end at one model from all {VIEWS // lab.together.group} sets of "
        "cameras. Where they do not, DSD pulls a splat to several models at once."
    )
    conditions = {"steps": DSD().steps, "guidance": GUIDANCE, "models of a thing": MODELS}
    return Findings(["one model from all cameras"], rows, holds, reading, conditions)


def all_methods(lab: Lab) -> Findings:
    """Compare all methods in one table."""
    rows, accuracy, shown, texts = [], {}, [], lab.texts
    for method in GENERATORS:
        evaluations, seconds = cost(lab, method)
        made = runs(lab, method, texts=texts, seeds=range(lab.seeds))
        group = evaluated(lab, made)
        shown.append(made[:: lab.seeds][:4])
        figures = [shown_figure(group, name) for name in (*FIGURES, *SPREADS)]
        accuracy[method] = named.mean if (named := figure(group, "object")) else 0.0
        rows.append((method.upper(), [*figures, seconds, evaluations]))
    most = max(accuracy.values())
    best = ", ".join(name.upper() for name in accuracy if accuracy[name] == most)
    reading = f"On this teacher most things, {100 * most:.0f} %, are named right in splats by {best}."
    columns = [*FIGURES.values(), *SPREADS.values(), "seconds", "network evaluations"]
    conditions = {"prompts": len(texts), "seeds": lab.seeds, "steps": lab.steps}
    return Findings(columns, rows, None, reading, conditions, shown=shown)


SOLID = [
    Claim(
        "sdi-4",
        "2405.15891, sections 1 and 6",
        "SDS gives over-smoothed, over-saturated things; SDI does not.",
        sds_smooths,
    ),
    Claim("dsd-3d", "2412.06780, section 5", "DSD's splats differ more over seeds.", dsd_is_diverse_in_3d),
    Claim(
        "dsd-paths",
        "2412.06780",
        "One noise is one thing from all cameras: what DSD takes from a teacher of pictures for granted.",
        paths_agree,
    ),
    Claim(
        "cfd-3d",
        "2501.05445, section 5",
        "With another noise field CFD makes another splat: over seeds they differ more than SDI's.",
        cfd_is_diverse,
    ),
    Claim(
        "pds-1",
        "2311.13831, section 5",
        "PDS does the edit and keeps what should stay better than DDS and SDS do.",
        pds_keeps,
    ),
    Claim(
        "df-1",
        "2209.14988, section 4",
        "Lit and textureless renders in training improve geometry.",
        shading_helps,
    ),
    Claim(
        "mv-1",
        "2308.16512, section 3",
        "Views that are denoised together show one thing; views that are denoised apart do not.",
        views_agree,
    ),
    Claim("table", "", "All methods beside each other, from the same settings.", all_methods),
]
