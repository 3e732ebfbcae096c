"""Agreement of images with texts, by a CLIP model in transformers' layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
        """Load the scorer "embedded", that of a local folder, or one of the hub as "owner/name@COMMIT".

        Only safetensors are read. Raises UserError when it cannot be loaded.
        """
        folder = locate_clip(str(name_or_path))
        with user_errors(f"scorer '{name_or_path}'", folder), quiet():
            weights_file(folder, "model")
            normal = normalization(folder)
            if normal is None:
                raise ValueError("there is no preprocessor_config.json")
            own = transformers_arguments(folder, CLIPModel)
            model: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, **own
            )
            tokenizer = load_tokenizer(folder)
            return cls(model.to(device), tokenizer, *(torch.tensor(x) for x in normal))

    @torch.no_grad()
    def images(self, rgb: Tensor) -> Tensor:
        """Return unit embeddings [n,D] of images [n,3,H,W] in [0,1], resized to the model's input."""
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
