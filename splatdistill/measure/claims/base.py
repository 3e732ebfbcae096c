"""The types of a claim and of its measured result, and helpers for intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splatdistill.guidance.latents import branches
from splatdistill.measure import metrics
from splatdistill.measure.jury import Jury
from splatdistill.measure.runs import Teachers
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.priors.words import describe

GUIDANCE = 4.0  # of the teacher's samples, and of every method on latents, so that their targets agree
SEEDS = 4  # times those of the lab, where seeds are compared
MODELS = 3  # of a thing, each another picture that its name means
THINGS = (  # of which the shipped teacher's album has as many
    "chair", "car", "tree", "dog", "house", "sofa", "cat", "horse", "truck", "robot", "castle", "sword",
    "mug", "bed", "bench", "table", "bus", "fox", "snowman", "spaceship", "bicycle", "tank", "hamburger",
    "fish",
)  # fmt: skip


@dataclass
class Lab:
    """The setting of all measurements: teacher, jury, folder for runs, and amount of repetition.

    together: the teacher, for which a name means MODELS things; prior: the same for single views.
    prompts, seeds, draws and steps bound the work; the defaults are those of docs/REPRODUCTION.md. `jobs`
    runs are made in parallel.
    """

    together: Prior
    jury: Jury
    runs: Path
    prompts: int = 4
    seeds: int = 2
    draws: int = 32
    steps: int = 130
    overrides: Sequence[str] = ()
    jobs: int | None = 1
    teachers: Teachers = field(default_factory=partial(Teachers, GUIDANCE))

    @cached_property
    def prior(self) -> Prior:
        """The teacher for single views."""
        return self.together.alone()

    @property
    def settings(self) -> list[str]:
        """What all runs share."""
        return [f"steps={self.steps}", f"prior.models={MODELS}", *self.overrides]

    @property
    def texts(self) -> list[str]:
        """The first prompts: names of things that look in several ways."""
        return [describe((thing,), (None,)) for thing in THINGS[: self.prompts]]

    def branches(self, text: str, guidance: float, count: int = 1) -> Conditioning:
        """Return the conditioning (unconditional and text) of `count` samples."""
        return branches(self.prior, text, guidance, count)

    def noise(self, seed: int, count: int = 1) -> Tensor:
        """Draw N(0, I) [count,C,h,w] from a seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.prior.latent_shape, generator=generator).to(self.prior.device)


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A curve of means with 95 % intervals, all of one length."""

    label: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass
class Findings:
    """The result of a measurement: a table of numbers and intervals, curves, and a reading.

    holds: whether the claim holds on this teacher, None where nothing is claimed; reading: one or two
    sentences with the conditions; shown: rows of finished runs, for a picture of them.
    """

    columns: list[str]
    rows: list[tuple[str, list[Any]]]
    holds: bool | None
    reading: str
    conditions: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")
    logarithmic: bool = False
    shown: list[list[Path]] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement of a paper, and the function that tests it here."""

    name: str
    source: str
    says: str
    measure: Callable[[Lab], Findings]


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values with its 95 % bootstrap interval."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return Interval(tensor.mean().item(), *metrics.bootstrap_interval(tensor))


def share(hits: Sequence[bool]) -> Interval:
    """Return a rate with its 95 % Wilson interval."""
    return Interval(sum(hits) / max(len(hits), 1), *metrics.wilson_interval(sum(hits), len(hits)))


def line(label: str, x: Sequence[float], values: Sequence[Sequence[float]]) -> Line:
    """Return a curve through the means of values, one list for each x."""
    points = [interval(v) for v in values]
    mean, low, high = (list(column) for column in zip(*points, strict=True))
    return Line(label, list(x), mean, low, high)


def below(a: Interval | None, b: Interval | None) -> bool:
    """Return whether b - a is significantly above zero, a and b independent; False where one is None.

    The lower limit of the difference is b - a - sqrt((b - b.low)^2 + (a.high - a)^2) (Zou and Donner 2008),
    which needs no symmetric intervals.
    """
    if a is None or b is None:
        return False
    return b.mean - a.mean > math.hypot(b.mean - b.low, a.high - a.mean)
