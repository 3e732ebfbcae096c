"""Metrics against closed forms and known extremes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_clip
from transformers import CLIPModel, CLIPProcessor

from splatdistill.measure import metrics
from splatdistill.measure.groups import IQA
from splatdistill.priors.clip import Scorer


def test_r_precision_counts_the_nearest_text() -> None:
    images, texts = torch.eye(3)[[0, 1, 2]], torch.eye(3)[[0, 2, 1]]
    assert metrics.r_precision(images, texts, torch.tensor([0, 1, 1])).tolist() == [True, False, True]


def test_clip_score_is_the_cosine_in_percent_and_never_negative() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert metrics.clip_score(images, texts).tolist() == pytest.approx([100.0, 60.0, 0.0])


def with_tensors(folder: Path) -> Any:
    """Return a CLIP model whose features are tensors, as before transformers 5."""
    model: Any = CLIPModel.from_pretrained(folder)
    for name in ("get_text_features", "get_image_features"):
        found = getattr(model, name)
        setattr(model, name, lambda *args, found=found: found(*args).pooler_output)
    return model


# The second size is shrunk to the model's own; Pillow, which does it there, rounds to bytes.
@pytest.mark.parametrize(("side", "tolerance"), [(28, 1e-5), (64, 0.02)])
def test_clip_score_and_clip_iqa_are_those_of_torchmetrics(tmp_path, side: int, tolerance: float) -> None:
    other = pytest.importorskip("torchmetrics.functional.multimodal")
    folder = make_clip(tmp_path)
    theirs = with_tensors(folder), CLIPProcessor.from_pretrained(folder)
    pictures = torch.randint(256, (4, 3, side, side), generator=torch.Generator().manual_seed(0))
    pictures[1:3] = torch.tensor([[200, 200, 200], [255, 0, 0]])[..., None, None]
    scorer = Scorer.load(folder)
    images = scorer.images(pictures / 255)
    texts = ["a red dog", "a dog", "a red mushroom, front view", "a mushroom"]
    found = metrics.clip_score(images, scorer.texts(texts))
    assert found.max() - found.min() > 5.0
    for picture, text, score in zip(pictures, texts, found.tolist(), strict=True):
        theirs_too = other.clip_score(picture, text, lambda: theirs).item()
        assert score == pytest.approx(theirs_too, rel=tolerance)
    answers = other.clip_image_quality_assessment(pictures, lambda: theirs, prompts=tuple(IQA))
    for name, words in IQA.items():
        good, bad = scorer.texts([f"{word} photo." for word in words])
        found = metrics.antonym_score(images, good, bad)
        torch.testing.assert_close(found, answers[name], atol=tolerance, rtol=tolerance)


def test_saturation_of_gray_is_zero_and_of_pure_colors_one() -> None:
    images = (
        torch.tensor([[0.4, 0.4, 0.4], [0.9, 0.0, 0.3], [0.0, 0.0, 0.0]])
        .view(3, 3, 1, 1)
        .expand(-1, -1, 4, 4)
    )
    assert metrics.saturation(images).tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_high_frequencies_of_a_checkerboard_and_of_a_slow_wave() -> None:
    grid = torch.arange(16)
    checkers = ((grid[:, None] + grid) % 2).float()
    wave = torch.sin(2 * math.pi * grid / 16).expand(16, 16)
    images = torch.stack([checkers, wave])[:, None].expand(-1, 3, -1, -1)
    assert metrics.high_frequency_ratio(images).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_frechet_distance_of_normal_samples_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0])
    b = torch.randn(20_000, 2, generator=generator) * torch.tensor([3.0, 2.0]) + torch.tensor([1.0, 0.0])
    assert metrics.frechet_distance(a, b) == pytest.approx(1.0 + (3.0 - 1.0) ** 2, abs=0.15)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_diversity_of_equal_and_of_orthogonal_features() -> None:
    same, different = torch.ones(4, 6), torch.eye(6)[:4]
    assert metrics.vendi_score(same) == pytest.approx(1.0) and metrics.vendi_score(
        different
    ) == pytest.approx(4.0)
    assert metrics.pairwise_distance(same) == pytest.approx(0.0)
    assert metrics.pairwise_distance(different) == pytest.approx(1.0)
    assert metrics.pairwise_distance(same[:1]) == 0.0


def test_wilson_interval_has_its_published_values() -> None:
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_bootstrap_interval_is_that_of_the_normal_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.02)
    assert all(math.isnan(bound) for bound in metrics.bootstrap_interval(torch.zeros(0)))


def test_jackknife_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()

    def mean(strata) -> float:
        return sum(sum(items) / len(items) for items in strata) / len(strata)

    low, high = metrics.jackknife_interval(mean, [values])
    half = 1.959964 * torch.tensor(values).std().item() / 30**0.5
    assert (low, high) == pytest.approx((sum(values) / 30 - half, sum(values) / 30 + half), rel=1e-5)
    low, high = metrics.jackknife_interval(mean, [values, values])  # of two independent ones
    assert high - low == pytest.approx(2 * half / 2**0.5, rel=1e-5)
