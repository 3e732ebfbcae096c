"""SDS as a bridge between two distributions of images: what is there, named by its faults, and the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from splatdistill.guidance.core import PROMPT, Method, sds_weight
from splatdistill.guidance.methods import random_noise
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Prior


@dataclass(frozen=True)
class SDSBridge(Method):
    """SDS-Bridge, 2406.09417: SDS, then gradient = (1 - ab) (e(z_t, y + target) - e(z_t, y + source)).

    The second stage has no classifier-free guidance: its source text describes what SDS gives.

    Args:
        begin: share of the run at which the second stage begins.
        target: what is added to the prompt for the wanted images, as in the authors' code.
        faults: what is added to it for the present ones. A teacher with a closed vocabulary reads the prompt
            alone as target, and the null text as source.
    """

    name: ClassVar[str] = "sds_bridge"

    guidance: float = 100.0
    timesteps: Timesteps = Timesteps(high=(0.98, 0.50))
    begin: float = 0.5
    target: str = ", detailed high resolution, high quality, sharp"
    faults: str = (
        ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= 1.0:
            raise ValueError(f"sds_bridge: expected begin from 0 to 1, got {self.begin}")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return fresh noise and z_t; in the second stage (e of the source, z_t, e of the target)."""
        fresh = random_noise(query)
        if query.progress < self.begin:
            return fresh
        target, source = (query.predict(fresh.z_t, query.cond.of_other(index)) for index in (0, 1))
        return Comparison(source, fresh.z_t, target)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)

    def other_texts(self, negative: str, open_vocabulary: bool) -> tuple[str, ...]:
        """Return the texts of target and source."""
        return (PROMPT + self.target, PROMPT + self.faults) if open_vocabulary else (PROMPT, "")
