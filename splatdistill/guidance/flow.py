"""Methods of rectified flows. Each is written for any prediction: a flow is one more conversion to noise.

A flow at time s, x_s = (1 - s) z + s eps, is z_t divided by sqrt(ab) + sqrt(1 - ab), and its velocity v
predicts eps - z. So v - (eps - z) = (e(z_t) - eps) / (1 - s), where 1 - s = sqrt(ab) / (sqrt(ab) +
sqrt(1 - ab)).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from splatdistill.guidance.core import Method, x0_weight
from splatdistill.guidance.methods import SDI, random_noise
from splatdistill.guidance.noise import Inversion
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Prior


@dataclass(frozen=True)
class RFDS(Method):
    """Rectified Flow Distillation Sampling, 2406.03293: gradient = v_g(x_s) - (eps - z), eps ~ N(0, I).

    Guidance and timesteps are those of the authors' settings for Stable Diffusion 3.
    """

    name: ClassVar[str] = "rfds"

    guidance: float = 100.0
    timesteps: Timesteps = Timesteps(low=(0.3, 0.3))

    def compare(self, query: Query, state: State) -> Comparison:
        """Return fresh noise and z_t."""
        return random_noise(query)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 / (1 - s) = 1 + sqrt((1 - ab) / ab) [B] at t [B]."""
        return 1.0 + x0_weight(prior, t)


@dataclass(frozen=True)
class RFDSRev(RFDS):
    """RFDS with reversed noise, 2406.03293: first eps <- eps + (1 - s) (v(x_s, text) + z - eps).

    By the relation above that is the prediction e(z_t, text) itself, so that the noise fits the picture.
    """

    name: ClassVar[str] = "rfds_rev"

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e(z_t, text) of fresh noise, z noised with it)."""
        eps = query.predict(random_noise(query).z_t, query.cond.with_guidance(1.0))
        return Comparison(eps, query.noised(eps))


@dataclass(frozen=True)
class FlowSDI(SDI):
    """SDI of a flow: eps by Euler steps x_s' = x_s + (s' - s) v from s = 0; gradient = z - (x_s - s v_g).

    Euler steps of a flow are DDIM's moves. The inverted noise gets none added (eta 0): it would be far from
    every path of the flow. Sources: SDI (2405.15891), with the coupling of FlowDreamer (2408.05008).
    """

    name: ClassVar[str] = "flow_sdi"

    inversion: Inversion = Inversion(eta=0.0)
