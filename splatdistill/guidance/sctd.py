"""Segmented consistency trajectory distillation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.core import Method, x0_weight
from splatdistill.guidance.dsd import PathStart
from splatdistill.guidance.noise import walk
from splatdistill.guidance.query import Comparison, Query
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at


@dataclass(frozen=True)
class SCTD(Method):
    """SCTD (SegmentDreamer, ICCV 2025): w [(x_e^s - x_e) + (g + 1) (x_e - x_e^t)], w = sqrt((1 - ab) / ab).

    x_e is z with the run's own noise at e, the lower edge of the segment that t is in. Unconditional DDIM
    inversion leads to x_s and z_t. x_e^t is one guided step from z_t to e; x_e^s one to s, then an
    unconditional one to e. The first term keeps a segment consistent, the second guides.

    Args:
        segments: equal parts of [edges[0], edges[1]].
        edges: as shares of T.
        gap: t is at least this share of T above e.
    """

    name: ClassVar[str] = "sctd"

    timesteps: Timesteps = Timesteps(high=(0.98, 0.50))
    segments: int = 5
    edges: tuple[float, float] = (0.02, 0.98)
    gap: float = 0.08

    def __post_init__(self) -> None:
        if self.segments < 1 or not 0.0 <= self.edges[0] < self.edges[1] <= 1.0 or not 0.0 < self.gap < 1.0:
            raise ValueError("sctd: expected segments >= 1, 0 <= edges[0] < edges[1] <= 1 and 0 < gap < 1")

    def start(self, prior: Prior, seed: int) -> PathStart:
        """Draw the noise of a run from its seed."""
        return PathStart.of_seed(prior, seed)

    def compare(self, query: Query, state: PathStart) -> Comparison:
        """Return (e_g(z_t) less the two terms, z_t, e_g(z_t))."""
        e, s = self.below(query)
        null, t = query.cond.with_guidance(0.0), query.t
        x_e = query.noised(state.noise.to(query.z).expand_as(query.z), t=e)
        z_t = step(query, step(query, x_e, e, s, null), s, t, null)
        guided = query.predict(z_t)
        back = step(query, predicted_step(query.prior, z_t, guided, t, s), s, e, null)
        there = predicted_step(query.prior, z_t, guided, t, e)
        assert query.cond.scale is not None
        terms = (back - x_e) + (query.cond.scale + 1.0) * (x_e - there)
        return Comparison(guided - terms, z_t, guided)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return sqrt((1 - ab) / ab) [B] at t [B]."""
        return x0_weight(prior, t)

    def below(self, query: Query) -> tuple[Tensor, Tensor]:
        """Return e and a random s between e and t, both [B]."""
        bounds = torch.linspace(*self.edges, self.segments + 1, dtype=torch.float64) * query.levels
        edge = bounds[(query.t[:, None] >= bounds).sum(1).clamp(min=1) - 1]
        e = torch.minimum(edge, query.t - self.gap * query.levels).clamp(min=0.0).long()
        room = (query.t - e).double()
        return e, e + (room * (0.125 + 0.75 * query.uniform())).long()


def step(query: Query, x: Tensor, now: Tensor, following: Tensor, cond: Conditioning) -> Tensor:
    """Return x [B,C,h,w] after one DDIM step between the timesteps [B], of its own prediction."""
    return walk(query.prior, x, torch.stack([now, following], dim=1), torch.ones_like(now), cond)


def predicted_step(prior: Prior, x: Tensor, eps: Tensor, now: Tensor, following: Tensor) -> Tensor:
    """Return x [B,C,h,w] after one DDIM step between the timesteps [B], of a noise prediction [B,C,h,w]."""
    ab_now, ab_next = alpha_bar_at(prior, now), alpha_bar_at(prior, following)
    coefficients = ops.ddim_coefficients(ab_now, ab_next, "epsilon")
    weights, coefficients = ops.upload([torch.ones(1, len(now)), coefficients], x.device)
    return ops.ddim_step(x, eps[None], weights, coefficients)
