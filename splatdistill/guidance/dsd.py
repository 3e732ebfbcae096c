"""Methods that compare two noise levels: Diverse and Asynchronous Score Distillation."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatdistill.guidance.core import Method, sds_weight
from splatdistill.guidance.noise import path_along, walk
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Prior


class PathStart(State):
    """The initial noise of a run's DDIM paths: [C,h,w] shared by all views, or [B,C,h,w], one for each."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    @classmethod
    def of_seed(cls, prior: Prior, seed: int) -> "PathStart":
        """Draw the noise [C,h,w] from a seed."""
        noise = torch.randn(prior.latent_shape, generator=torch.Generator().manual_seed(seed))
        return cls(noise.to(prior.device))

    def state_dict(self) -> dict[str, Any]:
        """Return the noise."""
        return {"noise": self.noise}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the noise."""
        self.noise = saved["noise"].to(self.noise.device)


@dataclass(frozen=True)
class DSD(Method):
    """Diverse Score Distillation, 2412.06780: gradient = (1 - ab) (e_g(z_t) - e_c(z_tdelta)).

    Both are noised with eps*, the guided prediction at t_delta on the DDIM path from the run's own seed.

    Args:
        steps: moves of the whole path from T - 1 to 0.
        spread: t_delta is t + floor(U(0, spread (t - lowest T))).
        lowest: see `spread`.
        compared: the scale c of the prediction compared with.
    """

    name: ClassVar[str] = "dsd"

    timesteps: Timesteps = Timesteps("sqrt", (0.98, 0.32), (0.98, 0.32))
    steps: int = 10
    spread: float = 0.1
    lowest: float = 0.32
    compared: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.spread < 0.0 or not 0.0 <= self.lowest < 1.0:
            raise ValueError("dsd: expected steps >= 1, spread >= 0 and 0 <= lowest < 1")

    def start(self, prior: Prior, seed: int) -> PathStart:
        """Draw the initial noise of the paths from the seed."""
        return PathStart.of_seed(prior, seed)

    def compare(self, query: Query, state: PathStart) -> Comparison:
        """Return (e_c at t_delta, z_t)."""
        further = query.further(self.spread, self.lowest)
        eps = self.on_path(query.at(further), state)
        noised = query.noised(eps, t=further)
        return Comparison(
            query.predict(noised, query.cond.with_guidance(self.compared), further), query.noised(eps)
        )

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)

    def on_path(self, query: Query, state: PathStart) -> Tensor:
        """Return the guided prediction eps* [B,C,h,w] at the query's t on each view's DDIM path."""
        grid = torch.linspace(query.levels - 1, 0, self.steps + 1).long()
        moves = (grid > query.t[:, None]).sum(dim=1)
        path = path_along(grid, moves, query.t)
        begin = state.noise.to(query.z).expand_as(query.z)
        return query.predict(walk(query.prior, begin, path, moves, query.cond))


@dataclass(frozen=True)
class DSDPublished(DSD):
    """DSD as the authors' code does it without perp-neg.

    There CFG at s means guidance s + 1: 8.5, and 2 where the paper has 1.
    """

    name: ClassVar[str] = "dsd_published"

    guidance: float = 8.5
    compared: float = 2.0


@dataclass(frozen=True)
class ASD(Method):
    """Asynchronous Score Distillation (ScaleDreamer), 2407.02040: (1 - ab) (e_g(z_t) - e(z_{t+d}, text)).

    One noise for both levels. The prediction at the noisier level stands for that of VSD's student.

    Args:
        spread: d is floor(U(0, spread (t - lowest T))).
        lowest: see `spread`.
    """

    name: ClassVar[str] = "asd"

    timesteps: Timesteps = Timesteps(low=(0.5, 0.02), high=(0.98, 0.5))
    spread: float = 0.1
    lowest: float = 0.02

    def __post_init__(self) -> None:
        if self.spread < 0.0 or not 0.0 <= self.lowest < 1.0:
            raise ValueError("asd: expected spread >= 0 and 0 <= lowest < 1")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e(z_{t+d}, text), z_t) at fresh noise."""
        eps, further = query.gaussian(), query.further(self.spread, self.lowest)
        text = query.cond.with_guidance(1.0)
        return Comparison(query.predict(query.noised(eps, t=further), text, further), query.noised(eps))

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)
