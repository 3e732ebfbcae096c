"""The teachers of 24 toys: their files, readers and presets, and that they draw what the words say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from test_guidance_clip import ball
from test_priors_lora import by_hand, diffusers, factors

from splatdistill.config.load import resolve
from splatdistill.config.presets import family_of
from splatdistill.errors import UserError
from splatdistill.formats.ply import write_ply
from splatdistill.guidance.clip import SCALE, clip_loss
from splatdistill.guidance.core import sample
from splatdistill.guidance.vsd import VSD
from splatdistill.measure.jury import Jury, true_row
from splatdistill.priors import load_prior, loading
from splatdistill.priors import words as grammar
from splatdistill.priors.base import cfg
from splatdistill.priors.clip import Scorer
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.loading import ASSETS, EMBEDDED, REAL, reader_of, words_of
from splatdistill.priors.multiview import MultiViewPrior
from splatdistill.priors.zero123 import Zero123Prior
from splatdistill.scene.gaussians import from_tensors
from splatdistill.teaching.scorer import contrast
from splatdistill.train import main


def test_the_weights_are_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file() and not path.is_relative_to(REAL)]
    beside = [path for path in files if {"unet_multiview", "unet_image", "scorer"} & set(path.parts)]
    assert sum(path.stat().st_size for path in files if path not in beside) <= 16 * 2**20
    assert sum(path.stat().st_size for path in files) <= 36 * 2**20


def test_the_vocabulary_is_the_grammars() -> None:
    assert load_prior("embedded").vocabulary == grammar.vocabulary()


def test_diffusers_loads_the_folder_unchanged() -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32
    assert pipeline("a red mushroom", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 64, 64)


def test_the_autoencoder_keeps_plain_pictures() -> None:
    prior = load_prior("embedded", dtype=torch.float32)
    pictures = torch.full((2, 3, 64, 64), 0.5)
    pictures[0, :, 20:44, 20:44] = torch.tensor([0.85, 0.09, 0.09])[:, None, None]
    assert (prior.decode(prior.encode(pictures)) - pictures).abs().mean() < 0.03


def test_samples_take_the_color_of_the_prompt() -> None:
    prior = load_prior("embedded", dtype=torch.float32)
    texts = [f"a {color} sphere" for color in ("red", "green", "blue")]
    condition = cfg(prior.embed([""] * 3), prior.embed(texts), 3.0)
    z_T = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    center = prior.decode(sample(prior, condition, z_T, steps=15))[:, :, 24:40, 24:40].mean(
        (2, 3)
    )  # [3, rgb]
    assert center.argmax(1).tolist() == [0, 1, 2]


def test_each_is_read_by_one_class() -> None:
    for name, reader in (
        ("embedded", LatentPrior),
        ("embedded-multiview", MultiViewPrior),
        ("embedded-image", Zero123Prior),
    ):
        folder = loading.locate(name)
        assert reader_of(folder) is reader
        assert [cls for cls in (LatentPrior, MultiViewPrior, Zero123Prior) if cls.reads(folder)] == [reader]
    assert Zero123Prior.needs_picture and not LatentPrior.needs_picture


def test_a_name_like_theirs_is_told_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        load_prior("embedded-foo")
    assert str(caught.value).count("embedded, embedded-multiview, embedded-image") == 1


def test_a_teacher_of_pictures_has_nothing_that_vsd_could_adapt() -> None:
    prior: Any = load_prior("embedded-image")
    with pytest.raises(UserError, match="no UNet that could be adapted"):
        VSD().start(prior, 0)


def test_they_are_the_default_of_all_tasks_where_one_of_them_is_named() -> None:
    code = """
import os
os.environ["SPLATDISTILL_PRIOR"] = "embedded"
from splatdistill.config.presets import *
print(DEFAULT, FOR_PICTURES, *FOR_TASKS.values())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["embedded", "embedded-image", "embedded", "embedded", "embedded"]


def test_their_words_and_presets_are_known_before_they_are_loaded(tmp_path: Path) -> None:
    assert words_of("embedded") is not None and family_of("embedded-multiview") == "embedded"
    (tmp_path / "vocabulary.json").write_text("[]")
    assert resolve({"prior": {"name": str(tmp_path)}}).views.size == 64
    assert Jury.of("embedded") is None


