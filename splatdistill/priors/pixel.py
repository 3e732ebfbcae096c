"""Models of pixels, without an autoencoder: DeepFloyd IF at 64 pixels, and PRX in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from splatdistill.priors.flow import PRXPrior
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.pipeline import PipelinePrior, Read


class IFPrior(PipelinePrior):
    """The first stage of DeepFloyd IF; its learned variance is dropped."""

    pipeline = "IFPipeline"
    denoiser = "UNet2DConditionModel"
    place = "unet"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("T5EncoderModel",)}
    decoders = ()
    text_width = "encoder_hid_dim"

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it is a UNet of pixels told by T5; an upscaling stage reads twice the channels."""
        return config.get("encoder_hid_dim_type") == "text_proj" and number(config, "in_channels") == 3

    @classmethod
    def options(cls, folder: Folder) -> dict[str, Any]:
        """Return no safety checker: pictures are not shown but optimized."""
        return {"requires_safety_checker": False}

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return T5's states."""
        device = pipeline.text_encoder.device
        return Read(pipeline.encode_prompt(texts, do_classifier_free_guidance=False, device=device)[0])

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the UNet."""
        hidden = text.hidden.to(self.dtype)
        return self.network_(x, t, encoder_hidden_states=hidden, return_dict=False)[0][:, : x.shape[1]]


class PRXPixelPrior(PRXPrior):
    """PRX in pixels, which predicts the clean picture of a flow that begins at noise of deviation 2."""

    pipeline = "PRXPixelPipeline"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("Qwen3VLTextModel", "Qwen3Model")}
    decoders = ()
    lower = False
    noise_scale = 2.0
    predicts = "sample"

    @classmethod
    def options(cls, folder: Folder) -> dict[str, Any]:
        """Return how many tokens it was trained with."""
        told = number(folder.json("model_index.json"), "prompt_max_tokens")
        return {"prompt_max_tokens": told} if told else {}

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it draws pixels, at the noise that is known here."""
        scale = folder.json("model_index.json").get("noise_scale", cls.noise_scale)
        return not PRXPrior.suits(config, folder) and scale == cls.noise_scale
