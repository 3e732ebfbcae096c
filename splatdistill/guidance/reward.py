"""Reward weighting of any method: of several evaluations, those that a scorer prefers count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from splatdistill import ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from splatdistill.guidance.core import Distillation
    from splatdistill.priors.base import Prior
    from splatdistill.priors.scorers import Agrees


@dataclass(frozen=True)
class RewardConfig:
    """Reward weighting (RewardSDS, 2503.09601): n evaluations at one t, weighed by a scorer of their x0_hat.

    Args:
        n: evaluations of the method in each step, which differ in their random numbers; 1 for no weighting.
        scorer: what judges the decoded x0_hat: "judge", that in the teacher's folder, or a CLIP model: its
            folder, or owner/name@COMMIT.
        rule: "best" takes the best alone; "contrast" .9 of the best less .1 of the worst; "soft" weights all
            by the exponential of their reward.
    """

    n: int = 1
    scorer: str = "judge"
    rule: Literal["best", "contrast", "soft"] = "contrast"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"reward.n must be at least 1, got {self.n}")


@dataclass(frozen=True)
class Reward:
    """A scorer and how its judgement counts."""

    config: RewardConfig
    scorer: Agrees

    @classmethod
    def load(cls, config: RewardConfig, prior: Prior) -> Reward | None:
        """Load the scorer; None where nothing is to be weighed. Raises UserError when it cannot be read."""
        if config.n == 1:
            return None
        from splatdistill.priors.scorers import load_scorer

        return cls(config, load_scorer(config.scorer, prior))

    def combined(
        self, prior: Prior, z: Tensor, found: Sequence[Distillation], texts: list[str]
    ) -> Distillation:
        """Return one distillation of latents z [V,C,h,w] from n of them; x0_hat and the like are the best's.

        texts [V]: what each view should show.
        """
        with torch.no_grad():
            scores = torch.stack([self.scorer.agreement(prior.decode(one.x0_hat), texts) for one in found])
            weights = reward_weights(self.scorer.scale * scores, self.config.rule)  # [n, V]
            gradients = torch.stack([one.gradient for one in found])
            gradient = (ops.send(weights, gradients)[..., None, None, None] * gradients).sum(0)
            best = scores.argmax(0).tolist()
            picked = {
                name: torch.stack([getattr(found[k], name)[view] for view, k in enumerate(best)])
                for name in ("x0_hat", "noise", "z_t")
            }
        target = z.detach() - gradient
        loss = 0.5 * (z - target).square().sum() / len(z)
        return replace(found[0], loss=loss, gradient=gradient, target=target, **picked)


def reward_weights(rewards: Tensor, rule: str) -> Tensor:
    """Return the weights [n,V] of evaluations with these rewards [n,V]; see `RewardConfig`."""
    if rule == "soft":
        return rewards.softmax(0)
    best = torch.zeros_like(rewards).scatter(0, rewards.argmax(0, keepdim=True), 1.0)
    if rule == "best":
        return best
    worst = torch.zeros_like(rewards).scatter(0, rewards.argmin(0, keepdim=True), 1.0)
    return 0.9 * best - 0.1 * worst
