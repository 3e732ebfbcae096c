"""The methods: each implements the skeleton of core.py with its own comparison, weight and settings."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.core import Method, score_weight, sds_weight, x0_weight
from splatdistill.guidance.noise import Inversion, inversion_grid, invert, path_along, walk
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps, annealed
from splatdistill.priors.base import Prior, alpha_bar_at


def random_noise(query: Query) -> Comparison:
    """Return fresh noise from N(0, I) and z_t."""
    eps = query.gaussian()
    return Comparison(eps, query.noised(eps))


@dataclass(frozen=True)
class SDS(Method):
    """DreamFusion, 2209.14988: gradient = (1 - ab) (e_g(z_t) - eps), eps ~ N(0, I) fresh each step."""

    name: ClassVar[str] = "sds"

    guidance: float = 100.0
    timesteps: Timesteps = Timesteps(high=(0.98, 0.50))

    def compare(self, query: Query, state: State) -> Comparison:
        """Return fresh noise and z_t."""
        return random_noise(query)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)


@dataclass(frozen=True)
class SJC(Method):
    """Score Jacobian Chaining, 2212.00774, section 4: gradient = (z - D(z + sigma n)) / sigma^2.

    D is the denoiser.
    """

    name: ClassVar[str] = "sjc"

    guidance: float = 100.0
    timesteps: Timesteps = Timesteps(low=(0.01, 0.01), high=(0.97, 0.97))

    def compare(self, query: Query, state: State) -> Comparison:
        """Return fresh noise and z_t."""
        return random_noise(query)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return sqrt(ab / (1 - ab)) [B] at t [B]."""
        return score_weight(prior, t)


@dataclass(frozen=True)
class SDI(Method):
    """Score Distillation via Inversion, 2405.15891, Algorithm 2: gradient = z - x0_hat(z_t).

    z_t is z with the noise kappa(z) that inversion finds.

    Args:
        inversion: how the noise kappa is found.
    """

    name: ClassVar[str] = "sdi"

    timesteps: Timesteps = annealed(0.98, 0.20)
    inversion: Inversion = Inversion()

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (kappa, z_t) by DDIM inversion."""
        return invert(query, self.inversion)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return sqrt((1 - ab) / ab) [B] at t [B]."""
        return x0_weight(prior, t)


@dataclass(frozen=True)
class SDIPublished(SDI):
    """SDI as the authors' code does it.

    There CFG at scale s is e_text + s (e_text - e_null), so its 7.5 (and -7.5 in the inversion) is guidance
    s + 1 here.
    """

    name: ClassVar[str] = "sdi_published"

    guidance: float = 8.5
    inversion: Inversion = Inversion(guidance=-6.5, tau=0.1, published=True)


@dataclass(frozen=True)
class SDIPublishedPerpNeg(SDI):
    """SDI as the authors' code does it with perp-neg, where the code's scale is the usual one."""

    name: ClassVar[str] = "sdi_published_perp_neg"

    inversion: Inversion = Inversion(guidance=-7.5, tau=0.1, published=True)


def source_prediction(query: Query) -> Comparison:
    """Return (e_g(zsrc_t, y_src), z_t): the source's guided prediction under the same noise."""
    eps, source = query.gaussian(), query.source
    return Comparison(query.predict(query.noised(eps, source.z), source.cond), query.noised(eps))


@dataclass(frozen=True)
class DDS(Method):
    """Delta Denoising Score, 2304.07090: gradient = e_g(z_t, y_tgt) - e_g(zsrc_t, y_src), with one eps."""

    name: ClassVar[str] = "dds"
    edits: ClassVar[bool] = True

    def compare(self, query: Query, state: State) -> Comparison:
        """Return the source's prediction and z_t."""
        return source_prediction(query)


