"""Schedules over a run: small frozen dataclasses that map progress in [0, 1] to a number."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Linear interpolation from `start` to `end`."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class SqrtAnneal:
    """Interpolation from `start` to `end` with the square root of progress (DSD, 2412.06780)."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start + (self.end - self.start) * math.sqrt(min(max(progress, 0.0), 1.0))


@dataclass(frozen=True)
class Timesteps:
    """Diffusion timesteps over a run: each view's t is uniform in [low, high], fractions of T.

    Args:
        shape: how both move over the run: evenly, or fast at first (square root of progress).
        low: the lower end, at the start and at the end of the run.
        high: the upper end, likewise. Equal to low, it is the annealed t of SDI; a wide range is that of SDS.

    Raises:
        ValueError: not 0 < low <= high <= 1.
    """

    shape: Literal["linear", "sqrt"] = "linear"
    low: tuple[float, float] = (0.02, 0.02)
    high: tuple[float, float] = (0.98, 0.98)

    def __post_init__(self) -> None:
        for low, high in zip(self.low, self.high, strict=True):
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(f"timesteps: expected 0 < low <= high <= 1, got low {low} and high {high}")

    def range(self, progress: float) -> tuple[float, float]:
        """Return (low, high) at `progress`."""
        line = SqrtAnneal if self.shape == "sqrt" else Linear
        return line(*self.low)(progress), line(*self.high)(progress)

    def sample(
        self,
        progress: float,
        count: int,
        num_timesteps: int,
        generator: torch.Generator | None = None,
        group: int = 1,
    ) -> Tensor:
        """Draw timesteps [count] int64 on the CPU, within [0, num_timesteps - 1].

        Args:
            progress: the share of the run that is done.
            count: number of views.
            num_timesteps: T.
            generator: source of random numbers; a range of zero width draws none.
            group: number of consecutive views that share one timestep.
        """
        if group > 1:
            shared = self.sample(progress, count // group, num_timesteps, generator)
            return shared.repeat_interleave(group)
        low, high = self.range(progress)
        fraction = torch.full((count,), low, dtype=torch.float64)
        if high != low:
            fraction += (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)
        return (fraction * num_timesteps).round().long().clamp_(0, num_timesteps - 1)  # [count]


def annealed(start: float, end: float) -> Timesteps:
    """Return one t for all views, linear from `start` to `end` (fractions of T)."""
    return Timesteps("linear", (start, end), (start, end))
