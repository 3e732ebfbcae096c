"""The methods: each the skeleton of core.py with its own noise, weight and published settings.

gradient = w(t) (e_g(z_t) - eps): the noise source gives z_t and eps, the noise in z_t or another prediction.
"""

import difflib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.guidance.core import Method
from splatdistill.guidance.noise import (
    InversionSettings,
    Pair,
    Query,
    StudentSettings,
    TrajectorySettings,
    Variational,
    inversion_grid,
    path_along,
    random_noise,
    walk,
)
from splatdistill.guidance.schedules import Linear, SqrtAnneal, TimestepSchedule, annealed
from splatdistill.priors.base import Prior, alpha_bar_at

Uniform = TimestepSchedule(low=Linear(0.02, 0.02), high=Linear(0.98, 0.98))


def one(prior: Prior, t: Tensor) -> Tensor:
    """w = 1."""
    return torch.ones(len(t), dtype=torch.float64)


def sds_weight(prior: Prior, t: Tensor) -> Tensor:
    """w = 1 - alpha_bar, DreamFusion's sigma_t^2."""
    return 1.0 - alpha_bar_at(prior, t)


def x0_weight(prior: Prior, t: Tensor) -> Tensor:
    """w = sqrt((1 - alpha_bar) / alpha_bar), with which the gradient is z - x0_hat."""
    alpha_bar = alpha_bar_at(prior, t)
    return ((1.0 - alpha_bar) / alpha_bar).sqrt()


# DreamFusion, 2209.14988: gradient = (1 - ab) (e_g(z_t) - eps), eps ~ N(0, I) fresh each step.
SDS = Method(
    name="sds",
    noise=random_noise,
    weight=sds_weight,
    guidance=100.0,
    timesteps=TimestepSchedule(low=Linear(0.02, 0.02), high=Linear(0.98, 0.50)),
)


def score_weight(prior: Prior, t: Tensor) -> Tensor:
    """w = sqrt(alpha_bar / (1 - alpha_bar)), with which the gradient is a difference of scores."""
    return 1.0 / x0_weight(prior, t)


# Score Jacobian Chaining, 2212.00774, section 4: gradient = (z - D(z + sigma n)) / sigma^2, D the denoiser.
SJC = Method(
    name="sjc",
    noise=random_noise,
    weight=score_weight,
    guidance=100.0,
    timesteps=TimestepSchedule(low=Linear(0.01, 0.01), high=Linear(0.97, 0.97)),
)

# Score Distillation via Inversion, 2405.15891, Algorithm 2: gradient = z - x0_hat(z_t), z_t from kappa(z).
SDI = Method(
    name="sdi",
    noise=InversionSettings(),
    weight=x0_weight,
    guidance=7.5,
    timesteps=annealed(0.98, 0.20),
)

# The same as the authors' code does it. There CFG at scale s is e_text + s (e_text - e_null), so its 7.5 (and
# -7.5 in the inversion) is guidance s + 1 here.
SDI_PUBLISHED = replace(
    SDI,
    name="sdi_published",
    noise=InversionSettings(guidance=-6.5, tau=0.1, published=True),
    guidance=8.5,
)

# With perp-neg, the code's scale is the usual one.
SDI_PUBLISHED_PERP_NEG = replace(
    SDI_PUBLISHED,
    name="sdi_published_perp_neg",
    noise=InversionSettings(guidance=-7.5, tau=0.1, published=True),
    guidance=7.5,
)

# Diverse Score Distillation, 2412.06780: gradient = (1 - ab) (e_g(z_t) - e_1(z_tdelta)), both noised with the
# guided prediction eps* at t_delta on the DDIM path from the run's own seed.
DSD = Method(
    name="dsd",
    noise=TrajectorySettings(),
    weight=sds_weight,
    guidance=7.5,
    timesteps=TimestepSchedule(low=SqrtAnneal(0.98, 0.32), high=SqrtAnneal(0.98, 0.32)),
)

# In the authors' code, too, CFG at s means guidance s + 1 without perp-neg: 8.5, and 2 where the paper has 1.
DSD_PUBLISHED = replace(DSD, name="dsd_published", noise=TrajectorySettings(scale=2.0), guidance=8.5)


def source_prediction(asked: Query) -> Pair:
    """(e_g(zsrc_t, y_src), z_t): the source's guided prediction under the same noise."""
    eps, source = asked.gaussian(), asked.source
    return asked.predict(asked.noised(eps, source.z), source.cond), asked.noised(eps)


# Delta Denoising Score, 2304.07090: gradient = e_g(z_t, y_tgt) - e_g(zsrc_t, y_src), one eps for both.
DDS = Method(name="dds", noise=source_prediction, weight=one, guidance=7.5, timesteps=Uniform, edits=True)


PDS_STEPS = 500  # its grid


