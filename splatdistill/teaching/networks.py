"""The shipped teacher's networks, tokenizer and folder, as small models of diffusers and transformers."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splatdistill.priors import words as grammar
from splatdistill.priors.multiview import CAMERA, VIEWS, join_views
from splatdistill.priors.view_unet import ViewUNet

IMAGE_SIZE = 64
LATENT_SIZE = 16
LATENT_CHANNELS = 8
MAX_TOKENS = 24
TEXT_WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(vocabulary: frozenset[str]) -> Any:
    """Make a CLIP byte-pair tokenizer in which every known word is one token.

    Merges are learned on the vocabulary itself, most frequent pair first (ties in alphabetical order), until
    nothing is left to merge.
    """
    alphabet = [chr(c) for c in range(33, 127)]
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(vocabulary) if word.isalpha()}
    merges: list[Any] = []  # pairs
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = _merge(parts, best)
    tokens = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet), *("".join(m) for m in merges)]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=MAX_TOKENS)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def make_autoencoder() -> AutoencoderTiny:
    """Make the autoencoder of images [B, 3, 64, 64] in [-1, 1] and latents [B, 8, 16, 16]."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )


def make_unet(multiview: bool = False) -> UNet2DConditionModel:
    """Make the denoiser, with self-attention and cross-attention at 8x8 and 4x4, where they are cheap.

    For several views it reads cameras, with zero-initialized effect, and attends across a group's views.
    """
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA}
    unet: Any = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
        addition_embed_type="text",  # the pooled text joins the time embedding: learned faster than attention
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
        **(camera if multiview else {}),
    )
    unet.set_attn_processor(AttnProcessor())  # on a CPU its backward is faster than the fused attention's
    if multiview:
        torch.nn.init.zeros_(unet.class_embedding.linear_2.weight)
        torch.nn.init.zeros_(unet.class_embedding.linear_2.bias)
        join_views(unet, VIEWS)
    return unet


def make_view_unet() -> ViewUNet:
    """Make the denoiser of a picture's other views: the multi-view UNet on single views, and a reader."""
    return ViewUNet(dict(make_unet(True).config), LATENT_SIZE, 2 * LATENT_CHANNELS, LATENT_CHANNELS)


def make_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """Make three CLIP layers, trained together with the denoiser."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_scheduler() -> DDIMScheduler:
    """Make Stable Diffusion's noise schedule with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Return token ids [n, 24], padded."""
    return tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def export(
    folder: Path, autoencoder: AutoencoderTiny, unet: UNet2DConditionModel, text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:  # fmt: skip
    """Write what StableDiffusionPipeline.from_pretrained loads: fp16 safetensors; and vocabulary.json."""
    parts: dict[str, Any] = {  # the pipeline's own annotations know no AutoencoderTiny
        "vae": autoencoder.half(),
        "unet": unet.half(),
        "text_encoder": text_encoder.half(),
        "tokenizer": tokenizer,
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers would load its part in half precision by itself and diffusers in single: make them agree
    config = Path(folder) / "text_encoder" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    words = sorted(grammar.vocabulary())
    (Path(folder) / "vocabulary.json").write_text(json.dumps(words, indent=0) + "\n", encoding="utf-8")


def is_shared(name: str) -> bool:
    """Return whether a weight is shared by all three UNets: convolutions in blocks are."""
    return "_block" in name and ".conv" in name


def export_beside(folder: Path, denoiser: Any) -> None:
    """Write a denoiser that belongs beside the plain one: fp16, without what two UNets share."""
    folder.mkdir(parents=True, exist_ok=True)
    denoiser.half().save_config(folder)
    state = denoiser.state_dict().items()
    own = {name: value.contiguous() for name, value in state if not is_shared(name)}
    save_file(own, folder / "diffusion_pytorch_model.safetensors")