def test_a_priors_own_preset_comes_after_its_familys(tmp_path: Path, monkeypatch) -> None:
    for name, count in {"embedded": 4, "embedded-image": 3, "embedded_sds": 5}.items():
        (tmp_path / f"{name}.yaml").write_text(f"views: {{count: {count}}}")
    (tmp_path / "vocabulary.json").write_text("[]")
    monkeypatch.setattr("splatdistill.config.presets.preset_folder", lambda: tmp_path)
    assert resolve({"prior": {"name": "embedded"}}).views.count == 4
    assert resolve({"prior": {"name": "embedded"}, "method": "sds"}).views.count == 5
    assert resolve({"prior": {"name": "embedded-image"}, "method": "sds"}).views.count == 3
    assert resolve({"prior": {"name": str(tmp_path / "unet_image")}}).views.count == 3


def test_a_negative_prompt_of_unknown_words_is_a_mistake(workplace: Path, capfd) -> None:
    words = ["--prompt", "a duck", "--negative-prompt", "zebra", "--prior", "embedded"]
    assert main(words) == 2 and "zebra" in capfd.readouterr().err


def test_they_take_a_lora(tmp_path: Path) -> None:
    plain: Any = load_prior("embedded", dtype=torch.float32)
    own = factors(plain.unet, ("attn2.to_q",)), factors(plain.text_encoder, ("q_proj", "fc1"))
    path = tmp_path / "lora.safetensors"
    save_file(diffusers(*own), path)
    for name in ("embedded", "embedded-multiview"):
        before: Any = load_prior(name, dtype=torch.float32)
        changed: Any = load_prior(name, dtype=torch.float32, lora=[str(path)])
        expected = by_hand(before.unet, own[0], 1.0)
        for key, p in changed.unet.named_parameters():
            torch.testing.assert_close(p, expected[key], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="has none"):
        load_prior("embedded-image", dtype=torch.float32, lora=[str(path)])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load("embedded")


def test_the_right_words_lose_least(scorer: Scorer) -> None:
    red = ball((0.85, 0.09, 0.09))
    losses = [
        clip_loss(scorer, red, [text], torch.Generator().manual_seed(0)).item()
        for text in ("a red sphere", "a green sphere", "a brown chair")
    ]
    assert losses[0] < min(losses[1:])
    assert all(0.0 <= loss <= 2 * SCALE for loss in losses)


def test_equal_texts_do_not_repel_each_other() -> None:
    embeddings = torch.eye(3)[[0, 0, 1]]
    same = embeddings @ embeddings.mT > 0.5
    scale = torch.tensor(50.0)
    assert (
        contrast(embeddings, embeddings, same, scale)
        < contrast(embeddings, embeddings, torch.eye(3) > 0, scale) + 1e-6
    )
    torch.testing.assert_close(
        contrast(embeddings, embeddings, same, scale), torch.tensor(2 * 2 / 6 * 0.6931472), atol=1e-4, rtol=0
    )


def test_a_run_of_a_shipped_teacher_is_compared_with_true_scenes_of_its_prompt(tmp_path):
    """A splat fitted to nothing: a red ball is nearer to a true red snowman than a blue ball is."""
    shares = {}
    for name, color in (("red", [1.5, -1.5, -1.5]), ("blue", [-1.5, -1.5, 1.5])):
        ball = from_tensors(
            means=torch.tensor([[0.0, 0.0, -0.3], [0.0, 0.0, 0.4]]),
            scales=torch.tensor([[0.25], [0.15]]).log().expand(2, 3).contiguous(),
            quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2),
            opacities=torch.full((2,), 6.0),
            sh0=torch.tensor(color).expand(2, 1, 3).contiguous(),
            shN=torch.zeros(2, 0, 3),
        )
        (tmp_path / name).mkdir()
        write_ply(tmp_path / name / "splat.ply", ball)
        shares[name] = true_row(tmp_path / name, "a red snowman")
    assert shares["red"]["iou_share"] == pytest.approx(shares["blue"]["iou_share"], abs=0.05)
    assert 0.3 < shares["red"]["iou_share"] < 0.9
    assert shares["red"]["color_distance"] < shares["blue"]["color_distance"] - 0.02
    assert true_row(tmp_path / "red", "a corgi in a beret") == {}
