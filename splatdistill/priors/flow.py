"""Rectified flows with transformers: Stable Diffusion 3, FLUX.2 klein, PRX, Sana; and PixArt, of like build.

A flow at time s is x_s = (1 - s) x_0 + s eps and predicts eps - x_0. Timestep t is s = (t + 1) / T, whatever
shift the scheduler samples with; z_t is x_s divided by sqrt((1 - s)^2 + s^2).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor

from splatdistill.priors.base import flow_alphas_cumprod
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.networks import read_json
from splatdistill.priors.pipeline import PipelinePrior, Read

FLOWS = ("FlowMatch", "SCM")  # parts of the names of schedulers of flows


class FlowPrior(PipelinePrior):
    """A `PipelinePrior` that predicts the velocity of a rectified flow.

    Attributes:
        noise_scale: the standard deviation of the noise that the flow begins at.
        predicts: what the network predicts.
    """

    noise_scale: ClassVar[float] = 1.0
    predicts: ClassVar[str] = "flow"

    @classmethod
    def schedule(cls, folder: Folder) -> tuple[Tensor, float, str]:
        """Return the table of a flow; ValueError for the scheduler of a diffusion."""
        told = read_json(folder.root / "scheduler" / "scheduler_config.json")
        name = str(told.get("_class_name", "scheduler"))[:80]
        flows = told.get("use_flow_sigmas") or told.get("prediction_type") == "flow_prediction"
        if not (flows or any(part in name for part in FLOWS)):
            raise ValueError(f"its scheduler ({name}) is made for diffusion, its {cls.denoiser} for a flow")
        return flow_alphas_cumprod(noise_scale=cls.noise_scale), 1.0, cls.predicts

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Return raw float32 outputs at z_t, which the network sees as x_s; see `PipelinePrior`."""
        s = self.time(t).double().view(-1, 1, 1, 1)
        length = ((1.0 - s) ** 2 + (self.noise_scale * s) ** 2).sqrt()
        return super().network(z_t * length.to(z_t.dtype), t, embeddings)

    def time(self, t: Tensor) -> Tensor:
        """Return s [n] float32 of timesteps t [n]."""
        return (t.float() + 1.0) / len(self.alphas_cumprod)


