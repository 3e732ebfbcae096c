"""Latent priors of the Stable Diffusion family in diffusers layout: UNet, autoencoder, CLIP text encoder.

Networks run in `dtype`; everything outside them is float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.ops import upload
from splatdistill.priors.base import Adaptable, Conditioning, Prior, cut_to_fit, run_branches, text_branch
from splatdistill.priors.compiling import can_compile, compile_blocks
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.graphs import Graphed, GraphedGradient
from splatdistill.priors.lora import LoraFile, merge
from splatdistill.priors.networks import (
    load_network,
    load_scheduler,
    load_tokenizer,
    quiet,
    read_json,
    scale_of,
    side_of,
)
from splatdistill.priors.single import load_part
from splatdistill.scene.pictures import Reference

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # diffusers' names of attention's linear maps


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype of networks: float16 on CUDA, bfloat16 on a CPU that has it, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        return torch.float16
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def native_bfloat16(device: torch.device | str) -> bool:
    """Return whether the device multiplies in bfloat16; elsewhere it is slower than float32."""
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def vae_dtype(dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """Return the dtype of the autoencoder beside a denoiser's.

    Never float16, in whose range small gradients of the encoder vanish: bfloat16 where the device has it,
    else float32.
    """
    if dtype != torch.float16:
        return dtype
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def reads_text_alone(config: dict[str, Any]) -> bool:
    """Return whether a UNet2DConditionModel reads only noisy latents, a text, and perhaps a class."""
    return (
        config.get("_class_name") == "UNet2DConditionModel"
        and config.get("addition_embed_type") in (None, "text")
        and config.get("encoder_hid_dim_type") is None
        and config.get("time_cond_proj_dim") is None
        and config.get("attention_type", "default") == "default"
        and not number(config, "num_class_embeds")
        and number(config, "out_channels") > 0
    )


class Pictured:
    """What a prior is that a picture can condition: it has the picture, at the size of its own."""

    _reference: Reference | None = None

    def condition_on(self: Any, reference: Reference) -> Any:
        """Return a copy of the prior, sharing its networks, conditioned on this picture."""
        shown = copy.copy(self)
        shown._reference = reference.resized(self.image_size).to(self.device)
        return shown


class LatentPrior(Prior):
    """Stable Diffusion 1 and 2 and their kin: a UNet in latents that reads a text; see `load`."""

    takes_lora = True

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is a UNet conditioned on text only."""
        config = folder.denoiser
        same = number(config, "in_channels") == number(config, "out_channels")
        return reads_text_alone(config) and same and config.get("class_embed_type") is None

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
    ) -> None:
        self.name = name
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        for network in filter(None, (unet, vae, text_encoder)):
            network.eval().requires_grad_(False)
        if unet.device.type == "cuda":  # the layout of its tensor cores
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
        self._denoise = Graphed(self.network)
        self._encode: Callable[[Tensor], Tensor] = self.latents
        self.tokenizer = tokenizer
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.prediction_type: str = scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.double().cpu()  # [T]
        self.clean_alpha_bar = float(scheduler.final_alpha_cumprod)
        side, factor = side_of(unet.config.sample_size), 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_shape: tuple[int, int, int] = (unet.config.out_channels, side, side)
        self.image_size: int = side * factor
        self._scale, self._shift = scale_of(vae.config)

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the small files show that it cannot be loaded."""
        load_scheduler(folder.root)
        check_parts(folder)

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load a pipeline in diffusers layout, without network access.

        `dtype` None means `default_dtype(device)`. The text encoder runs in float32. Raises what the
        libraries raise for a broken folder; `load_prior` makes one line of it.
        """
        dtype = default_dtype(device) if dtype is None else dtype
        scheduler = load_scheduler(folder.root)  # small parts first
        check_parts(folder)
        with quiet():
            unet = cls._load_unet(folder, torch.float32 if folder.lora else dtype).to(device)
            vae = load_of(folder, "vae", vae_dtype(dtype, device)).to(device)
            reader = cls._load_reader(folder, device)
            for file in folder.lora:  # merged in float32: in fewer bits small changes would vanish
                merge(LoraFile.parse(file), unet, reader.get("text_encoder"), folder.name)
            return cls(folder.name, unet.to(dtype), vae, scheduler=scheduler, **reader)

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        if folder.place == "unet":
            return load_of(folder, "unet", dtype)
        return load_network(folder.root, folder.place, dtype)

    @classmethod
    def _load_reader(cls, folder: Folder, device: torch.device | str) -> dict[str, Any]:
        """Load the encoder of the condition, as arguments of the class."""
        return {
            "text_encoder": load_of(folder, "text_encoder", torch.float32).to(device),
            "tokenizer": load_tokenizer(folder.root / "tokenizer"),
        }

    def encode(self, rgb: Tensor) -> Tensor:
        """Return the scaled latents [V,C,h,w] of images [V,3,H,W] in [0,1]; differentiable.

        The mean, for a KL autoencoder. Images of another size are resized to `image_size` first.
        """
        if rgb.shape[-1] != self.image_size or rgb.shape[-2] != self.image_size:
            size = (self.image_size, self.image_size)
            rgb = F.interpolate(rgb, size, mode="bilinear", antialias=rgb.shape[-1] > self.image_size)
        return self._encode(rgb)

    def latents(self, rgb: Tensor) -> Tensor:
        """Return the scaled latents of images as `encode`, of exactly `image_size`."""
        encoded = self.vae.encode((2.0 * rgb - 1.0).to(self.vae.dtype))
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (raw.float() - self._shift) * self._scale

    def compile(self) -> None:
        """Compile the UNet's and the encoder's blocks; see `Prior.compile`."""
        if can_compile(self.device):
            compile_blocks(self.unet)
            compile_blocks(getattr(self.vae, "encoder", self.vae))
            self._denoise, self._encode = Graphed(self.network), GraphedGradient(self.latents)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the images [V,3,H,W] in [0,1] of scaled latents [V,C,h,w]."""
        rgb = self.vae.decode((z / self._scale + self._shift).to(self.vae.dtype), return_dict=False)[0]
        return (rgb.float() * 0.5 + 0.5).clamp(0.0, 1.0)

    @property
    def text_length(self) -> int:
        """The number of tokens that the text encoder reads, start and end tokens included."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return hidden states [n,L,D] of the text encoder, float32; longer texts are cut, see `fit`."""
        return self.read(texts, self.text_encoder)

    def read(self, texts: list[str], text_encoder: Any) -> Tensor:
        """Return hidden states as `embed`, of any encoder of these tokens, with gradient."""
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        return text_encoder(tokens.input_ids.to(self.device))[0].float()

    def word_places(self, text: str, wanted: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the places of some words' tokens in a text, and of its other words'."""
        ids = self.tokenizer(text, verbose=False).input_ids
        special = set(self.tokenizer.all_special_ids)
        sought = (self.tokenizer(word, verbose=False).input_ids for word in wanted)
        parts = {token for tokens in sought for token in tokens} - special
        words = [place for place, token in enumerate(ids) if token not in special]
        mine = [place for place in words if ids[place] in parts]
        return mine, [place for place in words if place not in mine]

    def with_taught(self, phrases: Sequence[str]) -> Self:
        """Return this prior, or a copy that knows these phrases, where it does not read any text."""
        return self

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return `text`, cut so that the encoder reads all of it and any of the suffixes behind it."""
        return cut_to_fit(text, suffixes, lambda whole: self._count(whole) <= self.text_length)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False).input_ids)

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return raw float32 outputs [R,B,C,h,w] of the UNet at z_t [B,C,h,w], t [B], in one batch."""
        return run_branches(self._denoise, z_t, upload([t], self.device)[0], cond)

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Return raw float32 outputs [n,C,h,w] of the UNet at z_t [n,C,h,w], t [n], embeddings [n,L,D]."""
        hidden = embeddings.to(self.dtype)
        return self.unet(z_t.to(self.dtype), t, encoder_hidden_states=hidden, return_dict=False)[0].float()

    def adaptable(self) -> Adaptable:
        """Return a copy of the UNet that may be adapted: its own modules, sharing the prior's weights."""
        width = self.unet.config.get("cross_attention_dim")
        if not isinstance(width, int) or not hasattr(self.unet, "add_adapter"):
            return super().adaptable()
        twin = self.twin()
        return Adaptable(twin.unet, partial(text_branch, twin.network), ATTENTION, width)

    def twin(self) -> Self:
        """Return a copy of this prior whose denoiser has modules of its own, sharing this one's weights."""
        twin = copy.copy(self)
        shared = (*self.unet.parameters(), *self.unet.buffers())
        twin.unet = copy.deepcopy(self.unet, {id(p): p for p in shared})
        return twin


def load_of(folder: Folder, part: str, dtype: torch.dtype) -> Any:
    """Load a network of a folder, from its single file if it has one."""
    return load_network(folder.root, part, dtype) if folder.single is None else load_part(folder, part, dtype)


def check_parts(folder: Folder) -> None:
    """Raise ValueError when the JSON files show that the parts do not belong together."""
    config = folder.denoiser
    side_of(config.get("sample_size", config.get("image_size")))
    vae, drawn = read_json(folder.root / "vae" / "config.json"), number(config, "out_channels")
    latents = vae.get("latent_channels", 4)
    if latents != drawn:
        raise ValueError(f"its UNet draws {drawn} channels, its vae has {str(latents)[:40]}")
    width = folder.json("text_encoder/config.json").get("hidden_size")
    read = config.get("cross_attention_dim", config.get("context_dim"))
    if isinstance(width, int) and isinstance(read, int) and width != read:
        raise ValueError(f"its UNet reads a text of width {read}, its text_encoder gives {width}")
