"""The methods' published settings, and how they are chosen."""

# the noise sources here are InversionSettings
# pyright: reportAttributeAccessIssue=false

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.guidance import METHODS, InversionSettings, build_method, random_noise
from splatdistill.priors.base import ToyPrior


def test_sdi_is_the_papers():
    sdi = METHODS["sdi"]
    assert sdi.noise == InversionSettings(steps=10, guidance=-7.5, eta=0.3, tau=1 / 30, published=False)
    assert sdi.guidance == 7.5
    assert (sdi.timesteps.low(0.0), sdi.timesteps.high(1.0)) == pytest.approx((0.98, 0.2))


def test_sds_is_dreamfusions():
    sds = METHODS["sds"]
    assert sds.noise is random_noise and sds.guidance == 100.0
    prior, t = ToyPrior(torch.zeros(1, 2, 2)), torch.tensor([100, 900])
    torch.testing.assert_close(sds.weight(prior, t), 1.0 - prior.alphas_cumprod[t])
    assert sds.timesteps.high(1.0) < sds.timesteps.high(0.0) == 0.98


def test_the_published_codes_scales_are_converted():
    """Without perp-neg the code's e_text + s (e_text - e_null) is guidance s + 1; with it, s."""
    plain, perp_neg = METHODS["sdi_published"], METHODS["sdi_published_perp_neg"]
    assert (plain.guidance, plain.noise.guidance) == (8.5, -6.5)
    assert (perp_neg.guidance, perp_neg.noise.guidance) == (7.5, -7.5)
    assert plain.noise.published and plain.noise.tau == perp_neg.noise.tau == 0.1


def test_other_inversion_settings_replace_those_of_methods_that_invert():
    settings = InversionSettings(steps=4, guidance=0.0, eta=0.0)
    assert build_method("sdi", settings).noise == settings
    assert build_method("sdi") is METHODS["sdi"]
    assert build_method("sds", settings) is METHODS["sds"]


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(UserError, match=r"unknown method 'sdi_publish'.*sds, sdi.*nearest: sdi_published\)"):
        build_method("sdi_publish")
