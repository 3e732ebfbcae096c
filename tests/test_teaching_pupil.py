from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from splatdistill.teaching import pupil, shards
from splatdistill.teaching.compositions import RING, VIEWS

WORDS = {"red": 2, "car": 3, "dog": 4}
SETTINGS = pupil.PupilSettings(batch=10, outer_width=16, width=32, layers=1, patch_size=2)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> pupil.Examples:
    """Six scenes of random latents."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("latents") / "latents-00000.npz"
    flat = rng.normal(size=(6, 1, 4, 1, 1))  # of one color each: easy to learn
    cameras = np.stack([rng.uniform(0, 360, (6, VIEWS)), rng.uniform(0, 45, (6, VIEWS))], -1)
    more = np.broadcast_to([3.0, 42.0], (6, VIEWS, 2))
    np.savez(
        path,
        latents=(flat + rng.normal(0, 0.1, (6, VIEWS, 4, 8, 8))).astype(np.float16),
        captions=np.array([["red car", "car", "dog"]] * 6),
        cameras=np.concatenate([cameras, more], -1).astype(np.float32),
        backgrounds=rng.uniform(size=(6, 3)).astype(np.float32),
    )
    return pupil.Examples.load([path], WORDS)


def make(examples: pupil.Examples, **changes) -> pupil.Pupil:
    return pupil.Pupil(replace(SETTINGS, **changes), 5, pupil.statistics(examples.latents))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pupil, "TEXT_WIDTH", 16)
    real = pupil.ViewTransformer

    def tiny(**given: Any):
        sizes: dict[str, Any] = given | {"sample_size": 8, "head": 16, "told": 16}
        return real(**sizes)

    monkeypatch.setattr(pupil, "ViewTransformer", tiny)


@pytest.mark.parametrize(("share", "views"), [((1, 0, 0), 1), ((0, 1, 0), RING), ((0, 0, 1), VIEWS)])
def test_a_batch_is_decided_by_seed_and_step(examples, share, views):
    settings = replace(SETTINGS, shares=share)
    one, same, other = (pupil.draw_batch(settings, step, examples) for step in (3, 3, 4))
    assert one.views == views and len(one.ids) == settings.batch // views
    assert torch.equal(one.noise, same.noise) and torch.equal(one.clean, same.clean)
    assert not torch.equal(one.noise, other.noise)
    noisy = one.t.view(-1, views)[:, 1:] if views == VIEWS else one.t.view(-1, views)
    assert (noisy == noisy[:, :1]).all() and (noisy >= 0).all()


def test_a_shown_picture_is_clean_and_gives_the_azimuths(examples):
    batches = [pupil.draw_batch(replace(SETTINGS, shares=(0, 0, 1)), step, examples) for step in range(8)]
    for batch in batches:
        t, relative = batch.t.view(-1, VIEWS), batch.relative.view(-1, VIEWS)
        assert (t[:, 0] < 0).all()
        azimuth = batch.cameras[:, 0].view(-1, VIEWS)[:, 0]
        assert (azimuth[relative[:, 0] > 0] == 0).all()
    assert {float(r) for batch in batches for r in batch.relative} == {0.0, 1.0}


def test_the_loss_leaves_out_what_is_shown(examples):
    made = make(examples)
    batch = pupil.draw_batch(replace(SETTINGS, shares=(0, 0, 1)), 0, examples)
    noise = batch.noise.clone()
    noise[batch.t < 0] = 100.0  # a clean view has none of it
    torch.testing.assert_close(made.loss(replace(batch, noise=noise)), made.loss(batch))


def test_an_interrupted_run_comes_to_the_same(examples, tmp_path):
    whole, first = make(examples), make(examples)
    pupil.train(whole, examples, tmp_path, 6, fall=3)
    (tmp_path / "cut").mkdir()
    pupil.train(first, examples, tmp_path / "cut", 6, fall=3, seconds=0)
    while first.step < 6:  # one step at a time, each in a new pupil
        again = make(examples)
        again.load(tmp_path / "cut" / "pupil.pt")
        rate = min(1.0, (again.step + 1) / pupil.WARMUP, (6 - again.step) / 3)
        again.networks.zero_grad()
        again.loss(pupil.draw_batch(again.settings, again.step, examples)).backward()
        again.update(rate)
        again.save(tmp_path / "cut" / "pupil.pt")
        first = again
    for a, b in zip(whole.average.parameters(), first.average.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_it_learns(examples, tmp_path):
    made = make(examples)
    batch = pupil.draw_batch(SETTINGS, 10_000, examples)
    before = float(made.loss(batch))
    pupil.train(made, examples, tmp_path, 120)
    assert float(made.loss(batch)) < 0.9 * before
    assert (tmp_path / "losses.jsonl").read_text().count("\n") == 120 // pupil.LOG


def test_latents_stand_beside_all_else_of_a_shard(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, VIEWS, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures-00000.npz", pictures=pictures, captions=np.array([["a"]] * 3))
    (tmp_path / "out").mkdir()
    made = shards.encode_shards(tmp_path, tmp_path / "out", lambda rgb: rgb[:, :, ::8, ::8])
    assert made == 1 and shards.encode_shards(tmp_path, tmp_path / "out", lambda rgb: rgb) == 0
    with np.load(tmp_path / "out" / "latents-00000.npz") as arrays:
        assert sorted(arrays.files) == ["captions", "latents"]
        expected = pictures[:, :, ::8, ::8].transpose(0, 1, 4, 2, 3) / 255.0
        np.testing.assert_allclose(arrays["latents"], expected, atol=1e-3)


def test_half_precision_as_on_a_gpu_learns_the_same(examples):
    made = make(examples)
    batch = pupil.draw_batch(SETTINGS, 0, examples)
    full = made.loss(batch)
    made.half = True
    half = made.loss(batch)
    half.backward()
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.0)
    grads = [p.grad for p in made.networks.parameters() if p.grad is not None]
    assert grads and all(bool(g.isfinite().all()) for g in grads)


def test_packed_pictures_come_back(tmp_path):
    shade = np.linspace(0, 255, 32).astype(np.uint8)
    pictures = np.broadcast_to(shade[:, None, None], (3, VIEWS, 32, 32, 3)).copy()
    pictures[1] //= 2
    np.savez(tmp_path / "pictures-00000.npz", pictures=pictures, captions=np.array([["a"], ["b"], ["c"]]))
    assert shards.pack(tmp_path, tmp_path / "pack", 1) == 3
    (tmp_path / "out").mkdir()
    assert shards.unpack(tmp_path / "pack", tmp_path / "out") == 1
    with np.load(tmp_path / "out" / "pictures-00000.npz") as arrays:
        assert arrays["captions"].tolist() == [["a"], ["b"], ["c"]]
        assert np.abs(arrays["pictures"].astype(int) - pictures).mean() < 4
