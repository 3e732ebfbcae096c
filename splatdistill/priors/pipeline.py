"""The skeleton of families beside Stable Diffusion: a denoiser, perhaps an autoencoder, a reader of texts.

A family is one class that names its denoiser, diffusers' pipeline whose `encode_prompt` reads its texts, and
the text encoders; and that says how the denoiser is called. Text encoders of billions of weights are in
memory only while they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from splatdistill.ops import upload
from splatdistill.priors.base import Conditioning, Prior, run_branches
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.latent import default_dtype, vae_dtype
from splatdistill.priors.networks import (
    load_any_tokenizer,
    load_network,
    load_scheduler,
    quiet,
    read_json,
    scale_of,
    weights_bytes,
)

KEPT = 2**30  # bytes of text encoders that stay in memory; larger ones are loaded anew for new texts


class Read(NamedTuple):
    """A text as a denoiser takes it: hidden states [n,L,D], pooled [n,P], and which count [n,L]; or None."""

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


def pack(read: Read) -> Tensor:
    """Return one tensor [n,L',D'] of all of it: pooled as one row more, the mask as one column more."""
    hidden, mask = read.hidden.float(), read.mask
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.float()
    packed = torch.cat([hidden, mask.to(hidden)[..., None]], -1)
    if read.pooled is None:
        return packed
    row = read.pooled.float()[:, None]
    width = max(packed.shape[-1], row.shape[-1])
    return torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in (packed, row)], 1)


def unpack(packed: Tensor, hidden: int, pooled: int) -> Read:
    """Return what `pack` took, of known widths; `pooled` 0 for none."""
    rows = packed[:, :-1] if pooled else packed
    return Read(rows[..., :hidden], packed[:, -1, :pooled] if pooled else None, rows[..., hidden])


class TextReader:
    """The text encoders of a pipeline, behind diffusers' own `encode_prompt`.

    Args:
        folder: the pipeline's.
        family: names the pipeline and the encoders, and calls `encode_prompt`.
        device: where the encoders run.
    """

    def __init__(self, folder: Folder, family: type[PipelinePrior], device: torch.device | str) -> None:
        self.folder, self.family, self.device = folder, family, device
        self.size = sum(weights_bytes(folder.root / part, "model") for part in family.encoders)
        self.known: dict[str, Tensor] = {}
        self.expected: list[str] = []
        self._kept: Any = None

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Return packed embeddings [n,L,D] of texts; each is read once."""
        if any(text not in self.known for text in texts):
            new = [text for text in dict.fromkeys([*texts, *self.expected]) if text not in self.known]
            with self._open() as pipeline:
                self.known.update(zip(new, pack(self.family.encode_text(pipeline, new)), strict=True))
        return torch.stack([self.known[text] for text in texts])

    @contextmanager
    def _open(self) -> Iterator[Any]:
        pipeline = self._kept or self._load()
        self._kept = pipeline if self.size <= KEPT else None
        yield pipeline

    def _load(self) -> Any:
        """Load tokenizers and encoders, the large ones in bfloat16, into a pipeline that has nothing else."""
        kind, root = getattr(diffusers, self.family.pipeline), self.folder.root
        dtype = torch.float32 if self.size <= KEPT else torch.bfloat16
        parts: dict[str, Any] = dict.fromkeys(kind._get_signature_keys(kind)[0])
        with quiet():
            for part, names in self.family.encoders.items():
                allowed = tuple(transformers_class(name) for name in names)
                network = load_network(root, "text_encoder", dtype, part, allowed)
                parts[part] = network.to(self.device).eval().requires_grad_(False)
                tokenizer = part.replace("text_encoder", "tokenizer")
                parts[tokenizer] = load_any_tokenizer(root / tokenizer)
            return kind(**parts, **self.family.options(self.folder))


def transformers_class(name: str) -> Any:
    """Return a class of transformers; PRX's encoder is not among its public names."""
    if name == "T5GemmaEncoder":
        from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

        return T5GemmaEncoder
    if name == "Qwen3VLTextModel":
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

        return Qwen3VLTextModel
    return getattr(transformers, name)


