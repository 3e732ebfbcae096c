"""Prompts: view words, perp-neg weights against the published formulas, the cache and the branches."""

# wrong arguments on purpose
# pyright: reportArgumentType=false

import math

import pytest
import torch

from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import SDS
from splatdistill.guidance.prompts import (
    PromptCache,
    ViewPrompts,
    conditioning,
    perp_neg_mix,
    pick_backgrounds,
    view_word,
)
from splatdistill.priors.base import ToyPrior, cut_to_fit
from splatdistill.scene.cameras import orbit


def test_a_long_prompt_is_cut_before_the_view_and_the_same_in_all_views():
    def fit(text, suffixes):
        return cut_to_fit(text, suffixes, lambda whole: len(whole.split()) <= 8)

    prompts = ViewPrompts("one two three, four five six seven eight nine", "blurry " * 9, fit=fit)
    assert prompts.text("front view", "white") == "one two three, four, front view, white background"
    assert prompts.text("overhead view", "white").startswith("one two three, four, overhead")
    assert prompts.text("back view") == "one two three, four five six, back view"
    assert prompts.null_text("white") == "blurry " * 5 + "blurry, white background"
    first, second = prompts.left_out(["white", None])
    assert first.endswith("left out is: five six seven eight nine") and "negative prompt" in second
    assert ViewPrompts("a dog", fit=fit).left_out() == []


class CountingPrior(ToyPrior):
    """Each text has a random mean of its own; remembers what it embedded."""

    def __init__(self):
        super().__init__(torch.zeros(4, 2, 2))
        self.asked: list[str] = []

    def embed(self, texts):
        self.asked += texts
        seeds = [sum(map(ord, text)) for text in texts]
        return torch.stack(
            [torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )


def views(*angles):
    azimuth, elevation = zip(*angles, strict=True)
    return orbit(list(azimuth), list(elevation), 3.0, 40.0, 64, 64)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0, 0, "front view"),
        (44.9, 0, "front view"),
        (-44.9, 0, "front view"),
        (330, 10, "front view"),
        (45, 0, "side view"),
        (-90, 0, "side view"),
        (135, 0, "side view"),
        (225, 0, "side view"),
        (135.1, 0, "back view"),
        (180, 60, "back view"),
        (540, 0, "back view"),
        (0, 60.1, "overhead view"),
        (180, 80, "overhead view"),
    ],
)
def test_view_words_follow_the_camera_and_overhead_wins(azimuth, elevation, word):
    assert view_word(azimuth, elevation) == word


def test_texts_name_the_view_and_the_background_where_there_is_one():
    cameras = views((0, 0), (180, 0), (90, 70))
    prompts = ViewPrompts("a red mushroom")
    assert prompts.texts(cameras) == [
        "a red mushroom, front view",
        "a red mushroom, back view",
        "a red mushroom, overhead view",
    ]
    assert prompts.texts(cameras, ["gray", None, "white"])[:2] == [
        "a red mushroom, front view, gray background",
        "a red mushroom, back view",
    ]


def test_the_cache_embeds_each_distinct_text_once():
    prior = CountingPrior()
    cache = PromptCache(prior)
    first = cache(["a", "b", "a"])
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    cache(["b", "c"])
    assert prior.asked == ["a", "b", "c"]


def test_backgrounds_come_with_their_names():
    palette = {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5)}
    names, colors = pick_backgrounds(palette, 20, torch.Generator().manual_seed(0))
    assert set(names) == set(palette)
    assert colors.tolist() == [list(palette[name]) for name in names]


def published_perp_neg(azimuth, elevation):
    """2304.04968 in plain python: positive mixture over VIEW_WORDS, weights of (front, side)."""
    decay = lambda a, b, c, r: -(a * math.exp(-b * r) + c)  # noqa: E731
    if elevation > 60:
        return [0, 0, 0, 1], [0, 0]
    azimuth = abs((azimuth + 180) % 360 - 180)
    if azimuth < 90:
        r = 1 - azimuth / 90
        return [r, 1 - r, 0, 0], [decay(4, 0.5, -2.426, r), decay(4, 0.5, -2.426, 1 - r)]
    r = 2 - azimuth / 90
    return [0, r, 1 - r, 0], [decay(1, 0.5, 0.967, r), decay(1, 0.5, -0.606, r)]


def test_perp_neg_agrees_with_the_published_weights_all_around():
    azimuth = torch.arange(-180.0, 400.0, 11.0)
    elevation = torch.linspace(-10.0, 80.0, len(azimuth))
    mix = perp_neg_mix(azimuth, elevation)
    for i in range(len(azimuth)):
        positive, weights = published_perp_neg(azimuth[i].item(), elevation[i].item())
        assert mix.positive[i].tolist() == pytest.approx(positive, abs=1e-6)
        assert mix.weights[:, i].tolist() == pytest.approx(weights, abs=1e-6)


def test_perp_neg_does_not_repel_a_view_from_itself():
    mix = perp_neg_mix(torch.tensor([0.0, 90.0]), torch.zeros(2))
    assert abs(mix.weights[0, 0]) < 2e-3  # front, at the front
    assert abs(mix.weights[1, 1]) < 2e-3  # side, at the side
    assert (mix.weights[[1, 0], [0, 1]] < -1.5).all()


def test_view_conditioning_is_cfg_with_the_negative_prompt_in_the_null_branch():
    cache = PromptCache(CountingPrior())
    cameras = views((0, 0), (180, 0))
    cond = conditioning(ViewPrompts("a dog", negative="blurry"), cache, cameras, guidance=7.5)
    assert torch.equal(cond.embeddings[0], cache(["blurry"] * 2))
    assert torch.equal(cond.embeddings[1], cache(["a dog, front view", "a dog, back view"]))
    assert cond.weights.tolist() == [[-6.5, -6.5], [7.5, 7.5]] and not cond.perp_neg


def test_perp_neg_conditioning_interpolates_embeddings_and_weights_its_negatives():
    cache = PromptCache(CountingPrior())
    cond = conditioning(
        ViewPrompts("a dog"), cache, views((30, 0), (0, 70)), ["gray", None], guidance=10.0, mode="perp_neg"
    )
    front, side = cache(["a dog, front view, gray background", "a dog, side view, gray background"])
    assert cond.perp_neg and cond.embeddings.shape == (4, 2, 1, 16)
    torch.testing.assert_close(cond.embeddings[1, 0], front * 2 / 3 + side / 3)
    assert torch.equal(cond.embeddings[1, 1], cache(["a dog, overhead view"])[0])
    assert torch.equal(cond.embeddings[2, 0], front) and torch.equal(cond.embeddings[3, 0], side)
    _, weights = published_perp_neg(30, 0)
    assert cond.weights[1:, 0].tolist() == pytest.approx([10, 10 * weights[0], 10 * weights[1]], rel=1e-5)
    assert cond.weights[1:, 1].tolist() == [10, 0, 0]


def test_without_a_scale_perp_neg_is_the_null_prediction():
    prior, cameras = ToyPrior(torch.zeros(3, 4, 4)), views((30, 0), (0, 70))
    z, t = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([200, 700])
    gradients = [
        distill(prior, z, t, cond, SDS(), torch.Generator().manual_seed(1)).gradient
        for mode in ("perp_neg", "view")
        for cond in [conditioning(ViewPrompts("a dog"), PromptCache(prior), cameras, guidance=0.0, mode=mode)]
    ]
    torch.testing.assert_close(*gradients)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode"):
        conditioning(ViewPrompts("a"), PromptCache(CountingPrior()), views((0, 0)), mode="other")