def pds_coefficients(prior: Prior, t: Tensor) -> tuple[Tensor, Tensor]:
    """chi and psi / chi [B], with which PDS's gradient is chi (e_tgt - e_src) + psi (z - zsrc).

    The posterior mean is mu = c_0 x0_hat + c_1 z_t. Its beta is that of one timestep, while t' lies a whole
    step of the grid below t, as in the authors' code: with beta = 1 - ab_t / ab_t' psi would be zero.
    """
    stride = max(len(prior.alphas_cumprod) // PDS_STEPS, 1)
    ab, below = alpha_bar_at(prior, t), alpha_bar_at(prior, t - stride)
    alpha = ab / alpha_bar_at(prior, t - 1)
    c_0 = below.sqrt() * (1.0 - alpha) / (1.0 - ab)
    c_1 = alpha.sqrt() * (1.0 - below) / (1.0 - ab)
    sigma = ((1.0 - below) / (1.0 - ab) * (1.0 - alpha)).sqrt()
    chi = c_0 * ((1.0 - ab) / ab).sqrt() / sigma
    psi = (below.sqrt() - c_0 - c_1 * ab.sqrt()) / sigma
    return chi, psi / chi


def posterior_difference(asked: Query) -> Pair:
    """(e_src - psi/chi (z - zsrc), z_t): chi (e_g - eps) is then the difference of stochastic latents."""
    eps, z_t = source_prediction(asked)
    pull = pds_coefficients(asked.prior, asked.t)[1].view(-1, 1, 1, 1).to(eps)
    return eps - pull * (asked.z - asked.source.z), z_t


# Posterior Distillation Sampling, 2311.13831: gradient = ztilde_tgt - ztilde_src, where
# ztilde = (z_t' - mu) / sigma.
PDS = Method(
    name="pds",
    noise=posterior_difference,
    weight=lambda prior, t: pds_coefficients(prior, t)[0],
    guidance=100.0,
    timesteps=Uniform,
    edits=True,
)


def null_prediction(asked: Query) -> Pair:
    """(e(z_t, null), z_t) at fresh noise."""
    z_t = asked.noised(asked.gaussian())
    return asked.predict(z_t, asked.cond.with_guidance(0.0)), z_t


# Classifier Score Distillation, 2310.19415: gradient = (1 - ab) (e(z_t, y) - e(z_t, null)); a negative prompt
# takes the null text's place.
CSD = Method(name="csd", noise=null_prediction, weight=sds_weight, guidance=1.0, timesteps=Uniform)

NFSD_NEGATIVE = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)


def negative_prediction(asked: Query) -> Pair:
    """(0 below 0.2 T, else e(z_t, negative); z_t) at fresh noise."""
    z_t = asked.noised(asked.gaussian())
    late = (asked.t < 0.2 * asked.levels).view(-1, 1, 1, 1).to(z_t.device)
    return asked.predict(z_t, asked.cond.negated()).masked_fill(late, 0.0), z_t


# Noise-Free Score Distillation, 2310.17590: residual = g (e_y - e_null) + (e_null where t < 200, else
# e_null - e_negative), that is e_g - eps with eps = 0 or e_negative.
NFSD = Method(
    name="nfsd",
    noise=negative_prediction,
    weight=sds_weight,
    guidance=7.5,
    timesteps=Uniform,
    negative=NFSD_NEGATIVE,
)


@dataclass(frozen=True)
class Interval:
    """How ISM noises: unconditional DDIM inversion in strides to s, and one step of a random length to t.

    stride and interval are shares of T.
    """

    stride: float = 0.2
    interval: tuple[float, float] = (0.05, 0.1)

    def __call__(self, asked: Query) -> Pair:
        """(e(z_s, null), z_t)."""
        t, null, (low, high) = asked.t, asked.cond.with_guidance(0.0), self.interval
        s = (t - (asked.levels * (low + (high - low) * asked.uniform())).long()).clamp(min=0)
        grid = inversion_grid(asked.levels, InversionSettings(steps=round(1 / self.stride)))
        moves = (grid < s[:, None]).sum(dim=1).clamp(min=1)
        z_s = walk(asked.prior, asked.z, path_along(grid, moves, s), moves, null, clean=True)
        z_t = walk(asked.prior, z_s, torch.stack([s, t], dim=1), torch.ones_like(t), null)
        return asked.predict(z_s, null, s), z_t


# Interval Score Matching, 2311.11284: gradient = sqrt((1 - ab) / ab) (e_g(z_t, y) - e(z_s, null)).
ISM = Method(name="ism", noise=Interval(), weight=x0_weight, guidance=7.5, timesteps=Uniform)

# Variational Score Distillation, 2305.16213: gradient = (1 - ab) (e_g(z_t, y) - e_lora(z_t, y, camera)).
VSD = Method(
    name="vsd",
    noise=Variational(),
    weight=sds_weight,
    guidance=7.5,
    timesteps=TimestepSchedule(low=Linear(0.02, 0.02), high=Linear(0.98, 0.50)),
)

# Dream Fields, 2112.01455, and CLIP-Mesh, 2203.13333: no teacher, but 100 (1 - cos(picture, text)) by CLIP.
CLIP = Method(name="clip", noise=random_noise, weight=one, guidance=1.0, timesteps=Uniform, by_clip=True)

SDIS = (SDI, SDI_PUBLISHED, SDI_PUBLISHED_PERP_NEG)
METHODS = {m.name: m for m in (SDS, *SDIS, DSD, DSD_PUBLISHED, DDS, PDS, CSD, NFSD, ISM, VSD, CLIP, SJC)}


def build_method(
    name: str,
    inversion: InversionSettings | None = None,
    student: StudentSettings | None = None,
    seed: int = 0,
) -> Method:
    """The method called `name`, with other settings where it inverts or has a student and they are given.

    seed: where DSD's path starts, and VSD's student. Raises UserError for an unknown name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown method '{name}'; expected one of {', '.join(METHODS)} (nearest: {near})")
    method = METHODS[name]
    if isinstance(method.noise, TrajectorySettings):
        return replace(method, noise=replace(method.noise, seed=seed))
    if isinstance(method.noise, Variational):
        return replace(method, noise=Variational(student, seed))
    if inversion is None or not isinstance(method.noise, InversionSettings):
        return method
    return replace(method, noise=inversion)
