"""Tiny random pipelines in diffusers layout, and the settings of runs that take a moment."""

# diffusers' annotations are narrower than what they take
# pyright: reportArgumentType=false, reportCallIssue=false

import copy
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from splatdistill.config.load import resolve
from splatdistill.priors import album
from splatdistill.priors.patch_codec import PatchCodec
from splatdistill.priors.reading import MAX_WORDS
from splatdistill.priors.view_transformer import ViewTransformer
from splatdistill.training import loop
from splatdistill.training.progress import NullWatcher
from splatdistill.training.run import make_run

SMALL = [
    "views.size=16",
    "views.count=2",
    "gaussians.count=50",
    "gaussians.final_opacity=0.01",
    "report.size=16",
    "report.frames=4",
    "checkpoint_every=2",
]

WIDTH = 16  # of CLIP's embedding and of the token that a pictured pipeline makes of it
WORDS = ["a", "red", "mushroom", "dog", "front", "view", ","]


def tiny_tokenizer(folder):
    """Return a CLIP tokenizer of whole words: letters, their merges, and the words."""
    letters = sorted(set("".join(WORDS)))
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=12), len(tokens)


def tiny_autoencoder(kind):
    if kind == "AutoencoderTiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=1.3,
            shift_factor=0.1,
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def make_pipeline(root, kind, prediction_type="v_prediction", timesteps=500):
    torch.manual_seed(0)
    tokenizer, size = tiny_tokenizer(root / "words")
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=16,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.001,
        beta_end=0.013,
        beta_schedule="scaled_linear",
        num_train_timesteps=timesteps,
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=tiny_autoencoder(kind),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = root / "pipeline"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


THINGS = ("car", "tree", "mushroom", "dog", "duck", "mug", "ball")
COLORS = ("red", "blue")


def make_views(path: Path) -> Path:
    """Write a teacher of the shipped one's layout, with random weights and an album of a car; return it."""
    torch.manual_seed(0)
    channels, text_width = 6, 16
    codec = PatchCodec(latent_channels=channels, width=8, layers=1, scaling_factor=0.7)
    codec.save_pretrained(path / "vae")
    sizes: dict[str, Any] = {"in_channels": channels, "out_channels": channels, "sample_size": 8}
    sizes |= {"outer_width": 16, "width": 32, "layers": 1, "head": 16, "told": 16}
    denoiser = ViewTransformer(**sizes, cross_attention_dim=text_width)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser.save_pretrained(path / "transformer")
    text = CLIPTextConfig(
        vocab_size=len(THINGS) + len(COLORS) + 2,
        hidden_size=text_width,
        intermediate_size=text_width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_WORDS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    CLIPTextModel(text).save_pretrained(path / "text_encoder")
    schedule = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    schedule.save_pretrained(path / "scheduler")
    known = {"things": {name: [] for name in THINGS}, "names": {name: name for name in THINGS}}
    known |= {"words": [*THINGS, *COLORS], "colors": list(COLORS)}
    (path / "vocabulary.json").write_text(json.dumps(known))
    (path / "nearest.tsv").write_text("sedan\tcar\n")
    (path / "model_index.json").write_text('{"family": "views"}')
    pictures = np.zeros((album.PICTURES, album.SIDE, album.SIDE, 4), np.uint8)
    pictures[:, 40:90, 30:100] = (200, 30, 30, 255)
    pictures[20:, 40:90, 30:100] = (30, 30, 200, 255)  # from above
    strip = album.strip(album.Page(pictures, np.ones(3)), 60)
    with open(path / album.FILE, "wb") as file:
        album.Album([strip], np.ones((1, 3)), ("a",), ("car",), ("red car",)).save(file)
    return path


def with_two_models(prior: Any) -> Any:
    """Return the prior of such a teacher with an album of a red car and a blue one."""
    pictures = np.zeros((album.PICTURES, album.SIDE, album.SIDE, 4), np.uint8)
    strips = []
    for color in ((200, 30, 30, 255), (30, 30, 200, 255)):
        pictures[:, 20:110, 20:110] = color
        strips.append(album.strip(album.Page(pictures, np.ones(3)), 60))
    both = copy.copy(prior)
    both.album = album.Album(strips, np.ones((2, 3)), ("a", "b"), ("car", "car"), ("", ""))
    return both


def make_pictured(root, projection="clip_camera_projection"):
    """Return a pipeline as published: eight-channel UNet, image encoder, projection; no text encoder."""
    pipeline = make_pipeline(root, "AutoencoderKL")
    shutil.rmtree(pipeline / "text_encoder")
    shutil.rmtree(pipeline / "tokenizer")
    torch.manual_seed(1)
    config: Any = UNet2DConditionModel.load_config(pipeline / "unet")
    unet: Any = UNet2DConditionModel.from_config({**config, "in_channels": 8})
    unet.save_pretrained(pipeline / "unet")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=WIDTH,
        )
    ).save_pretrained(pipeline / "image_encoder")
    CLIPImageProcessor(crop_size=28, size=28).save_pretrained(pipeline / "feature_extractor")
    layer = {"clip_camera_projection": "proj", "cc_projection": "projection"}[projection]
    (pipeline / projection).mkdir()
    width = config["cross_attention_dim"]
    state = {f"{layer}.weight": torch.randn(width, WIDTH + 4), f"{layer}.bias": torch.randn(width)}
    save_file(state, pipeline / projection / "diffusion_pytorch_model.safetensors")
    return pipeline