@dataclass(frozen=True)
class PDS(Method):
    """Posterior Distillation Sampling, 2311.13831: gradient = ztilde_tgt - ztilde_src.

    ztilde = (z_t' - mu) / sigma.

    Args:
        grid: steps of the trajectory whose neighbors t' < t are compared.
    """

    name: ClassVar[str] = "pds"
    edits: ClassVar[bool] = True

    guidance: float = 100.0
    grid: int = 500

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"pds: expected a grid of at least 1 step, got {self.grid}")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e_src - psi/chi (z - zsrc), z_t); chi (e_g - eps) is the difference of ztilde."""
        eps, z_t, _ = source_prediction(query)
        pull = ops.send(self.coefficients(query.prior, query.t)[1], eps).view(-1, 1, 1, 1)
        return Comparison(eps - pull * (query.z - query.source.z), z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return chi [B] at t [B]."""
        return self.coefficients(prior, t)[0]

    def coefficients(self, prior: Prior, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return chi and psi / chi [B]: the gradient is chi (e_tgt - e_src) + psi (z - zsrc).

        The posterior mean is mu = c_0 x0_hat + c_1 z_t. Its beta is that of one timestep, while t' lies a
        whole step of the grid below t, as in the authors' code: with beta = 1 - ab_t / ab_t' psi would be 0.
        """
        stride = max(len(prior.alphas_cumprod) // self.grid, 1)
        ab, below = alpha_bar_at(prior, t), alpha_bar_at(prior, t - stride)
        alpha = ab / alpha_bar_at(prior, t - 1)
        c_0 = below.sqrt() * (1.0 - alpha) / (1.0 - ab)
        c_1 = alpha.sqrt() * (1.0 - below) / (1.0 - ab)
        sigma = ((1.0 - below) / (1.0 - ab) * (1.0 - alpha)).sqrt()
        chi = c_0 * ((1.0 - ab) / ab).sqrt() / sigma
        psi = (below.sqrt() - c_0 - c_1 * ab.sqrt()) / sigma
        return chi, psi / chi


@dataclass(frozen=True)
class DreamCatalyst(Method):
    """DreamCatalyst, 2407.11394: gradient = chi (e_g(z_t, y_tgt) - e_g(zsrc_t, y_src)) + psi (z - zsrc).

    With tau = t / T, chi = delta + gamma tau^(1 / e) and psi = psi_0 exp(tau): both weigh the noisy levels
    most, and t falls over the run, so that an edit is decided early and detailed late.

    Args:
        delta: chi at t = 0.
        gamma: what chi has more at t = T.
        psi: psi_0, the pull toward the source.
    """

    name: ClassVar[str] = "dreamcatalyst"
    edits: ClassVar[bool] = True

    timesteps: Timesteps = annealed(0.98, 0.02)
    delta: float = 0.2
    gamma: float = 0.8
    psi: float = 0.075

    def __post_init__(self) -> None:
        if self.delta <= 0.0 or self.gamma < 0.0 or self.psi < 0.0:
            raise ValueError("dreamcatalyst: expected delta above 0, gamma and psi of at least 0")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e_src - psi / chi (z - zsrc), z_t)."""
        eps, z_t, _ = source_prediction(query)
        tau = query.t.double() / query.levels
        pull = ops.send(self.psi * tau.exp() / self.weight(query.prior, query.t), eps).view(-1, 1, 1, 1)
        return Comparison(eps - pull.to(eps.dtype) * (query.z - query.source.z), z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return chi [B] at t [B]."""
        return self.delta + self.gamma * (t.double() / len(prior.alphas_cumprod)) ** (1.0 / math.e)


@dataclass(frozen=True)
class CSD(Method):
    """Classifier Score Distillation, 2310.19415: gradient = (1 - ab) (e(z_t, y) - e(z_t, null)).

    A negative prompt takes the null text's place.
    """

    name: ClassVar[str] = "csd"

    guidance: float = 1.0

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e(z_t, null), z_t) at fresh noise."""
        z_t = query.noised(query.gaussian())
        return Comparison(query.predict(z_t, query.cond.with_guidance(0.0)), z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)


@dataclass(frozen=True)
class NFSD(Method):
    """Noise-Free Score Distillation, 2310.17590.

    residual = g (e_y - e_null) + (e_null where t < late T, else e_null - e_negative), which is e_g - eps with
    eps = 0 or e_negative.

    Args:
        negative: the negative text, where the run has no negative prompt; a teacher with a closed vocabulary
            reads the null text in its place.
        late: share of T below which the null prediction counts as noise-free.
    """

    name: ClassVar[str] = "nfsd"

    negative: str = (
        "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, "
        "low-resolution, gloomy"
    )
    late: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.late <= 1.0:
            raise ValueError(f"nfsd: expected late from 0 to 1, got {self.late}")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (0 below late T, else e(z_t, negative); z_t) at fresh noise."""
        z_t = query.noised(query.gaussian())
        (late,) = ops.upload([query.t < self.late * query.levels], z_t.device)
        negative = query.predict(z_t, query.cond.of_other())
        return Comparison(negative.masked_fill(late.view(-1, 1, 1, 1), 0.0), z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)

    def other_texts(self, negative: str, open_vocabulary: bool) -> tuple[str, ...]:
        """Return the run's negative prompt, else this method's own if the teacher can read it."""
        text = negative or (self.negative if open_vocabulary else "")
        return (text,) if text else ()


@dataclass(frozen=True)
class ISM(Method):
    """Interval Score Matching, 2311.11284: gradient = sqrt((1 - ab) / ab) (e_g(z_t, y) - e(z_s, null)).

    Unconditional DDIM inversion reaches s in strides, and one step of random length t.

    Args:
        stride: of the inversion, as a share of T.
        interval: t - s is uniform in this range of shares of T.
    """

    name: ClassVar[str] = "ism"

    stride: float = 0.2
    interval: tuple[float, float] = (0.05, 0.1)

    def __post_init__(self) -> None:
        if not 0.0 < self.stride <= 1.0 or not 0.0 <= self.interval[0] <= self.interval[1] < 1.0:
            raise ValueError("ism: expected 0 < stride <= 1 and 0 <= interval[0] <= interval[1] < 1")

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (e(z_s, null), z_t)."""
        t, null, (low, high) = query.t, query.cond.with_guidance(0.0), self.interval
        s = (t - (query.levels * (low + (high - low) * query.uniform())).long()).clamp(min=0)
        grid = inversion_grid(query.levels, Inversion(steps=round(1 / self.stride)))
        moves = (grid < s[:, None]).sum(dim=1).clamp(min=1)
        z_s = walk(query.prior, query.z, path_along(grid, moves, s), moves, null, clean=True)
        z_t = walk(query.prior, z_s, torch.stack([s, t], dim=1), torch.ones_like(t), null)
        return Comparison(query.predict(z_s, null, s), z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return sqrt((1 - ab) / ab) [B] at t [B]."""
        return x0_weight(prior, t)
