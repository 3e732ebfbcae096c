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
from splatdistill.guidance.registry import METHODS
from splatdistill.measure import metrics
from splatdistill.measure.claims.base import (
    MODELS,
    SEEDS,
    Claim,
    Findings,
    Interval,
    Lab,
    Line,
    below,
    interval,
    line,
    share,
)
from splatdistill.measure.claims.groups import cost, evaluated, figure, runs, shown_figure
from splatdistill.measure.suites import make
from splatdistill.priors import words as grammar
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
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
    """Measure the change outside the edit, against the share of edits after which the thing has its color."""
    pairs = EDITS[: max(lab.prompts // 2, 2)]
    runs(lab, "sdi", texts=[source for source, _ in pairs])  # in parallel
    sources = {pair: run for pair in pairs for run in runs(lab, "sdi", texts=[pair[0]])}
    rows: list[tuple[str, list[Any]]] = []
    lines: list[Line] = []
    best: dict[str, Interval] = {}  # dB outside, where at least half of the edits succeed
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
                done.append(recolored(after, there, target))
            if not kept:
                continue
            rows.append(
                (f"{method.upper()}, {steps} steps", [share(done), interval(kept), interval(overlap)])
            )
            points.append((share(done).mean, kept))
        if points:
            lines.append(line(method.upper(), *zip(*points, strict=True)))
        if enough := [interval(kept) for hit, kept in points if hit >= 0.5]:
            best[method] = max(enough)
    others = [value for name, value in best.items() if name != "pds"]
    holds = "pds" in best and all(below(value, best["pds"]) for value in others)
    outcomes = [f"{name.upper()} keeps the rest at {value.mean:.1f} dB" for name, value in best.items()]
    reading = (
        f"Where at least half of the edits succeed, {', '.join(outcomes) or 'nothing is left to compare'}"
        f"{'' if holds or not outcomes else ', which is not significant'}."
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
    Claim("table", "", "All methods beside each other, from the same settings.", all_methods),
]
