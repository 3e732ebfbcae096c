"""What a claim is, and what measuring one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatdistill.guidance.latents import branches
from splatdistill.measure import metrics
from splatdistill.measure.suites import objects
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.priors.clip import Scorer


@dataclass
class Lab:
    """Where claims are measured: the teacher, the scorer, a folder for runs, and how much is repeated.

    prompts, seeds, draws and steps bound the work; the defaults are those of docs/REPRODUCTION.md. So many
    jobs run side by side.
    """

    prior: Prior
    scorer: Scorer
    runs: Path
    prompts: int = 6
    seeds: int = 2
    draws: int = 32
    steps: int = 150
    overrides: Sequence[str] = ()
    jobs: int | None = 1

    @property
    def texts(self) -> list[str]:
        """The first prompts of the suite of objects."""
        return objects()[: self.prompts]

    def branches(self, text: str, guidance: float, count: int = 1) -> Conditioning:
        """Text against nothing for `count` samples."""
        return branches(self.prior, text, guidance, count)

    def noise(self, seed: int, count: int = 1) -> Tensor:
        """N(0, I) [count,C,h,w] that the seed decides."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.prior.latent_shape, generator=generator).to(self.prior.device)


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
    """What was measured: a table whose cells are numbers or (mean, low, high), curves, and what they say.

    holds: whether the claim does on this teacher, None where nothing is claimed; reading: one or two
    sentences with the conditions.
    """

    columns: list[str]
    rows: list[tuple[str, list[Any]]]
    holds: bool | None
    reading: str
    conditions: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")
    logarithmic: bool = False


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that can be wrong, and how it is tested here."""

    name: str
    source: str
    says: str
    measure: Callable[[Lab], Findings]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of values and its 95 % bootstrap interval."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return (tensor.mean().item(), *metrics.bootstrap_interval(tensor))


def share(hits: Sequence[bool]) -> tuple[float, float, float]:
    """A rate and its 95 % Wilson interval."""
    return (sum(hits) / max(len(hits), 1), *metrics.wilson_interval(sum(hits), len(hits)))


def line(label: str, x: Sequence[float], values: Sequence[Sequence[float]]) -> Line:
    """A curve through the means of values, one list for each x."""
    points = [interval(v) for v in values]
    mean, low, high = (list(column) for column in zip(*points, strict=True))
    return Line(label, list(x), mean, low, high)


def below(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    """Whether the interval a lies below b."""
    return a[2] < b[1]