class SD3Prior(FlowPrior):
    """Stable Diffusion 3 and 3.5, at 512 pixels where it was made for more."""

    pipeline = "StableDiffusion3Pipeline"
    denoiser = "SD3Transformer2DModel"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    }
    largest = 64
    text_width, pooled_width = "joint_attention_dim", "pooled_projection_dim"

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return the tokens of CLIP and T5 in one sequence, and both of CLIP's pooled embeddings."""
        hidden, _, pooled, _ = pipeline.encode_prompt(
            texts, None, None, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        return Read(hidden, pooled)

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the transformer."""
        assert text.pooled is not None
        return self.network_(
            hidden_states=x,
            timestep=1000.0 * self.time(t),
            encoder_hidden_states=text.hidden.to(self.dtype),
            pooled_projections=text.pooled.to(self.dtype),
            return_dict=False,
        )[0]


class Flux2Prior(FlowPrior):
    """FLUX.2 klein before its distillation: latents of 2 x 2 patches, normalized by channel."""

    pipeline = "Flux2KleinPipeline"
    denoiser = "Flux2Transformer2DModel"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("Qwen3ForCausalLM",)}
    decoders = ("AutoencoderKLFlux2",)
    largest = 32
    text_width = "joint_attention_dim"

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it was not distilled, of guidance (dev) or for few steps."""
        distilled = folder.json("model_index.json").get("is_distilled") or config.get("guidance_embeds", True)
        return not distilled

    @classmethod
    def channels(cls, config: Mapping[str, Any]) -> int:
        """Return the channels of the autoencoder's latents, four of which make one of the denoiser's."""
        return number(config, "in_channels") // 4

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return three layers of Qwen 3 side by side."""
        layers = tuple(pipeline.text_encoder.config.num_hidden_layers * k // 4 for k in (1, 2, 3))  # 9 18 27
        device = pipeline.text_encoder.device
        return Read(pipeline.encode_prompt(texts, device=device, text_encoder_out_layers=layers)[0])

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return the shape of folded latents and the side of pictures."""
        factor = 2 * self.factor
        side = min(self.vae.config.sample_size // factor, self.largest)
        return (self.config.in_channels, side, side), side * factor

    def scaling(self) -> tuple[Any, Any]:
        """Return scale and shift of each channel, which the autoencoder's normalization has."""
        norm = self.vae.bn
        deviation = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        return 1.0 / deviation.view(1, -1, 1, 1), norm.running_mean.float().view(1, -1, 1, 1)

    def folded(self, raw: Tensor) -> Tensor:
        """Return 2 x 2 patches as channels."""
        return torch.nn.functional.pixel_unshuffle(raw, 2)

    def unfolded(self, latents: Tensor) -> Tensor:
        """Return channels as 2 x 2 patches."""
        return torch.nn.functional.pixel_shuffle(latents, 2)

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the transformer on the places of the latents, row by row."""
        count, _, height, width = x.shape
        places = torch.cartesian_prod(*(torch.arange(n) for n in (1, height, width, 1)))
        words = torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, text.hidden.shape[1])))
        img_ids, txt_ids = (ids.to(x.device).expand(count, -1, -1) for ids in (places, words))
        out = self.network_(
            hidden_states=x.flatten(2).mT,
            timestep=self.time(t).to(self.dtype),
            guidance=None,
            encoder_hidden_states=text.hidden.to(self.dtype),
            txt_ids=txt_ids,
            img_ids=img_ids,
            return_dict=False,
        )[0]
        return out.mT.unflatten(2, (height, width))


class PRXPrior(FlowPrior):
    """PRX at 256 or 512 pixels.

    Attributes:
        lower: whether texts are read in small letters.
    """

    lower: ClassVar[bool] = True

    pipeline = "PRXPipeline"
    denoiser = "PRXTransformer2DModel"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("T5GemmaEncoder",)}
    decoders = ("AutoencoderKL", "AutoencoderDC")
    text_width = "context_in_dim"

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it draws latents."""
        return bool(folder.json("vae/config.json")) or number(config, "in_channels") != 3

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return the encoder's states, and which of them are of words.

        Not by the pipeline's own function, whose cleaning of texts asks for another package; of that, only
        the small letters matter to a plain prompt.
        """
        tokens = pipeline.tokenizer(
            [text.strip().lower() if cls.lower else text.strip() for text in texts],
            padding="max_length",
            max_length=pipeline.config.get("prompt_max_tokens") or pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(pipeline.text_encoder.device)
        states = pipeline.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return Read(states.last_hidden_state, None, tokens.attention_mask)

    @property
    def factor(self) -> int:
        """Pixels for each of the latents, along a side."""
        return getattr(self.vae, "spatial_compression_ratio", 0) or super().factor

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return the shape of latents and the side of pictures, which the pipeline's index names."""
        pixels = number(self.folder.json("model_index.json"), "default_sample_size") or 512
        side = pixels // self.factor
        return (self.config.in_channels, side, side), side * self.factor

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the transformer."""
        assert text.mask is not None
        return self.network_(
            hidden_states=x,
            timestep=self.time(t),
            encoder_hidden_states=text.hidden.to(self.dtype),
            attention_mask=text.mask > 0,
            return_dict=False,
        )[0]


class SanaPrior(FlowPrior):
    """Sana, whose latents are a 32nd of the picture's side."""

    pipeline = "SanaPipeline"
    denoiser = "SanaTransformer2DModel"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("Gemma2Model",)}
    decoders = ("AutoencoderDC",)
    largest = 32

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether it was not distilled for few steps (Sprint)."""
        return not config.get("guidance_embeds")

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return Gemma's states; a text comes after the pipeline's instruction, the empty one without."""
        told = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"]
        read = []
        for text in texts:
            hidden, mask, _, _ = pipeline.encode_prompt(
                text,
                do_classifier_free_guidance=False,
                device=pipeline.text_encoder.device,
                complex_human_instruction=told.default if text else None,
            )
            read.append((hidden, mask))
        return Read(torch.cat([hidden for hidden, _ in read]), None, torch.cat([mask for _, mask in read]))

    @property
    def factor(self) -> int:
        """Pixels for each of the latents, along a side."""
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the transformer."""
        return self.network_(
            x,
            encoder_hidden_states=text.hidden.to(self.dtype),
            encoder_attention_mask=text.mask,
            timestep=1000.0 * self.time(t) * self.config.timestep_scale,
            return_dict=False,
        )[0]


class PixArtPrior(PipelinePrior):
    """PixArt-Sigma: a diffusion of the same build as the flows; its learned variance is dropped."""

    pipeline = "PixArtSigmaPipeline"
    denoiser = "PixArtTransformer2DModel"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("T5EncoderModel",)}

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return T5's states, and which of them are of words."""
        device = pipeline.text_encoder.device
        hidden, mask, _, _ = pipeline.encode_prompt(texts, False, device=device)
        return Read(hidden, None, mask)

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the transformer; where it reads the size of a picture, that of a square one."""
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.network_.use_additional_conditions:
            side = torch.full((len(x), 2), float(self.image_size), device=x.device, dtype=self.dtype)
            sizes = {"resolution": side, "aspect_ratio": torch.ones_like(side[:, :1])}
        out = self.network_(
            x,
            encoder_hidden_states=text.hidden.to(self.dtype),
            encoder_attention_mask=text.mask,
            timestep=t,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]
