"""How far a splat is from what a teacher would draw, on a prior in closed form."""

import torch

from splatdistill.config.load import resolve
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.methods import SDI
from splatdistill.priors.base import ToyPrior
from splatdistill.scene.gaussians import init_blob
from splatdistill.training.origin import Origin
from splatdistill.training.surprise import surprise


def told(mean: float, variance: float = 1e-3, step: float = 0.0) -> float:
    """Return the surprise at a blob of a teacher that draws even pictures of one brightness.

    step: of the grid that the centers were on.
    """
    blob = init_blob(30, 0.3, opacity=0.9, generator=torch.Generator().manual_seed(0))
    raw = init_blob(30, 0.3, opacity=0.9, generator=torch.Generator().manual_seed(0))
    if step:
        with torch.no_grad():
            raw["means"].copy_((raw["means"] / step).round() * step)
    prior = ToyPrior(torch.full((3, 8, 8), mean), variance, image_size=16)
    config = resolve({"prompt": "a dog", "prior": "sd21"}, None, ["views.size=16"])
    return surprise(config, Guide(prior, SDI(), "a dog", views="plain"), Origin(raw, blob))


def test_it_is_the_same_in_every_call():
    assert told(0.0) == told(0.0)


def test_a_teacher_that_draws_such_pictures_is_surprised_less():
    near, far = told(0.8), told(-0.8)  # the background is 1
    assert 0.0 < near < 0.3 * far


def test_a_teacher_that_expects_anything_sees_what_is_there():
    assert told(-0.8, 100.0) < 0.5 * told(-0.8)


def test_rounding_to_a_coarse_grid_explains_up_to_half_of_it():
    assert abs(told(0.8, step=0.2) - 0.5 * told(0.8)) < 1e-6
    assert told(0.8, step=1e-6) == told(0.8)
