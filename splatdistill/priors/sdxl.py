"""Stable Diffusion XL and its kin: two text encoders, a pooled text and the size of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatdistill.priors.folders import Folder, number
from splatdistill.priors.pipeline import PipelinePrior, Read


class SDXLPrior(PipelinePrior):
    """SDXL, SSD-1B and Vega in diffusers layout; pictures are told to be whole and of the network's size."""

    pipeline = "StableDiffusionXLPipeline"
    denoiser = "UNet2DConditionModel"
    place = "unet"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it reads latents alone and was not distilled for few steps."""
        same = number(config, "in_channels") == number(config, "out_channels") > 0
        return (
            config.get("addition_embed_type") == "text_time" and same and not config.get("time_cond_proj_dim")
        )

    @classmethod
    def options(cls, folder: Folder) -> dict[str, Any]:
        """Return whether the empty text is zeros, which the pipeline's index says; and no watermark."""
        zeros = folder.json("model_index.json").get("force_zeros_for_empty_prompt", True)
        return {"force_zeros_for_empty_prompt": bool(zeros), "add_watermarker": False}

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return both encoders' states side by side, and the second's pooled embedding."""
        hidden, _, pooled, _ = pipeline.encode_prompt(
            texts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        if pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(text) for text in texts], device=hidden.device)
            hidden, pooled = hidden * said[:, None, None], pooled * said[:, None]
        return Read(hidden, pooled)

    def read_widths(self) -> tuple[int, int]:
        """Return the widths of a text; beside the pooled one, six numbers are embedded."""
        config = self.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return config.cross_attention_dim, pooled

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the UNet."""
        assert text.pooled is not None
        side = self.image_size
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=x.device, dtype=self.dtype)
        told = {"text_embeds": text.pooled.to(self.dtype), "time_ids": sizes.expand(len(x), -1)}
        hidden = text.hidden.to(self.dtype)
        return self.network_(x, t, encoder_hidden_states=hidden, added_cond_kwargs=told, return_dict=False)[0]
