from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from splatdistill.priors import album
from splatdistill.teaching import pupil, shards
from splatdistill.teaching.compositions import RING, VIEWS
from splatdistill.teaching.pages import Pages

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
        ids=np.array([["a", ""], ["b", ""], ["a", "b"], ["lost", ""], ["b", "lost"], ["b", ""]]),
        relations=np.array(["alone", "alone", "on top of", "alone", "and", "alone"]),
    )
    pictures = rng.integers(0, 256, (2, album.PICTURES, album.SIDE, album.SIDE, 4), dtype=np.uint8)
    models = [album.Page(of_one, np.full(3, 0.5)) for of_one in pictures]
    folder = tmp_path_factory.mktemp("pages")
    Pages.save(folder, models, ["a", "b"], [("a", "b", "on top of"), ("b", "lost", "and")])
    return pupil.Examples.load([path], WORDS, Pages.load(folder), encode)


def encode(rgb: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.avg_pool2d(rgb, album.SIDE // 8)
    return torch.cat([small, small[:, :1]], 1)  # [B, 4, 8, 8]


def make(examples: pupil.Examples, **changes) -> pupil.Pupil:
    return pupil.Pupil(replace(SETTINGS, **changes), 5, pupil.statistics(examples.latents))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pupil, "TEXT_WIDTH", 16)
    real = pupil.ViewTransformer

    def tiny(**given: Any):
        sizes: dict[str, Any] = given | {"sample_size": 8, "head": 16, "told": 16}
        return real(**sizes)

    small: Any = tiny
    small.from_pretrained = real.from_pretrained
    monkeypatch.setattr(pupil, "ViewTransformer", small)


def test_a_teacher_is_taught_on_from_its_folder(examples, tmp_path, small):
    taught = make(examples)
    networks = taught.networks
    torch.nn.init.normal_(networks["denoiser"].predict.weight)
    networks["denoiser"].save_pretrained(tmp_path / "transformer")
    networks["text"].save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "model_index.json").write_text('{"step": 7}')
    other = make(examples, seed=9)
    other.adopt(tmp_path)
    assert other.step == 7
    for kept in (other.networks, other.average.module):
        for name, value in networks.state_dict().items():
            assert torch.equal(kept.state_dict()[name], value), name


@pytest.mark.parametrize(("share", "views"), [((1, 0, 0), 1), ((0, 1, 0), RING), ((0, 0, 1), RING)])
def test_a_batch_is_decided_by_seed_and_step(examples, share, views):
    settings = replace(SETTINGS, shares=share)
    one, same, other = (pupil.draw_batch(settings, step, examples) for step in (3, 3, 4))
    assert one.views == views and len(one.ids) == settings.batch // views
    assert torch.equal(one.noise, same.noise) and torch.equal(one.clean, same.clean)
    assert not torch.equal(one.noise, other.noise)
    t = one.t.view(-1, views)
    assert (t == t[:, :1]).all() and (t >= 0).all()
    assert torch.equal(one.shown, same.shown) and one.shown.shape == (len(one.t), album.SHOWN, 4, 8, 8)


def test_a_shown_picture_is_of_the_scene_and_gives_the_azimuths(examples):
    settings = replace(SETTINGS, shares=(0, 0, 1))
    batches = [pupil.draw_batch(settings, step, examples) for step in range(8)]
    for batch in batches:
        assert (batch.offsets[:, 0, 0] == 1).all() and (batch.offsets[:, 1:] == 0).all()
        scenes = examples.latents.float()
        of_scene = (scenes[:, :, None] == batch.shown[None, None, :, 0]).flatten(3).all(3).any(1)  # [6, n]
        clean = (scenes[:, :, None] == batch.clean[None, None]).flatten(3).all(3).any(1)
        assert torch.equal(of_scene, clean) and (of_scene.sum(0) == 1).all()
        turn = torch.atan2(batch.offsets[:, 0, 1], batch.offsets[:, 0, 2])
        counted = batch.relative > 0
        apart = (batch.cameras[:, 0] - turn).sin()
        torch.testing.assert_close(apart[counted], torch.zeros(int(counted.sum())), atol=1e-4, rtol=0)
    assert {float(r) for batch in batches for r in batch.relative} == {0.0, 1.0}


def test_what_has_no_page_or_no_text_is_drawn_without_pictures(examples):
    assert examples.shown.tolist() == [0, 1, 2, -1, -1, 1]
    batches = [pupil.draw_batch(replace(SETTINGS, shares=(1, 0, 0)), step, examples) for step in range(8)]
    silent = torch.cat([(batch.ids == 0).all(1) for batch in batches])
    there = torch.cat([batch.offsets[:, :, 0] for batch in batches])
    assert silent.any() and (there[silent] == 0).all()
    assert 0 < int((there[~silent] == 0).all(1).sum()) < int((~silent).sum())


def test_pictures_beside_a_view_are_the_nearest_at_its_scale(examples):
    pages = examples.pages
    cameras = torch.tensor([[album.AZIMUTHS[4], album.ELEVATIONS[4], album.DISTANCE, album.FOV]])
    shown, offsets = pages.beside(torch.tensor([1]), cameras, torch.ones(1, 3), encode)
    page = pages.pictures[1, 4:5, None]
    expected = encode(album.before(page, torch.zeros(1), torch.ones(1, 3))[:, 0])
    torch.testing.assert_close(shown[0, :1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(offsets[0, 0], torch.tensor([1.0, 0, 1, 0, 0]), atol=1e-5, rtol=0)


def test_a_pair_is_shown_as_the_album_shows_it(examples):
    pages = examples.pages
    collage = album.together(pages.page(0), pages.page(1), "on top of")
    assert np.array_equal(pages.page(2).pictures, collage.pictures)
    assert np.allclose(pages.halves[2], collage.half)


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
    assert shards.pack([tmp_path / "pictures-00000.npz"], tmp_path / "pack") == 3
    (tmp_path / "out").mkdir()
    assert shards.unpack([tmp_path / "pack"], tmp_path / "out") == 1
    with np.load(tmp_path / "out" / "pictures-00000.npz") as arrays:
        assert arrays["captions"].tolist() == [["a"], ["b"], ["c"]]
        assert np.abs(arrays["pictures"].astype(int) - pictures).mean() < 4
