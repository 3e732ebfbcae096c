import pytest
import torch
from format_errors import scene

from splatdistill import formats
from splatdistill.scene.gaussians import from_tensors
from splatdistill.scene.rounding import LEAST, coarseness, step_of, unrounded


def rounded(gaussians, centers=0.1, scales=0.5):
    """Return a scene whose centers and log scales are rounded to multiples."""
    values = {name: value.detach().clone() for name, value in gaussians.items()}
    values["means"] = (values["means"] / centers).round() * centers
    values["scales"] = (values["scales"] / scales).round() * scales
    return from_tensors(**values)


@pytest.mark.parametrize("step", [1e-3, 0.05, 7.0])
@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_the_step_of_a_grid_is_found(step, offset):
    levels = torch.randint(-8, 9, (500,), generator=torch.Generator().manual_seed(0))
    assert step_of(levels * step + offset * step) == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize(
    "values", [torch.randn(500), torch.ones(500), torch.arange(500) * 0.1, torch.empty(0)]
)
def test_other_values_have_none(values):
    assert step_of(values) == 0.0


def test_narrowing_gives_back_the_spread_that_rounding_added():
    """Of many round Gaussians in one place: the variance of what they cover together is that of before."""
    generator = torch.Generator().manual_seed(0)
    original = scene(20_000, 0)
    with torch.no_grad():
        original["means"].copy_(0.3 * torch.randn(20_000, 3, generator=generator))
        original["scales"].copy_((torch.randint(-5, -2, (20_000, 1), generator=generator) / 2).expand(-1, 3))

    def spread(gaussians):
        return gaussians["means"].var(0) + (2 * gaussians["scales"]).exp().mean(0)

    before, after = spread(original), spread(unrounded(rounded(original, 0.2)))
    assert (spread(rounded(original, 0.2)) - before).min() > 0.9 * 0.2**2 / 12
    assert torch.allclose(before, after, atol=0.2 * 0.2**2 / 12)


def test_nothing_else_changes_and_no_gaussian_vanishes():
    coarse = rounded(scene(2_000, 1), 0.3)
    found = unrounded(coarse)
    assert all(torch.equal(found[name], coarse[name]) for name in coarse if name != "scales")
    narrowing = (2 * (found["scales"] - coarse["scales"])).exp()
    assert narrowing.max() < 1 and narrowing.min() >= LEAST - 1e-5


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_what_a_format_rounds_is_not_coarse(tmp_path, ending):
    formats.write_splat(tmp_path / f"a{ending}", scene(2_000, 0))
    back, _ = formats.read_splat(tmp_path / f"a{ending}")
    assert coarseness(back) < 1e-3
    assert torch.allclose(unrounded(back)["scales"], back["scales"], atol=1e-3)


def test_coarseness_is_that_of_the_grid_beside_the_gaussians():
    whole = scene(2_000, 0)
    found = [coarseness(rounded(whole, step)) for step in (1e-3, 5e-3, 0.3)]
    assert coarseness(whole) == 0.0 and found == sorted(found) and found[-1] == 1.0 and found[0] < 0.01
