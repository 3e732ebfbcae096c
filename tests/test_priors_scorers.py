"""Scorers: the shipped judge names what a picture shows, on any plain background, with a gradient."""

from typing import Any

import pytest
import torch
from tiny import make_clip

from splatdistill.errors import UserError
from splatdistill.priors import album, load_prior
from splatdistill.priors.base import ToyPrior
from splatdistill.priors.clip import Scorer
from splatdistill.priors.scorers import Agrees, load_scorer, on_white


@pytest.fixture(scope="module")
def prior() -> Any:
    return load_prior("real", dtype=torch.float32)


@pytest.fixture(scope="module")
def judge(prior: Any) -> Agrees:
    return load_scorer("judge", prior)


def shown(prior: Any, noun: str, background: float) -> torch.Tensor:
    """Return the album's first picture of a noun before a gray, [1, 3, S, S]."""
    page = prior.album.page(prior.album.of_noun[noun][0])
    seen = torch.from_numpy(page.pictures[1:2])[None]
    return album.before(seen, torch.zeros(1), torch.full((1, 3), background))[0]


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_the_right_text_agrees_most(prior: Any, judge: Agrees, background: float) -> None:
    texts = ["a hamburger", "a chair", "a dog"]
    with torch.no_grad():
        scores = judge.agreement(shown(prior, "hamburger", background).expand(3, -1, -1, -1), texts)
    assert scores.argmax() == 0 and scores[0] > scores[1:].max() + 2


def test_the_gradient_is_that_of_the_agreement(prior: Any, judge: Agrees) -> None:
    picture = shown(prior, "hamburger", 1.0).requires_grad_()
    judge.agreement(picture, ["a chair"]).sum().backward()
    assert picture.grad is not None
    along = picture.grad / picture.grad.norm()
    with torch.no_grad():
        up, down = (judge.agreement(picture + s * along, ["a chair"]).sum() for s in (0.01, -0.01))
    torch.testing.assert_close(picture.grad.norm(), (up - down) / 0.02, rtol=0.15, atol=0.0)


def test_what_shows_nothing_has_a_gradient_of_zero(judge: Agrees) -> None:
    empty = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    judge.agreement(empty, ["a chair"]).sum().backward()
    assert empty.grad is not None and not empty.grad.any()


def test_a_plain_background_becomes_white() -> None:
    picture = torch.full((1, 3, 8, 8), 0.5)
    picture[..., 2:6, 2:6] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    seen = on_white(picture)
    assert torch.equal(seen[..., 2:6, 2:6], picture[..., 2:6, 2:6]) and bool((seen[..., :2, :] == 1).all())


def test_another_name_is_a_clip_model_and_a_teacher_without_a_judge_says_so(tmp_path) -> None:
    toy = ToyPrior(torch.zeros(3, 2, 2))
    assert isinstance(load_scorer(str(make_clip(tmp_path)), toy), Scorer)
    toy.name = "sd21"
    with pytest.raises(UserError, match="has no judge"):
        load_scorer("judge", toy)
