"""The methods' published settings, and how they are found."""

import dataclasses

import pytest
import torch

from splatdistill.config.load import dump, load, resolve
from splatdistill.errors import UserError
from splatdistill.guidance.methods import SDI, SDS, SDIPublished, SDIPublishedPerpNeg
from splatdistill.guidance.noise import Inversion
from splatdistill.guidance.registry import METHODS, find_method
from splatdistill.priors.base import ToyPrior


def test_sdi_is_the_papers() -> None:
    sdi = SDI()
    assert sdi.inversion == Inversion(steps=10, guidance=-7.5, eta=0.3, tau=1 / 30, published=False)
    assert sdi.guidance == 7.5
    assert (sdi.timesteps.range(0.0)[0], sdi.timesteps.range(1.0)[1]) == pytest.approx((0.98, 0.2))


def test_sds_is_dreamfusions() -> None:
    sds = SDS()
    assert sds.guidance == 100.0
    prior, t = ToyPrior(torch.zeros(1, 2, 2)), torch.tensor([100, 900])
    torch.testing.assert_close(sds.weight(prior, t), 1.0 - prior.alphas_cumprod[t])
    assert sds.timesteps.range(1.0)[1] < sds.timesteps.range(0.0)[1] == 0.98


def test_the_published_codes_scales_are_converted() -> None:
    """Without perp-neg the code's e_text + s (e_text - e_null) is guidance s + 1; with it, s."""
    plain, perp_neg = SDIPublished(), SDIPublishedPerpNeg()
    assert (plain.guidance, plain.inversion.guidance) == (8.5, -6.5)
    assert (perp_neg.guidance, perp_neg.inversion.guidance) == (7.5, -7.5)
    assert plain.inversion.published and plain.inversion.tau == perp_neg.inversion.tau == 0.1


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown method 'sdi_publish'.*sds, sdi.*nearest: sdi_published\)"):
        find_method("sdi_publish")


def another(value: object) -> str:
    """Return a word for another valid value of a setting."""
    if isinstance(value, bool):
        return "false" if value else "true"
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str(value * 0.5 if value else 0.25)
    if isinstance(value, tuple):
        return str([0.5 * item for item in value])
    return "sqrt" if value == "linear" else "linear" if value == "sqrt" else f"another {value}"


def words(settings: object, prefix: str) -> list[str]:
    """Return `key=value` for every setting of a dataclass, each another than its own."""
    found = []
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        key = f"{prefix}.{field.name}"
        found += words(value, key) if dataclasses.is_dataclass(value) else [f"{key}={another(value)}"]
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_can_be_set_and_survives_config_yaml(name: str, tmp_path) -> None:
    own = METHODS[name]()
    asked = words(own, "method")
    config = resolve({"method": name, "prior": "sd21"}, None, asked)
    for word in asked:
        keys = word.split("=")[0].split(".")[1:]
        before, after = own, config.method
        for key in keys:
            before, after = getattr(before, key), getattr(after, key)
        assert after != before, word
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(path) == config and type(load(path).method) is METHODS[name]
