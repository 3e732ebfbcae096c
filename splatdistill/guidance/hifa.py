"""HiFA: distillation in latents and in pictures at once."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.core import Distiller, GuideResult, Method, Views, score_weight, sds_weight
from splatdistill.guidance.methods import random_noise
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Prior


@dataclass(frozen=True)
class HiFA(Method):
    """HiFA, 2305.18766: loss = w (|z - z_hat|^2 + pixels |x - D(z_hat)|^2) / 2, w = sqrt(ab (1 - ab)).

    z_hat is the guided x0_hat of SDS's z_t, D the decoder, x the picture. With that w the first term has the
    gradient of SDS, (1 - ab) (e_g(z_t) - eps). t falls with the square root of progress.

    Args:
        pixels: the weight of the term in pictures; it costs one pass of the decoder.
    """

    name: ClassVar[str] = "hifa"

    guidance: float = 100.0
    timesteps: Timesteps = Timesteps("sqrt", (0.98, 0.02), (0.98, 0.02))
    pixels: float = 0.1

    def __post_init__(self) -> None:
        if self.pixels < 0.0:
            raise ValueError(f"hifa: expected pixels of at least 0, got {self.pixels}")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return fresh noise and z_t."""
        return random_noise(query)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)

    def evaluate(
        self, guide: Distiller, views: Views, progress: float, generator: torch.Generator | None
    ) -> GuideResult:
        """Add the term in pictures to the distillation of the latents."""
        found = guide.distill(views, progress, generator)
        assert found.x0_hat is not None
        with torch.no_grad():
            target = guide.prior.decode(found.x0_hat)  # [V, 3, S, S]
            w = self.weight(guide.prior, found.t) * score_weight(guide.prior, found.t)  # as of z - z_hat
            (w,) = ops.upload([w.float()], target.device)
        shown = views.rgb.permute(0, 3, 1, 2)
        if shown.shape != target.shape:
            shown = F.interpolate(
                shown, target.shape[-2:], mode="bilinear", antialias=shown.shape[-1] > target.shape[-1]
            )
        apart = (shown - target).square().flatten(1).sum(1)  # [V]
        return replace(found, loss=found.loss + 0.5 * self.pixels * (w * apart).mean())
