"""CLIP's loss: what it prefers, and its gradient."""

import pytest
import torch
from tiny import make_clip

from splatdistill.guidance import clip
from splatdistill.guidance.clip import CLIP, clip_loss
from splatdistill.guidance.core import distill
from splatdistill.priors.base import ToyPrior, cfg
from splatdistill.priors.clip import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """Return a tiny CLIP of random weights."""
    return Scorer.load(make_clip(tmp_path_factory.mktemp("clip")))


def ball(color: tuple[float, float, float]) -> torch.Tensor:
    """Return a disc on white, [1, 3, 64, 64]."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = ((x - 32) ** 2 + (y - 32) ** 2 < 400).float()
    return (inside * torch.tensor(color)[:, None, None] + (1 - inside))[None]


def test_the_gradient_is_that_of_the_loss(scorer: Scorer) -> None:
    picture = ball((0.5, 0.5, 0.5)).requires_grad_()
    clip_loss(scorer, picture, ["a red mushroom"], torch.Generator().manual_seed(0)).backward()
    gradient = picture.grad
    assert gradient is not None
    along, step = gradient / gradient.norm(), 0.05
    with torch.no_grad():
        up, down = (
            clip_loss(scorer, picture + s * along, ["a red mushroom"], torch.Generator().manual_seed(0))
            for s in (step, -step)
        )
    torch.testing.assert_close(gradient.norm(), (up - down) / (2 * step), rtol=0.05, atol=0.0)


def test_more_pictures_are_an_average(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "SMALLEST_CROP", 1.0)  # no crops
    red, green = ball((0.85, 0.09, 0.09)), ball((0.12, 0.6, 0.18))
    text = "a red mushroom"
    both = clip_loss(scorer, torch.cat([red, green]), [text] * 2)
    alone = [clip_loss(scorer, picture, [text]) for picture in (red, green)]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_clip_is_no_residual_of_a_teacher() -> None:
    prior = ToyPrior(torch.zeros(3, 2, 2))
    hidden = prior.embed([""])
    with pytest.raises(ValueError, match="clip"):
        distill(prior, torch.zeros(1, 3, 2, 2), torch.tensor([5]), cfg(hidden, hidden, 1.0), CLIP())
