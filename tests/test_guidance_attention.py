"""Words found in a splat by a teacher's cross-attention, on a tiny random pipeline."""

from typing import Any

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.guidance.attention import lifted, recorded, views_around, words_found
from splatdistill.priors import load_prior
from splatdistill.priors.base import ToyPrior
from splatdistill.scene.gaussians import from_tensors, init_blob, joined


@pytest.fixture(scope="module")
def prior(teacher):
    return load_prior(teacher, "cpu", torch.float32)


def pair() -> torch.nn.ParameterDict:
    """Return two opaque blobs, one at +z and one at -z."""
    parts = []
    for z in (0.5, -0.5):
        blob = init_blob(50, 0.2, opacity=0.9, generator=torch.Generator().manual_seed(0))
        parts.append(from_tensors(**{**blob, "means": blob["means"].detach() + torch.tensor([0, 0, z])}))
    return joined(*parts)


def test_what_is_lifted_is_the_mean_of_the_map_where_a_gaussian_is_seen():
    scene, cameras = pair(), views_around(32)
    even = lifted(scene, cameras, torch.full((len(cameras), 32, 32), 0.7))
    assert even.isfinite().any()
    torch.testing.assert_close(even[even.isfinite()], torch.full_like(even[even.isfinite()], 0.7))
    above = torch.zeros(len(cameras), 32, 32)
    above[:, :16] = 1.0
    shares = lifted(scene, cameras, above)
    assert shares[:50].nanmean() > 0.9 and shares[50:].nanmean() < 0.1


def test_what_no_view_sees_has_no_share():
    far = init_blob(3)
    scene = from_tensors(**{**far, "means": far["means"].detach() + 100.0})
    assert lifted(scene, views_around(16), torch.ones(len(views_around(16)), 16, 16)).isnan().all()


def test_attention_is_recorded_as_probabilities_and_only_within_the_block(prior):
    z, t = torch.zeros(2, *prior.latent_shape), torch.tensor([100, 100])
    embeddings = prior.embed(["a red dog"] * 2)
    plain = prior.network(z, t, embeddings)
    with recorded(prior.unet) as seen:
        watched = prior.network(z, t, embeddings)
    count = len(seen)
    assert count and all(scores.ndim == 4 and len(scores) == 2 for scores in seen)
    for scores in seen:
        torch.testing.assert_close(scores.sum(-1), torch.ones(scores.shape[:-1]))
    torch.testing.assert_close(watched, plain)
    prior.network(z, t, embeddings)
    assert len(seen) == count


def test_the_tokens_of_words_are_told_from_the_others(prior):
    mine, others = prior.word_places("a red dog, front view", ["dog"])
    assert mine == [3] and 3 not in others and others[:2] == [1, 2]


def test_words_choose_some_gaussians_always_the_same(prior):
    scene = init_blob(150, opacity=0.6, generator=torch.Generator().manual_seed(1))
    found = words_found(prior, scene, "the dog", "a red dog")
    assert 0 < found.sum() < 150 and torch.equal(found, words_found(prior, scene, "the dog", "a red dog"))


def test_the_shipped_kind_of_teacher_looks_at_words_from_all_views_of_a_scene(views):
    prior: Any = load_prior(views, "cpu", torch.float32)
    assert prior.word_places("a red car on top of a mug", ["car"]) == ([1], [0, 5])
    assert prior.word_places("a sedan on top of a mug", ["sedan"])[0] == [0]  # as it is read
    scene = init_blob(150, opacity=0.6, generator=torch.Generator().manual_seed(1))
    found = words_found(prior, scene, "the car", "a red car on top of a mug")
    assert 0 < found.sum() < 150


def test_attention_to_words_is_what_a_layer_sees(views):
    """Its shares are those by which the words' values enter: seen with values of one for them, else zero."""
    prior: Any = load_prior(views, "cpu", torch.float32)
    layer = prior.unet.inner[0]
    rng = torch.Generator().manual_seed(0)
    x, told = torch.randn(2, 4, 16, layer.width, generator=rng), torch.randn(2, 4, 1, 16, generator=rng)
    text = torch.randn(2, 20, 16, generator=rng)
    shares = layer.attention(x, told, text)
    assert shares.shape == (8, layer.width // layer.head, 16, 20) and bool((shares.sum(-1) < 1).all())
    scale, shift, _ = layer.modulate(told).chunk(3, -1)
    normed = torch.nn.functional.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
    q, k, v, _ = layer._entering(normed, text)
    ones = torch.zeros_like(v)
    ones[:, :, -20:] = 1.0
    seen = torch.nn.functional.scaled_dot_product_attention(q, k, ones)[..., 0]  # [G, heads, views * tokens]
    seen = seen.unflatten(2, (4, 16)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(shares.sum(-1), seen, atol=1e-5, rtol=1e-4)


def test_a_teacher_without_words_says_so():
    with pytest.raises(UserError, match="cross-attention"):
        words_found(ToyPrior(torch.zeros(3, 4, 4)), init_blob(5), "the dog", "a dog")


def test_words_must_name_something(prior):
    with pytest.raises(UserError, match="words such as"):
        words_found(prior, init_blob(5), "the", "a dog")
