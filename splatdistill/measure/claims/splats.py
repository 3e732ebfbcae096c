"""Claims about splats: each experiment makes its runs in the lab's folder, once, and evaluates them."""

from __future__ import annotations

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
from splatdistill.measure.runs import right_names
from splatdistill.measure.suites import make
from splatdistill.priors import words as grammar
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.rendering import render
from splatdistill.training.inputs import edit_settings, slug
from splatdistill.training.jobs import RunSpec

GENERATORS = [name for name, method in METHODS.items() if not method.edits and "_published" not in name]
FIGURES = {  # figure of a group: heading of its column
    "object": "object",
    "color": "color",
    "r_precision": "R-Precision",
    "saturation_to_teacher": "saturation / teacher's",
    "high_frequency_to_teacher": "high frequency / teacher's",
}
SPREADS = {
    "iou_share": "shape / truth's",
    "color_share": "color / truth's",
    "frechet_to_teacher": "Frechet to teacher's",
    "diversity": "diversity",
}
FRONT_FIGURES = {
    "janus": "Janus rate",
    "view": "views as they are",
    "object": "object",
    "diversity": "diversity over seeds",
}


def facing(lab: Lab) -> list[str]:
    """Return prompts of objects whose front differs from their back."""
    colors = list(grammar.COLORS)
    chosen = grammar.FACING[: lab.prompts]
    return [grammar.describe((thing,), (colors[5 * i % len(colors)],)) for i, thing in enumerate(chosen)]


def sds_smooths(lab: Lab) -> Findings:
    """Compare SDS and SDI at equal numbers of network evaluations, and in equal time."""
    sdi_cost, sdi_seconds = cost(lab, "sdi")
    sds_cost, sds_seconds = cost(lab, "sds")
    longer = [round(lab.steps * sdi_cost / sds_cost), round(lab.steps * sdi_seconds / sds_seconds)]
    variants = {
        f"SDI, {lab.steps} steps": ("sdi", []),
        f"SDS, {longer[0]} steps (equal evaluations)": ("sds", [f"steps={longer[0]}"]),
        f"SDS, {longer[1]} steps (equal time)": ("sds", [f"steps={longer[1]}"]),
    }
    found = {}
    for label, (method, words) in variants.items():
        group = evaluated(lab, runs(lab, method, words))
        found[label] = {name: figure(group, name) for name in FIGURES}
    sdi, *sds = found.values()
    sharper = all(below(row["high_frequency_to_teacher"], sdi["high_frequency_to_teacher"]) for row in sds)
    paler = all(below(sdi["saturation_to_teacher"], row["saturation_to_teacher"]) for row in sds)
    reading = (
        f"At equal cost SDI's splats {'are' if sharper else 'are not clearly'} sharper than SDS's and "
        f"{'are' if paler else 'are not clearly'} less saturated."
    )
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"prompts": lab.prompts, "steps": lab.steps}
    return Findings([*FIGURES.values()], rows, sharper and paler, reading, conditions)


def dsd_is_diverse_in_3d(lab: Lab) -> Findings:
    """Measure the diversity of splats over seeds."""
    return diverse(lab, ("sds", "sdi", "dsd"), 2 * lab.seeds)


def cfd_is_diverse(lab: Lab) -> Findings:
    """Measure the diversity of splats over seeds, which for CFD are seeds of its noise field."""
    return diverse(lab, ("sdi", "cfd"), 4 * lab.seeds)


