"""ImageReward (2304.05977): how people would like a picture for a text, by a BLIP that learned their choices.

The published weights are under the names of its authors' own code; the networks are those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from splatdistill.priors.clip import Scorer
from splatdistill.priors.folders import header
from splatdistill.priors.loading import locate_clip, user_errors
from splatdistill.priors.networks import CLIP, quiet

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its raw scores, in whose units they are told
TOKENS = 35  # of a text
HEAD = 64  # width of an attention head, in both networks
SEEN, READ, JUDGED = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
NAMES = (  # of the authors' vision transformer, and of transformers'
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


class Judge(Protocol):
    """What says how much a picture is preferred for a text."""

    size: int  # pixels of the pictures

    def liking(self, rgb: Tensor, text: str) -> Tensor:
        """Return a score [n] of each picture [n,3,H,W] in [0,1]; the higher, the better."""
        ...


def load_judge(name: str, device: torch.device | str = "cpu") -> Judge:
    """Load a model of preferences: ImageReward by its file, others as `Scorer.load`; UserError as there."""
    path = Path(name)
    named = (header(path) or {}) if path.suffix == ".safetensors" else {}
    return (ImageReward if f"{JUDGED}0.weight" in named else Scorer).load(name, device)


class ImageReward:
    """A frozen ImageReward; see `load`."""

    def __init__(self, vision: Any, reader: Any, layers: list[nn.Linear], tokenizer: Any) -> None:
        self.vision, self.reader, self.layers, self.tokenizer = vision, reader, layers, tokenizer
        for network in (vision, reader, *layers):
            network.eval().requires_grad_(False)
        self.size: int = vision.config.image_size
        mean, std = torch.tensor(CLIP, device=vision.device)
        self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> ImageReward:
        """Load the file of its weights, in safetensors, beside the tokenizer of bert-base-uncased.

        Raises UserError when it cannot be loaded.
        """
        path = locate_clip(name)
        with user_errors(f"scorer '{name}'", path.parent), quiet():
            files = {file.name for file in path.parent.glob("*.*")}
            if not files & {"tokenizer.json", "vocab.txt"}:
                raise ValueError("there is no tokenizer.json or vocab.txt of bert-base-uncased beside it")
            state = {key: value.float() for key, value in load_file(path).items()}
            vision, reader = vision_of(part(state, SEEN)), reader_of(part(state, READ))
            tokenizer = BertTokenizer.from_pretrained(path.parent, local_files_only=True)
            layers = [layer.to(device) for layer in layers_of(part(state, JUDGED))]
            return cls(vision.to(device), reader.to(device), layers, tokenizer)

    @torch.no_grad()
    def liking(self, rgb: Tensor, text: str) -> Tensor:
        """Return the score [n] of pictures [n,3,H,W] in [0,1] for a text, in deviations from its mean."""
        rgb = rgb.to(self.vision.device)
        if rgb.shape[-2:] != (self.size, self.size):
            rgb = F.interpolate(rgb, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        seen = self.vision(pixel_values=(rgb - self.mean) / self.std).last_hidden_state
        said = self.tokenizer(
            [text] * len(rgb), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(seen.device)
        everywhere = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        states = self.reader(
            input_ids=said.input_ids,
            attention_mask=said.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=everywhere,
        )
        score = states.last_hidden_state[:, 0]
        for layer in self.layers:  # it learned without anything between them
            score = layer(score)
        return (score[:, 0] - MEAN) / STD


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def depth(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many layers the weights are of."""
    return 1 + max(int(found[1]) for key in state if (found := re.match(pattern, key)))


def vision_of(state: dict[str, Tensor]) -> Any:
    """Return the encoder of pictures; its sizes are those of the weights."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
    model = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
            num_hidden_layers=depth(state, r"blocks\.(\d+)\."),
            num_attention_heads=max(width // HEAD, 1),
            image_size=side,
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
    )
    for old, new in NAMES:
        state = {re.sub(old, new, key): value for key, value in state.items()}
    model.load_state_dict(state)
    return model


def reader_of(state: dict[str, Tensor]) -> Any:
    """Return the encoder of texts, which attends to pictures; its sizes are those of the weights."""
    state.pop("embeddings.position_ids", None)
    words, width = state["embeddings.word_embeddings.weight"].shape
    model = BlipTextModel(
        BlipTextConfig(
            vocab_size=words,
            hidden_size=width,
            encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
            intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=depth(state, r"encoder\.layer\.(\d+)\."),
            num_attention_heads=max(width // HEAD, 1),
            max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        ),
        add_pooling_layer=False,
    )
    model.load_state_dict(state)
    return model


def layers_of(state: Mapping[str, Tensor]) -> list[nn.Linear]:
    """Return the linear layers that score a text's first state, in order."""
    layers = []
    for place in sorted({int(key.partition(".")[0]) for key in state}):
        outputs, inputs = state[f"{place}.weight"].shape
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict(part(state, f"{place}."))
        layers.append(layer)
    return layers
