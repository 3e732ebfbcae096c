"""Schedules over a run: small frozen dataclasses that map progress in [0, 1] to a number."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Schedule = Callable[[float], float]


def _ramp(progress: float, begin: float, stop: float) -> float:
    """Where `progress` lies between `begin` and `stop`, clamped to [0, 1]."""
    if stop <= begin:
        return float(progress >= stop)
    return min(max((progress - begin) / (stop - begin), 0.0), 1.0)


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line between progress `begin` and `stop`; constant outside."""

    start: float
    end: float
    begin: float = 0.0
    stop: float = 1.0

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        return self.start + (self.end - self.start) * _ramp(progress, self.begin, self.stop)


@dataclass(frozen=True)
class SqrtAnneal:
    """From `start` to `end` with the square root of progress: fast at first (DSD, 2412.06780)."""

    start: float
    end: float
    begin: float = 0.0
    stop: float = 1.0

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        return self.start + (self.end - self.start) * math.sqrt(_ramp(progress, self.begin, self.stop))


@dataclass(frozen=True)
class Piecewise:
    """Straight lines through `points` ((progress, value), ...), constant outside them.

    Two points at one progress make a jump, which takes the later value.
    Raises ValueError when there is no point or their progress decreases.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        where = [progress for progress, _ in self.points]
        if not where or where != sorted(where):
            raise ValueError(f"Piecewise: expected points of increasing progress, got {self.points}")

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        value = self.points[0][1]
        for (begin, _), (stop, end) in zip(self.points[:1] + self.points, self.points, strict=False):
            if progress < begin:
                break
            value += (end - value) * _ramp(progress, begin, stop)
        return value


@dataclass(frozen=True)
class TimestepSchedule:
    """Diffusion timesteps over a run, as fractions of T: uniform between `low` and `high`.

    One schedule for both (`low == high`) is the annealed t of SDI; a wide range is the random t of SDS.
    """

    low: Schedule
    high: Schedule

    def sample(
        self, progress: float, count: int, num_timesteps: int, generator: torch.Generator, group: int = 1
    ) -> Tensor:
        """Timesteps [count] int64 on the CPU for `count` views, within [0, num_timesteps - 1].

        Each `group` views in turn share one. A range of zero width draws nothing from `generator`.
        """
        if group > 1:
            return self.sample(progress, count // group, num_timesteps, generator).repeat_interleave(group)
        low, high = self.low(progress), self.high(progress)
        fraction = torch.full((count,), low, dtype=torch.float64)
        if high != low:
            fraction += (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)
        return (fraction * num_timesteps).round().long().clamp_(0, num_timesteps - 1)  # [count]


def annealed(start: float, end: float) -> TimestepSchedule:
    """One t for all views, linear from `start` to `end` (fractions of T)."""
    return TimestepSchedule(Linear(start, end), Linear(start, end))
