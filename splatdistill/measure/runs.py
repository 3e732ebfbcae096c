"""Evaluation of finished runs with a CLIP model, on turntable views in color and without texture.

Runs with equal settings, except prompt, seed and initial input, form a group; figures of a group carry 95 %
intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.config.load import load
from splatdistill.config.schema import Config, PriorConfig
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, RESULT
from splatdistill.formats.ply import read_ply
from splatdistill.guidance.core import sample
from splatdistill.guidance.prompts import ViewPrompts
from splatdistill.measure import metrics
from splatdistill.measure.groups import IQA, Group, group_names
from splatdistill.measure.jury import Jury
from splatdistill.measure.suites import distractors
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.base import Prior, cfg
from splatdistill.priors.clip import Scorer
from splatdistill.priors.imagereward import Judge
from splatdistill.scene.cameras import EVALUATION_VIEW, orbit, turntable
from splatdistill.scene.gaussians import finite_mask
from splatdistill.scene.rendering import render
from splatdistill.scene.shading import textureless
from splatdistill.scene.views import view_word

VIEWS = 12  # of the turntable, at the training distance
BEHIND = 120.0  # degrees of azimuth beyond which a front is a second front
SAMPLES = 8  # of the teacher for each prompt
EMPTY = 0.005  # share of the image that is covered, below which a run failed
FOGGED = 0.9  # the same, above which a run failed
SATURATED = 0.98  # mean saturation of what is covered, above which a run failed


@dataclass
class RenderedRun:
    """One run as it looks: pictures [V, 3, S, S] in [0, 1] on white, in color and textureless; alpha."""

    run: Path
    config: Config
    color: Tensor
    geometry: Tensor
    alpha: Tensor  # [V, 1, S, S]
    finite: bool


def render_run(run: Path, size: int) -> RenderedRun:
    """Render a finished run; its views are blank where they are not finite. Raises UserError for no run."""
    if not (run / RESULT).is_file():
        raise UserError(f"{run}: there is no finished run (no {RESULT})")
    config = load(run / CONFIG)
    gaussians, _ = read_ply(run / RESULT)
    cameras = turntable(VIEWS, *EVALUATION_VIEW, size)
    with torch.no_grad():
        seen = render(gaussians, cameras, torch.ones(3))
        shape = textureless(seen, cameras)
    views = [x.permute(0, 3, 1, 2).cpu() for x in (seen.rgb, shape, seen.alpha)]
    visible = all(bool(x.isfinite().all()) for x in views)
    if not visible:  # overflow: the run shows nothing, and counts as diverged
        views = [torch.ones_like(views[0]), torch.ones_like(views[1]), torch.zeros_like(views[2])]
    color, geometry, alpha = (x.clamp(0, 1) for x in views)
    return RenderedRun(run, config, color, geometry, alpha, visible and bool(finite_mask(gaussians).all()))


def diverged(seen: RenderedRun) -> bool:
    """Return whether a run failed: not finite, empty, covering everything, or oversaturated."""
    covered = seen.alpha.mean().item()
    if not seen.finite or not EMPTY < covered < FOGGED:
        return True
    high, low = seen.color.amax(1, keepdim=True), seen.color.amin(1, keepdim=True)
    saturation = (high - low) / high.clamp(min=1e-6)
    return bool((saturation * seen.alpha).sum() / seen.alpha.sum() > SATURATED)


def right_names(scorer: Scorer, images: Tensor, prompt: str) -> tuple[bool | None, bool | None]:
    """Return whether the mean embedding names all objects, and all colors; None where the prompt has none.

    images [V, D]: embeddings. Each word is compared with every word that could take its place.
    """
    parsed = grammar.parse(prompt)
    if parsed is None:
        return None, None
    things, colors = parsed
    mean = images.mean(0)

    def wins(kind: int, place: int, options: Sequence[str]) -> bool:
        texts = []
        for option in options:
            parts: list[Any] = [list(things), list(colors)]
            parts[kind][place] = option
            texts.append(grammar.describe(tuple(parts[0]), tuple(parts[1])))
        return options[int((scorer.texts(texts) @ mean).argmax())] == (things, colors)[kind][place]

    named = all(wins(0, i, list(grammar.THINGS)) for i in range(len(things)))
    named_colors = [i for i, color in enumerate(colors) if color]
    return named, all(wins(1, i, list(grammar.COLORS)) for i in named_colors) if named_colors else None


def views_followed(scorer: Scorer, images: Tensor, prompt: str) -> tuple[float | None, bool | None]:
    """Return the share of views recognized as what they are, and whether most back views look like fronts.

    None for objects without a front. images [V, D]: embeddings of the turntable's views.
    """
    parsed = grammar.parse(prompt)
    if parsed is None or len(parsed[0]) != 1 or parsed[0][0] not in grammar.FACING:
        return None, None
    azimuths = turntable(len(images), *EVALUATION_VIEW, 8).azimuth_deg
    names = ("front view", "side view", "back view")
    texts = scorer.texts([f"{grammar.describe(*parsed)}, {name}" for name in names])
    predicted = [names[i] for i in (images @ texts.mT).argmax(-1).tolist()]
    true = [view_word(azimuth, EVALUATION_VIEW[0]) for azimuth in azimuths.tolist()]
    behind = ((azimuths + 180) % 360 - 180).abs() > BEHIND
    fronts = sum(a == "front view" for a, there in zip(predicted, behind.tolist(), strict=True) if there)
    followed = sum(a == b for a, b in zip(predicted, true, strict=True)) / len(true)
    return followed, 2 * fronts > int(behind.sum())


def ranked_first(scorer: Scorer, images: Tensor, prompt: str, others: Sequence[str]) -> float:
    """Return the share of views [V, D] that are nearest to their own prompt among the others."""
    texts = scorer.texts(list(dict.fromkeys([prompt, *others]))).cpu()  # index 0 is its own
    return (
        metrics.r_precision(images, texts, torch.zeros(len(images), dtype=torch.long)).float().mean().item()
    )


def colorless(prompt: str) -> str:
    """Return the prompt without its colors."""
    parsed = grammar.parse(prompt)
    return grammar.describe(parsed[0], (None,) * len(parsed[0])) if parsed else prompt


@torch.no_grad()
def teacher_samples(prior: Prior, config: Config, guidance: float, seed: int = 0, steps: int = 50) -> Tensor:
    """Sample the teacher for a run's prompt, all around on white: [n, 3, S, S], n SAMPLES or a few more.

    A teacher that sees other than two, four or eight views at a time gives whole groups of them.
    """
    (elevation, distance, fov), size = EVALUATION_VIEW, prior.image_size
    count = -(-SAMPLES // prior.group) * prior.group
    cameras = turntable(count, elevation, distance, fov, size)
    cameras = cameras[torch.arange(count).view(prior.group, -1).T.flatten()]  # each group evenly around
    if prior.places_deg:
        azimuth, elevation = torch.tensor(prior.places_deg).repeat(count // prior.group, 1).unbind(1)
        cameras = orbit(azimuth, elevation, distance, fov, size, size)
    background = torch.ones(count, 3)
    prompts, names = ViewPrompts(config.prompt, config.negative_prompt, fit=prior.fit), None
    if config.backgrounds.in_prompt and "white" in config.backgrounds.colors:
        names = ["white"] * count
    null = prior.embed([prompts.null_text(names[0] if names else None)] * count)
    cond = cfg(null, prior.embed(prompts.texts(cameras, names)), guidance)
    cond = prior.with_cameras(cond, cameras, background)
    noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    return prior.decode(sample(prior, cond, noise.to(prior.device), steps=steps)).clamp(0, 1).float().cpu()


class Eye(Protocol):
    """What reads pictures: a CLIP model, or a judge."""

    size: int  # pixels of the pictures

    def images(self, rgb: Tensor) -> Tensor:
        """Return unit embeddings [n, D] of pictures [n, 3, S, S] in [0, 1] on white."""
        ...


def measure(rendered: RenderedRun, color: Tensor, samples: Tensor | None) -> dict[str, Any]:
    """Return the figures of one run for which no text is read.

    Args:
        rendered: the run.
        color: embeddings [V, D] of its pictures.
        samples: of the run's teacher, to compare with, or None.
    """
    azimuths = turntable(len(rendered.color), *EVALUATION_VIEW, 8).azimuth_deg
    row = {
        "run": str(rendered.run),
        "prompt": rendered.config.prompt,
        "seed": rendered.config.seed,
        "diverged": diverged(rendered),
        "empty": not rendered.finite or rendered.alpha.mean().item() < EMPTY,  # as the authors of SDI count
        "janus_cosine": metrics.likeness_to_front(color, azimuths),
        "prior": rendered.config.prior.name,
        "method": rendered.config.method.name,
    }
    if samples is not None:
        views = F.interpolate(rendered.color, samples.shape[-2:], mode="bilinear", antialias=True)
        for name in ("high_frequency_ratio", "saturation"):
            of_run, of_teacher = (getattr(metrics, name)(images).mean().item() for images in (views, samples))
            row[f"{name.removesuffix('_ratio')}_to_teacher"] = of_run / max(of_teacher, 1e-9)
    return row


def read(
    rendered: RenderedRun,
    color: Tensor,
    scorer: Scorer,
    others: Sequence[str],
) -> dict[str, Any]:
    """Return the figures of one run that compare it with texts.

    Args:
        rendered: the run.
        color: the scorer's embeddings [V, D] of its pictures.
        scorer: the CLIP model.
        others: texts that R-Precision ranks against.
    """
    prompt = rendered.config.prompt
    readable = bool(prompt)
    geometry = scorer.images(rendered.geometry).cpu()
    named, colored = right_names(scorer, color, prompt)
    followed, janus = views_followed(scorer, color, prompt)
    row = {
        "r_precision": ranked_first(scorer, color, prompt, others) if readable else None,
        "r_precision_geometry": (
            ranked_first(scorer, geometry, colorless(prompt), [colorless(text) for text in others])
            if readable
            else None
        ),
        "clip_score": (
            metrics.clip_score(color, scorer.texts([prompt]).expand_as(color)).mean().item()
            if readable
            else None
        ),
        "object": named,
        "color": colored,
        "view": followed,
        "janus": janus,
    }
    for name, words in IQA.items():
        good, bad = scorer.texts([f"{word} photo." for word in words]).cpu()
        row[name] = metrics.antonym_score(color, good, bad).mean().item()
    return row


def preference(judge: Judge, rendered: RenderedRun) -> float:
    """Return the mean over views of how much a model of preferences likes a picture for the prompt."""
    return judge.liking(rendered.color, rendered.config.prompt).mean().item()


class Teachers:
    """The teachers of runs and their samples, each loaded and drawn once.

    guidance: of the samples; None for that of each run's method.
    """

    def __init__(self, guidance: float | None = None) -> None:
        self.guidance = guidance
        self._priors: dict[PriorConfig, Prior] = {}
        self._samples: dict[tuple[Any, ...], Tensor] = {}

    def samples(self, config: Config) -> Tensor:
        """Return what a run's own teacher draws of its prompt; see `teacher_samples`."""
        prior = config.prior
        if prior not in self._priors:
            self._priors[prior] = load_prior(prior.name, lora=prior.lora)
        base = self._priors[prior]
        seed = config.seed if prior.models == 1 else 0
        teacher = base.for_run(seed, prior.models)
        seed = 0 if teacher is base else seed  # some choose one of a thing's models by it
        guidance = config.method.guidance if self.guidance is None else self.guidance
        key = (prior, seed, config.prompt, config.negative_prompt, guidance)
        if key not in self._samples:
            self._samples[key] = teacher_samples(teacher, config, guidance)
        return self._samples[key]


