"""The methods: each the skeleton of core.py with its own noise, weight and published settings."""

import difflib
from dataclasses import replace

from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.guidance.core import Method
from splatdistill.guidance.noise import InversionSettings, random_noise
from splatdistill.schedules import Linear, TimestepSchedule, annealed


def sds_weight(alpha_bar: Tensor) -> Tensor:
    """w = 1 - alpha_bar, DreamFusion's sigma_t^2."""
    return 1.0 - alpha_bar


def x0_weight(alpha_bar: Tensor) -> Tensor:
    """w = sqrt((1 - alpha_bar) / alpha_bar), with which the gradient is z - x0_hat."""
    return ((1.0 - alpha_bar) / alpha_bar).sqrt()


# DreamFusion, 2209.14988: gradient = (1 - ab) (e_g(z_t) - eps), eps ~ N(0, I) fresh each step.
SDS = Method(
    name="sds",
    noise=random_noise,
    weight=sds_weight,
    guidance=100.0,
    timesteps=TimestepSchedule(low=Linear(0.02, 0.02), high=Linear(0.98, 0.50)),
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

METHODS = {method.name: method for method in (SDS, SDI, SDI_PUBLISHED, SDI_PUBLISHED_PERP_NEG)}


def build_method(name: str, inversion: InversionSettings | None = None) -> Method:
    """The method called `name`, with other inversion settings where it inverts and they are given.

    Raises UserError for an unknown name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown method '{name}'; expected one of {', '.join(METHODS)} (nearest: {near})")
    method = METHODS[name]
    if inversion is None or not isinstance(method.noise, InversionSettings):
        return method
    return replace(method, noise=inversion)
