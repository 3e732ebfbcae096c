"""Runs of equal settings as one group: its name, and its figures with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from splatdistill.config.load import plain
from splatdistill.config.schema import Config
from splatdistill.measure import metrics

IQA = {  # CLIP-IQA's questions that SDI's authors ask (2405.15891, section 6.1)
    "quality": ("Good", "Bad"),
    "sharpness": ("Sharp", "Blurry"),
    "real": ("Real", "Abstract"),
}
# Figures of a run. Rates of yes or no:
SHARES = ("object", "object_first_five", "nothing", "color", "janus", "diverged", "empty")
MEANS = (
    "r_precision",
    "r_precision_geometry",
    "clip_score",
    "preference",
    *IQA,
    "janus_cosine",
    "view",
    "iou_share",
    "color_share",
    "loose",
    "holes",
    "high_frequency_to_teacher",
    "saturation_to_teacher",
)
SPREADS = ("diversity", "vendi_score", "frechet_to_teacher")  # of a group alone
FIGURES = (*SHARES, *MEANS, *SPREADS)
PARTS = 20  # of a group's runs, each left out once for the interval of its Frechet distance

APART = ("prompt", "seed", "checkpoint_every", "image.path")  # keys that may differ within a group
BESIDE = ("report.", "edit.")  # and prefixes of such keys


@dataclass
class Group:
    """Its rows, and of each run in turn the prompt and the embeddings of views [V,D] and of samples [S,D]."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)  # of the teachers; of all runs or of none

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return every figure of the rows (see `summary`) and of the group as a whole (SPREADS)."""
        found = summary(self.rows) | diversity([views.mean(0) for views in self.views], self.prompts)
        if self.samples and len(self.samples) == len(self.views):
            found["frechet_to_teacher"] = frechet(self.views, self.samples)
        return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean, 95 % interval and count of every figure: Wilson's for rates, bootstrap for the others."""
    result: dict[str, dict[str, Any]] = {}
    for name in (*SHARES, *MEANS):
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        if not values:
            continue
        tensor = torch.tensor(values)
        if name in SHARES:
            bounds = metrics.wilson_interval(int(sum(values)), len(values))
        else:
            bounds = metrics.bootstrap_interval(tensor)
        result[name] = told(tensor.mean().item(), bounds, len(values))
    return result


def told(mean: float, bounds: metrics.Interval, count: int) -> dict[str, Any]:
    """Return a figure as it is written down."""
    return {"mean": mean, "low": bounds[0], "high": bounds[1], "count": count}


def diversity(features: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how much the seeds of a prompt differ, averaged over prompts with two seeds or more.

    The figures are the mean pairwise cosine distance and the Vendi score of features [D]. With three seeds or
    more of each prompt the interval is over seeds (jackknife), else over prompts (bootstrap); the count is
    that of prompts.
    """
    by_prompt: dict[str, list[Tensor]] = {}
    for feature, prompt in zip(features, prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(feature)
    sets = [values for values in by_prompt.values() if len(values) > 1]
    if not sets:
        return {}
    measures = {"diversity": metrics.pairwise_distance, "vendi_score": metrics.vendi_score}
    return {name: _spread(measure, sets) for name, measure in measures.items()}


def _spread(measure: Callable[[Tensor], float], sets: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    each = torch.tensor([measure(torch.stack(list(values))) for values in sets], dtype=torch.float64)
    if min(map(len, sets)) < 3:
        return told(each.mean().item(), metrics.bootstrap_interval(each), len(sets))

    def averaged(strata: Sequence[Sequence[Tensor]]) -> float:
        return sum(measure(torch.stack(list(values))) for values in strata) / len(strata)

    return told(each.mean().item(), metrics.jackknife_interval(averaged, sets), len(sets))


def frechet(views: Sequence[Tensor], samples: Sequence[Tensor]) -> dict[str, Any]:
    """Return the Frechet distance of all views to all samples; a jackknife over runs is its interval."""
    runs = list(zip(views, samples, strict=True))
    count = min(PARTS, len(runs))
    parts = [runs[i::count] for i in range(count)]

    def distance(strata: Sequence[Sequence[Sequence[tuple[Tensor, Tensor]]]]) -> float:
        left = [pair for part in strata[0] for pair in part]
        return metrics.frechet_distance(*(torch.cat(side) for side in zip(*left, strict=True)))

    value = distance([parts])
    bounds = metrics.jackknife_interval(distance, [parts]) if count > 1 else (value, value)
    return told(value, (max(bounds[0], 0.0), bounds[1]), len(runs))


def group_names(configs: Sequence[Config]) -> list[str]:
    """Return the name of each run's group: prior, method, and the settings in which it differs.

    Settings are compared among the runs of one prior and method; prompts, seeds and inputs are ignored.
    """
    flat = [dict(settings(plain(config))) for config in configs]
    names = [f"{values['prior.name']} {values['method.name']}" for values in flat]
    result = []
    for name, values in zip(names, flat, strict=True):
        same = [other for other_name, other in zip(names, flat, strict=True) if other_name == name]
        differ = [
            key
            for key, value in values.items()
            if key not in APART and not key.startswith(BESIDE) and any(v.get(key) != value for v in same)
        ]
        result.append(" ".join([name, *(f"{key}={values[key]}" for key in differ)]))
    return result


def settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return every setting of nested plain values by its dotted name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
