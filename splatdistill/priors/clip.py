"""Agreement of images with texts, by a CLIP model in transformers' layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from splatdistill.priors.base import cut_to_fit
from splatdistill.priors.loading import locate_clip, user_errors
from splatdistill.priors.networks import (
    load_tokenizer,
    normalization,
    quiet,
    transformers_arguments,
    weights_file,
)


class Scorer:
    """A frozen CLIP model (2103.00020); see `load`."""

    def __init__(self, model: Any, tokenizer: Any, mean: Tensor, std: Tensor) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._known: dict[str, Tensor] = {}
        self.scale: float = model.logit_scale.exp().item()  # of cosines, in the model's own logits
        self.size: int = model.config.vision_config.image_size
        self.mean, self.std = (x.to(model.device).view(1, 3, 1, 1) for x in (mean, std))

    @classmethod
    def load(cls, name_or_path: str | Path, device: torch.device | str = "cpu") -> Scorer:
        """Load the scorer of a local folder, or one of the hub as "owner/name@COMMIT".

        Of a file in such a folder the weights are taken, under OpenCLIP's names as HPSv2's are, and all else
        from the folder. Only safetensors are read. Raises UserError when it cannot be loaded.
        """
        path = locate_clip(str(name_or_path))
        folder = path.parent if path.is_file() else path
        with user_errors(f"scorer '{name_or_path}'", folder), quiet():
            normal = normalization(folder)
            if normal is None:
                raise ValueError("there is no preprocessor_config.json")
            own = transformers_arguments(folder, CLIPModel)
            model: Any
            if path.is_file():
                model = CLIPModel(own["config"])
                model.load_state_dict(from_openclip(load_file(path)))
            else:
                weights_file(folder, "model")
                model = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, **own
                )
            tokenizer = load_tokenizer(folder)
            return cls(model.to(device), tokenizer, *(torch.tensor(x) for x in normal))

    def agreement(self, rgb: Tensor, texts: list[str]) -> Tensor:
        """Return the cosines [n] of images [n,3,H,W] in [0,1] and a text each, differentiably."""
        return (self._embedded(rgb) * self.texts(texts)).sum(-1)

    @torch.no_grad()
    def images(self, rgb: Tensor) -> Tensor:
        """Return unit embeddings [n,D] of images [n,3,H,W] in [0,1], resized to the model's input."""
        return self._embedded(rgb)

    def _embedded(self, rgb: Tensor) -> Tensor:
        rgb = rgb.to(self.model.device)
        if rgb.shape[-2:] != (self.size, self.size):
            rgb = F.interpolate(rgb, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return image_embeddings(self.model, (rgb - self.mean) / self.std)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Return unit embeddings [n,D] of texts (cached); longer ones are truncated."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            length = self.text_length
            tokens = self.tokenizer(
                new, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            embeddings = text_embeddings(self.model, tokens.input_ids.to(self.model.device))
            self._known.update(zip(new, embeddings, strict=True))
        return torch.stack([self._known[text] for text in texts])

    def liking(self, rgb: Tensor, text: str) -> Tensor:
        """Return the model's logits [n] of images [n,3,H,W] in [0,1] and a text (PickScore, 2305.01569)."""
        return self.scale * (self.images(rgb) @ self.texts([text])[0])

    @property
    def text_length(self) -> int:
        """The number of tokens that the text encoder reads, start and end tokens included."""
        return self.model.config.text_config.max_position_embeddings

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return `text`, cut so that the model reads all of it and any of the suffixes behind it."""
        return cut_to_fit(text, suffixes, lambda whole: self._count(whole) <= self.text_length)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False).input_ids)


def image_embeddings(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return unit embeddings [n,D] of normalized images [n,3,S,S], differentiably."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_embeddings(model: CLIPModel, ids: Tensor) -> Tensor:
    """Return unit embeddings [n,D] of token ids [n,L], differentiably."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


OPENCLIP = (  # names in OpenCLIP, and in transformers
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def from_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a CLIP in OpenCLIP's names and shapes, in transformers', float32."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, new in OPENCLIP:
            key = re.sub(old, new, key)
        value = value.float()
        joined = re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", key)
        if joined:
            for kind, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{joined[1]}.self_attn.{kind}_proj.{joined[2]}"] = third
        elif key != "attn_mask":  # of older versions: a constant
            found[key] = value.mT if key in ("visual_projection.weight", "text_projection.weight") else value
    return found