def evaluate(
    runs: Sequence[Path],
    scorer: Scorer | None,
    others: Sequence[str] | None = None,
    compare: bool = True,
    judge: Judge | None = None,
    teachers: Teachers | None = None,
) -> dict[str, Any]:
    """Evaluate finished runs; return for each group (see `groups`) its rows and its summary.

    Args:
        runs: folders of finished runs.
        scorer: the CLIP model; None for the judge in each teacher's folder, which gives no figure of a text.
        others: texts that R-Precision ranks against; None is `suites.distractors`.
        compare: also compare with samples of each run's own teacher.
        judge: a model that was trained on preferences (PickScore, HPSv2, ImageReward); None for none.
        teachers: of other calls, so that none is asked twice for the same.

    Raises:
        UserError: a run is not finished; or there is no scorer, and its teacher has no judge.
    """
    others = distractors() if others is None else others
    groups: dict[str, Group] = {}
    teachers, juries = teachers or Teachers(), dict[str, Jury | None]()
    names = group_names([load(run / CONFIG) for run in runs])
    for run, name in zip(runs, names, strict=True):
        config = load(run / CONFIG)
        if config.prior.name not in juries:
            juries[config.prior.name] = Jury.of(config.prior.name)
        jury = juries[config.prior.name]
        eye: Eye | None = scorer or (jury.judge if jury else None)
        if eye is None:
            teacher = config.prior.name
            raise UserError(f"{run}: its teacher '{teacher}' has no judge; give a CLIP model by --clip")
        seen = render_run(run, eye.size)
        color = eye.images(seen.color).cpu()
        drawn = teachers.samples(config) if compare and not config.image.path else None
        row = measure(seen, color, drawn)
        if scorer is not None:
            row |= read(seen, color, scorer, others)
        if judge is not None:
            row["preference"] = preference(judge, seen)
        if jury is not None:
            row |= jury.row(run, config.prompt)
        group = groups.setdefault(name, Group())
        group.rows.append(row)
        group.prompts.append(config.prompt)
        group.views.append(color)
        if drawn is not None:
            group.samples.append(eye.images(drawn).cpu())
    return {name: {"rows": group.rows, "summary": group.summary()} for name, group in groups.items()}
