"""How well pictures match texts: a CLIP model in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from splatdistill.errors import UserError
from splatdistill.priors.latent import quiet

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "scorer"


class Scorer:
    """A frozen CLIP model (2103.00020); see `load`."""

    def __init__(self, model: Any, tokenizer: Any, mean: Tensor, std: Tensor) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._known: dict[str, Tensor] = {}
        self.size: int = model.config.vision_config.image_size
        self.mean, self.std = (x.to(model.device).view(1, 3, 1, 1) for x in (mean, std))

    @classmethod
    def load(cls, name_or_path: str | Path, device: torch.device | str = "cpu") -> Scorer:
        """The scorer called "embedded", that of a local folder, or one of the model hub ("owner/name").

        Only safetensors are read. Raises UserError when it cannot be loaded.
        """
        name = str(EMBEDDED if str(name_or_path) == "embedded" else name_or_path)
        try:
            with quiet():
                model: Any = CLIPModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
                tokenizer = CLIPTokenizer.from_pretrained(name)
                processor = CLIPImageProcessor.get_image_processor_dict(name)[0]
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"scorer '{name}': cannot load it ({reason}); expected the folder of a CLIP model in "
                "transformers' layout, or its name on the model hub"
            ) from error
        mean, std = (torch.tensor(processor[key]) for key in ("image_mean", "image_std"))
        return cls(model.to(device), tokenizer, mean, std)

    @torch.no_grad()
    def images(self, rgb: Tensor) -> Tensor:
        """Unit embeddings [n,D] of pictures [n,3,H,W] in [0,1], resized to what the model reads."""
        rgb = rgb.to(self.model.device)
        if rgb.shape[-2:] != (self.size, self.size):
            rgb = F.interpolate(rgb, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return image_embeddings(self.model, (rgb - self.mean) / self.std)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n,D] of texts, each embedded once; longer ones are cut to what the model reads."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            length = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(
                new, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            embeddings = text_embeddings(self.model, tokens.input_ids.to(self.model.device))
            self._known.update(zip(new, embeddings, strict=True))
        return torch.stack([self._known[text] for text in texts])


def image_embeddings(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Unit embeddings [n,D] of normalised pictures [n,3,S,S], differentiable."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_embeddings(model: CLIPModel, ids: Tensor) -> Tensor:
    """Unit embeddings [n,D] of token ids [n,L], differentiable."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)
