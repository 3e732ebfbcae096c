"""How far a splat is from what a teacher would draw, on a prior in closed form."""

import torch

from splatdistill.config.load import resolve
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.methods import SDI
from splatdistill.priors.base import ToyPrior
from splatdistill.scene.gaussians import init_blob
from splatdistill.training.origin import Origin
from splatdistill.training.surprise import surprise


def told(mean: float, variance: float = 1e-3) -> float:
    """Return the surprise at a blob of a teacher that draws even pictures of one brightness."""
    blob = init_blob(30, 0.3, opacity=0.9, generator=torch.Generator().manual_seed(0))
    prior = ToyPrior(torch.full((3, 8, 8), mean), variance, image_size=16)
    config = resolve({"prompt": "a dog", "prior": "sd21"}, None, ["views.size=16"])
    return surprise(config, Guide(prior, SDI(), "a dog", views="plain"), Origin(blob, blob))


def test_it_is_the_same_in_every_call():
    assert told(0.0) == told(0.0)


def test_a_teacher_that_draws_such_pictures_is_surprised_less():
    near, far = told(0.8), told(-0.8)  # the background is 1
    assert 0.0 < near < 0.3 * far


def test_a_teacher_that_expects_anything_sees_what_is_there():
    assert told(-0.8, 100.0) < 0.5 * told(-0.8)
