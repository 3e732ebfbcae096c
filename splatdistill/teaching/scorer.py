"""Train a scorer from scratch: `python -m splatdistill.teaching.scorer --out DIR`.

A small CLIP model that contrasts images of procedural scenes with their captions. Its scenes have other seeds
than the teachers', so that it judges them on images that neither was trained on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from splatdistill.priors import words as grammar
from splatdistill.priors.clip import image_embeddings, text_embeddings
from splatdistill.priors.latent import native_bfloat16
from splatdistill.scene.views import view_word
from splatdistill.teaching import scenes
from splatdistill.teaching.muon import Muon
from splatdistill.teaching.networks import IMAGE_SIZE, make_tokenizer, tokenize

log = logging.getLogger(__name__)

WIDTH = 160
LAYERS = 5
MAX_TOKENS = 24
TEXTURELESS = 6  # one group in so many, for judging shapes alone
SEED = 55_000  # far from the teachers'


@dataclass(frozen=True)
class ScorerSettings:
    """Settings of the training; `pictures` are rendered once and reused over the epochs."""

    steps: int = 4_000
    batch: int = 128
    pictures: int = 96_000
    learning_rate: float = 1e-3
    fall: float = 0.5
    seed: int = SEED


def make_scorer(vocab: int, start: int, end: int) -> CLIPModel:
    """Make a CLIP model of 64x64 images in patches of 8 and texts of 24 tokens."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": WIDTH // 32}
    text = {
        "num_hidden_layers": LAYERS - 2,
        "vocab_size": vocab,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": start,
        "eos_token_id": end,
    }
    config = CLIPConfig(
        text_config=tower | text | {"pad_token_id": end},
        vision_config=tower | {"num_hidden_layers": LAYERS, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=WIDTH,
    )
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # on a CPU its backward is faster than the fused attention's
    return model


def descriptions(seed: int, count: int, threads: int) -> tuple[Tensor, list[str]]:
    """Render images uint8 [n, 3, 64, 64] of random scenes, with their captions.

    Colors are always named, sizes never, and the view in half of the texts. One group in six is without
    colors, in image and text.
    """
    images, texts = [], []
    for i in range(-(-count // scenes.GROUP)):
        rng, plain = np.random.default_rng((seed, i)), i % TEXTURELESS == 0
        group = scenes.group(rng, IMAGE_SIZE, threads=threads, textureless=plain)
        images.append(group.images)
        angles = zip(group.cameras.azimuth_deg.tolist(), group.cameras.elevation_deg.tolist(), strict=True)
        views = ["" if rng.random() < 0.5 else f", {view_word(*angle)}" for angle in angles]
        for things, colors, view in zip(group.things, group.colors, views, strict=True):
            texts.append(grammar.describe(things, (None,) * len(things) if plain else colors) + view)
    return torch.from_numpy(np.concatenate(images)[:count]).permute(0, 3, 1, 2), texts[:count]


def spoiled(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift, blur, haze and tint images [n, 3, S, S] in [0, 1], so that the model can also read splats."""
    images = images.roll(torch.randint(-4, 5, (2,), generator=rng).tolist(), (-2, -1))
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    amount, gain = torch.rand(2, len(images), 1, 1, 1, generator=rng)
    noise = 0.03 * torch.randn(images.shape, generator=rng)
    return ((images + amount * (blurred - images)) * (0.9 + 0.2 * gain) + noise).clamp(0, 1)


def contrast(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's symmetric loss of unit embeddings [n, D]; equal texts [n, n] all count as correct."""
    logits = scale * images @ texts.mT
    right = same.float() / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.mT, right))


def train_scorer(settings: ScorerSettings, threads: int) -> tuple[CLIPModel, Any]:
    """Render and train; return the model in eval mode, and its tokenizer."""
    torch.manual_seed(settings.seed)
    tokenizer: Any = make_tokenizer(grammar.vocabulary())
    model = make_scorer(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    pictures, texts = descriptions(settings.seed, settings.pictures, threads)
    ids = tokenize(tokenizer, texts)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        Muon(matrices, lr=2 * settings.learning_rate),
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=1e-2),
    ]
    start = time.perf_counter()
    for step in range(settings.steps):
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(len(pictures), (settings.batch,), generator=rng)
        images = spoiled(pictures[rows].float() / 255, rng)
        words = ids[rows]
        same = (words[:, None] == words[None]).all(-1)
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16("cpu")):
            seen, said = image_embeddings(model, images * 2 - 1), text_embeddings(model, words)
        loss = contrast(seen.float(), said.float(), same, model.logit_scale.exp().clamp(max=100))
        model.zero_grad(set_to_none=True)
        loss.backward()
        rate = min(1.0, (step + 1) / 200, (settings.steps - step) / (settings.fall * settings.steps))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate * optimizer.defaults["lr"]
            optimizer.step()
        if (step + 1) % 250 == 0:
            speed = (step + 1) * settings.batch / (time.perf_counter() - start)
            log.info("scorer step %d  loss %.4f  %.0f pictures/s", step + 1, loss.item(), speed)
    return model.eval(), tokenizer


def export(folder: Path, model: CLIPModel, tokenizer: Any) -> None:
    """Write what CLIPModel, CLIPTokenizer and CLIPImageProcessor load: fp16 safetensors."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, export."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.scorer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--steps", type=int, default=ScorerSettings.steps)
    parser.add_argument("--pictures", type=int, default=ScorerSettings.pictures)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    settings = ScorerSettings(steps=options.steps, pictures=options.pictures)
    export(options.out, *train_scorer(settings, options.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
