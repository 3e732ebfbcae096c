"""The weights that ship: their size, how they load, and that they draw what the words say."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from splatdistill.guidance.core import sample
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.base import cfg
from splatdistill.priors.loading import EMBEDDED


def test_the_weights_are_small_and_no_pickles() -> None:
    files = [path for path in EMBEDDED.parent.rglob("*") if path.is_file()]
    beside = [path for path in files if {"unet_multiview", "unet_image", "scorer"} & set(path.parts)]
    assert sum(path.stat().st_size for path in files if path not in beside) <= 16 * 2**20
    assert sum(path.stat().st_size for path in files) <= 36 * 2**20
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


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