def make_clip(root):
    """Return the folder of a CLIP model with random weights, as transformers publishes one."""
    tokenizer, size = tiny_tokenizer(root / "letters")
    tokenizer.model_max_length = 77
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": size, "max_position_embeddings": 77} | ends | small
    vision = {"image_size": 28, "patch_size": 7} | small
    torch.manual_seed(2)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    folder = root / "clip"
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size=28, crop_size=28), tokenizer).save_pretrained(folder)
    return folder


def stop_after(monkeypatch, steps: int) -> None:
    """Let the next run be asked to stop after some steps, as by Ctrl-C."""
    original = loop.train

    def train(config, prior, state, out, watcher, *others):
        should_stop = watcher.should_stop
        watcher.should_stop = lambda: state.step >= steps or should_stop()
        return original(config, prior, state, out, watcher, *others)

    monkeypatch.setattr(loop, "train", train)


class Hooks(NullWatcher):
    """A watcher made of functions."""

    def __init__(self, **hooks) -> None:
        vars(self).update(hooks)


resumable = pytest.mark.parametrize("method", ["sdi", "sds", "flow_sdi"])


def resumes_in_the_same_bytes(prior, method: str, out: Path, *words: str) -> None:
    """Make a run of 3 steps at once, and another that is stopped after one; expect the same splat.ply."""
    flags = {"prompt": "a red mushroom", "method": method, "prior": {"name": str(prior)}}
    settings = [*SMALL, "steps=3", "checkpoint_every=1", "prior.dtype=float32", "views.count=1", *words]
    config = resolve(flags, None, settings)
    assert make_run(config, out / "whole", device="cpu").finished
    done: list[int] = []
    hooks = Hooks(on_step=lambda step, metrics: done.append(step), should_stop=lambda: len(done) >= 1)
    make_run(config, out / "parts", device="cpu", watch=lambda job: nullcontext(hooks))
    assert make_run(config, out / "parts", device="cpu", resume=True).finished
    whole, parts = (out / name / "splat.ply" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def write_disc(path: Path) -> Path:
    """Write a picture of a disc without a background; return its path."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((x - 16) ** 2 + (y - 16) ** 2 < 100)[..., None] * torch.tensor([200, 30, 30, 255])
    Image.fromarray(disc.to(torch.uint8).numpy(), "RGBA").save(path)
    return path