def diverse(lab: Lab, methods: Sequence[str], count: int) -> Findings:
    """Compare the diversity over seeds of methods; the last one's should lie above that of the others."""
    texts = lab.texts[: max(lab.prompts // 3, 1)]
    rows: list[tuple[str, list[Any]]] = []
    shown = []
    for method in methods:
        made = runs(lab, method, texts=texts, seeds=range(count))
        group = evaluated(lab, made, compare=False)
        shown.append(made[:count])
        cells = [figure(group, name) for name in ("diversity", "vendi_score", "object", "r_precision")]
        rows.append((method.upper(), cells))
    *others, (best, cells) = rows
    lower = [name for name, values in others if below(values[0], cells[0])]
    ratios = [
        f"{cells[0].mean / values[0].mean:.1f} times as much as those of {name}"
        + ("" if name in lower else " (not significantly)")
        for name, values in others
        if cells[0] and values[0]
    ]
    reading = f"Over {count} seeds the splats of {best} differ {' and '.join(ratios)}."
    columns = ["pairwise distance", "Vendi score", "object", "R-Precision"]
    conditions = {"prompts": texts, "seeds": count, "steps": lab.steps}
    return Findings(columns, rows, len(lower) == len(others), reading, conditions, shown=shown)


EDITS = (  # the upper object changes its color, the lower one should stay
    ("a red car on top of a blue cube", "a green car on top of a blue cube"),
    ("a yellow duck on top of a purple cylinder", "a red duck on top of a purple cylinder"),
    ("an orange snowman on top of a green cube", "a pink snowman on top of a green cube"),
    ("a brown dog on top of a cyan cylinder", "a yellow dog on top of a cyan cylinder"),
    ("an orange mug on top of a blue cylinder", "a green mug on top of a blue cylinder"),
    ("a purple chair on top of a yellow cube", "a red chair on top of a yellow cube"),
)
GENTLE = [f"optimizer.{name}" for name in ("means=2e-3", "scales=4e-3", "quats=4e-3", "opacities=2e-2")]


def views(splat: Path, size: int = 64) -> tuple[Tensor, Tensor]:
    """Render a splat all around: images [8,3,S,S] on white and alpha [8,1,S,S]."""
    with torch.no_grad():
        seen = render(read_ply(splat)[0], turntable(8, *EVALUATION_VIEW, size), torch.ones(3))
    return seen.rgb.clamp(0, 1).permute(0, 3, 1, 2), seen.alpha.permute(0, 3, 1, 2)


def outside(before: Tensor, alpha: Tensor, source: str) -> Tensor:
    """Return a mask [V,1,S,S] of pixels away from what is edited and its border, by nearest color."""
    parsed = grammar.parse(source)
    named = [color for color in (parsed[1] if parsed else ()) if color]
    palette = torch.tensor([grammar.COLORS[color] for color in named] + [(1.0, 1.0, 1.0)])
    unit = torch.nn.functional.normalize(before - before.mean(1, keepdim=True), dim=1)  # hue, not brightness
    hues = torch.nn.functional.normalize(palette - palette.mean(1, keepdim=True), dim=1)
    nearest = torch.einsum("vchw,nc->vnhw", unit, hues).argmax(1, keepdim=True)
    changes = ((nearest == 0) & (alpha > 0.5)).float()
    return torch.nn.functional.max_pool2d(changes, 5, 1, 2) < 0.5


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
                named, colored = right_names(lab.scorer, lab.scorer.images(after), target)
                done.append(bool(named and colored))
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
    """Compare geometry R-Precision with and without lit and textureless views."""
    columns = {
        "r_precision_geometry": "geometry R-Precision",
        "r_precision": "R-Precision",
        "object": "object",
    }
    lit_words = ["shading.lambertian=0.25", "shading.textureless=0.25"]
    found = {}
    for label, words in (("albedo alone", []), ("lit and textureless views", lit_words)):
        group = evaluated(lab, runs(lab, "sdi", words, seeds=range(lab.seeds)), compare=False)
        found[label] = {name: figure(group, name) for name in columns}
    albedo, lit = found.values()
    holds = below(albedo["r_precision_geometry"], lit["r_precision_geometry"])
    reading = (
        f"Lit and textureless views {'raise' if holds else 'do not clearly raise'} geometry R-Precision."
    )
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"prompts": lab.prompts, "seeds": lab.seeds}
    return Findings([*columns.values()], rows, holds, reading, conditions)


def views_help(lab: Lab) -> Findings:
    """Measure second fronts without view words, with them, and with the other views as negatives."""
    texts = facing(lab)
    plain = fronts(lab, texts, "sdi", words=["guidance.mode=plain"])
    named = fronts(lab, texts, "sdi")
    perp_neg = fronts(lab, texts, "sdi", words=["guidance.mode=perp_neg"])
    holds = all(below(found["janus"], plain["janus"]) for found in (named, perp_neg))
    found = {"no view words": plain, "view words": named, "perp-neg": perp_neg}
    reading = f"Second fronts are {'' if holds else 'not clearly '}rarer with view words and perp-neg."
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"things": len(texts), "seeds": lab.seeds}
    return Findings([*FRONT_FIGURES.values()], rows, holds, reading, conditions)


def cameras_help(lab: Lab) -> Findings:
    """Measure second fronts of the plain and the multi-view teacher, and DSD's diversity with the latter."""
    texts = facing(lab)
    some = texts[: max(lab.prompts // 2, 2)]  # DSD takes the longest
    plain = fronts(lab, texts, "sdi")
    sdi = fronts(lab, texts, "sdi", "embedded-multiview")
    dsd = fronts(lab, some, "dsd", "embedded-multiview")
    rarer = below(sdi["janus"], plain["janus"])
    diverse = below(sdi["diversity"], dsd["diversity"])
    found = {"plain teacher, SDI": plain, "multi-view teacher, SDI": sdi, "multi-view teacher, DSD": dsd}
    reading = (
        f"By SDI second fronts are {'' if rarer else 'not clearly '}rarer with the multi-view teacher; over "
        f"seeds DSD's splats with it differ {'more' if diverse else 'not clearly more'} than SDI's."
    )
    rows = [(label, list(figures.values())) for label, figures in found.items()]
    conditions = {"things": len(texts), "of_dsd": len(some), "seeds": lab.seeds}
    return Findings([*FRONT_FIGURES.values()], rows, rarer and diverse, reading, conditions)


def fronts(
    lab: Lab, texts: Sequence[str], method: str, prior: str = "embedded", words: Sequence[str] = ()
) -> dict[str, Any]:
    """Return FRONT_FIGURES of runs of objects that have a front."""
    group = evaluated(lab, runs(lab, method, words, prior, texts, range(lab.seeds)), compare=False)
    return {name: figure(group, name) for name in FRONT_FIGURES}


def all_methods(lab: Lab) -> Findings:
    """Compare all methods in one table."""
    rows, accuracy, shown, texts = [], {}, [], lab.texts[: max(lab.prompts // 2, 1)]
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
        "Lit and textureless renders in training improve geometry, by R-Precision of textureless renders.",
        shading_helps,
    ),
    Claim(
        "df-2",
        "2209.14988, section 3.2, and 2304.04968",
        "View-dependent prompts make second fronts rarer, and perp-neg makes them rarer still.",
        views_help,
    ),
    Claim(
        "mv-1",
        "2308.16512, section 4, and 2412.06780",
        "A multi-view teacher makes second fronts rarer, and DSD stays diverse with it.",
        cameras_help,
    ),
    Claim("table", "", "All methods beside each other, from the same settings.", all_methods),
]