class PipelinePrior(Prior):
    """A text-to-image model in diffusers layout; a subclass is a family.

    A subclass sets the names below, and overrides `encode_text`, `call`, and what else differs.

    Attributes:
        pipeline: diffusers' pipeline class.
        denoiser: the class of the denoiser.
        place: the denoiser's folder.
        encoders: text encoders by folder, each with the classes that it may have.
        decoders: the classes that its autoencoder may have; none for a model of pixels.
        largest: the side in latents beyond which the model's own is cut.
        text_width: the key of the denoiser's configuration that has the width of a text.
        pooled_width: the same of its pooled embedding; empty where it reads none.
    """

    pipeline: ClassVar[str]
    denoiser: ClassVar[str]
    place: ClassVar[str] = "transformer"
    encoders: ClassVar[Mapping[str, tuple[str, ...]]]
    decoders: ClassVar[tuple[str, ...]] = ("AutoencoderKL",)
    largest: ClassVar[int] = 128
    text_width: ClassVar[str] = "caption_channels"
    pooled_width: ClassVar[str] = ""

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is this family's."""
        config = folder.json(f"{cls.place}/config.json")
        return config.get("_class_name") == cls.denoiser and cls.suits(config, folder)

    @classmethod
    def suits(cls, config: Mapping[str, Any], folder: Folder) -> bool:
        """Return whether a denoiser of the family's class, by its configuration, is the family's."""
        return True

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the JSON files show that the parts do not belong together."""
        cls.schedule(folder)
        for part in (cls.place, *cls.encoders, *(["vae"] if cls.decoders else [])):
            read_json(folder.root / part / "config.json")
        if cls.decoders:
            told = read_json(folder.root / "vae" / "config.json")
            have, want = told.get("latent_channels", 4), cls.channels(folder.json(f"{cls.place}/config.json"))
            if have != want:
                raise ValueError(f"its denoiser draws {want} channels, its vae has {str(have)[:40]}")

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load a folder: the small parts first. Raises what the libraries raise; see `load_prior`."""
        if dtype is None:  # float16 overflows in several of these
            dtype = torch.bfloat16 if torch.device(device).type == "cuda" else default_dtype(device)
        schedule = cls.schedule(folder)
        cls.check(folder)
        with quiet():
            network = getattr(diffusers, cls.denoiser)
            denoiser = load_network(folder.root, cls.place, dtype, allowed=(network,)).to(device)
            kinds = tuple(getattr(diffusers, name) for name in cls.decoders)
            vae = None
            if kinds:
                vae = load_network(folder.root, "vae", vae_dtype(dtype, device), allowed=kinds).to(device)
        return cls(folder, denoiser, vae, TextReader(folder, cls, device), *schedule)

    @classmethod
    def schedule(cls, folder: Folder) -> tuple[Tensor, float, str]:
        """Return alphas_cumprod [T], alpha_bar of the clean end, and what the network predicts."""
        scheduler: Any = load_scheduler(folder.root)
        table = scheduler.alphas_cumprod.double().cpu()
        return table, float(scheduler.final_alpha_cumprod), scheduler.config.prediction_type

    @classmethod
    def channels(cls, config: Mapping[str, Any]) -> int:
        """Return the channels of the autoencoder's latents, from the denoiser's configuration."""
        return number(config, "in_channels")

    @classmethod
    def options(cls, folder: Folder) -> dict[str, Any]:
        """Return further arguments of the pipeline that reads texts."""
        return {}

    @classmethod
    def encode_text(cls, pipeline: Any, texts: list[str]) -> Read:
        """Return texts as the family's pipeline reads them."""
        raise NotImplementedError

    def __init__(
        self,
        folder: Folder,
        denoiser: Any,
        vae: Any,
        reader: TextReader,
        alphas_cumprod: Tensor,
        clean_alpha_bar: float,
        prediction_type: str,
    ) -> None:
        self.name, self.folder, self.reader = folder.name, folder, reader
        self.network_, self.vae = denoiser, vae
        for network in filter(None, (denoiser, vae)):
            network.eval().requires_grad_(False)
        self.device, self.dtype = denoiser.device, denoiser.dtype
        self.alphas_cumprod, self.clean_alpha_bar = alphas_cumprod, clean_alpha_bar
        self.prediction_type = prediction_type
        self.latent_shape, self.image_size = self.shapes()
        self.widths = self.read_widths()
        self._scale, self._shift = (1.0, 0.0) if vae is None else self.scaling()

    @property
    def config(self) -> Any:
        """The denoiser's configuration."""
        return self.network_.config

    @property
    def factor(self) -> int:
        """Pixels of a picture for each of the latents, along a side."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return the shape of latents and the side of pictures."""
        side = min(self.config.sample_size, self.largest)
        return (self.config.in_channels, side, side), side * self.factor

    def read_widths(self) -> tuple[int, int]:
        """Return the widths of a text's hidden states and of its pooled embedding, 0 for none."""
        return self.config[self.text_width], self.config[self.pooled_width] if self.pooled_width else 0

    def scaling(self) -> tuple[Any, Any]:
        """Return the scale of latents, and the shift subtracted before."""
        return scale_of(self.vae.config)

    def encode(self, rgb: Tensor) -> Tensor:
        """Return the scaled latents [V,C,h,w] of images [V,3,H,W] in [0,1]; differentiable."""
        size = (self.image_size, self.image_size)
        if rgb.shape[-2:] != size:
            rgb = F.interpolate(rgb, size, mode="bilinear", antialias=rgb.shape[-1] > self.image_size)
        if self.vae is None:
            return 2.0 * rgb - 1.0
        encoded = self.vae.encode((2.0 * rgb - 1.0).to(self.vae.dtype))
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return (self.folded(raw.float()) - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the images [V,3,H,W] in [0,1] of scaled latents [V,C,h,w]."""
        if self.vae is not None:
            raw = self.unfolded(z / self._scale + self._shift)
            z = self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0].float()
        return (z * 0.5 + 0.5).clamp(0.0, 1.0)

    def folded(self, raw: Tensor) -> Tensor:
        """Return the autoencoder's latents as the denoiser has them, unscaled."""
        return raw

    def unfolded(self, latents: Tensor) -> Tensor:
        """Undo `folded`."""
        return latents

    def embed(self, texts: list[str]) -> Tensor:
        """Return packed embeddings [n,L,D], see `pack`; longer texts are cut by the pipeline."""
        return self.reader(texts)

    def expect(self, texts: Sequence[str]) -> None:
        """Have these texts read with the next ones."""
        self.reader.expected += texts

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return raw float32 outputs [R,B,C,h,w] of the denoiser at z_t [B,C,h,w], t [B], in one batch."""
        return run_branches(self.network, z_t, upload([t], self.device)[0], cond)

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Return raw float32 outputs [n,C,h,w] at z_t [n,C,h,w], t [n], packed texts [n,L,D]."""
        return self.call(z_t.to(self.dtype), t, unpack(embeddings, *self.widths)).float()

    def call(self, x: Tensor, t: Tensor, text: Read) -> Tensor:
        """Run the denoiser at its own inputs x [n,C,h,w] and timesteps t [n]."""
        raise NotImplementedError
