"""LoRA files (2106.09685) on a teacher's UNet and text encoder, in diffusers' or kohya's naming.

diffusers converts the names and peft computes the products; the result is merged into the weights, so a
teacher with a LoRA costs no more than one without. Light to import: a file is checked before torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.errors import UserError
from splatdistill.priors.folders import header

if TYPE_CHECKING:
    from torch import Tensor, nn

UNET, TEXT = "unet", "text_encoder"  # the parts of a teacher, as diffusers prefixes their weights
TRANSFORMER = "transformer"  # prefixes those of a denoiser that is one
TRIGGER = "modelspec.trigger_phrase"  # in a file's metadata: phrases that it taught, with commas between
ADAPTER = "lora_adapter_metadata"  # in a file's metadata: peft's configuration, by diffusers
KINDS = {  # marks of other adapters, which peft or diffusers would read in part
    ".dora_scale": "DoRA",
    "magnitude_vector": "DoRA",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".lora_mid": "LoCon with a core tensor",
}
DOWN = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight")
UP = (".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and the factor of its change."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """Return the file that FILE or FILE:SCALE names; raises UserError where there is none."""
        whole, scale = Path(text).expanduser(), 1.0
        name, colon, number = text.rpartition(":")
        if colon and not whole.exists():
            try:
                whole, scale = Path(name).expanduser(), float(number)
            except ValueError:
                raise UserError(f"--lora {text}: '{number}' is no scale; expected FILE or FILE:0.8") from None
        if not math.isfinite(scale):
            raise UserError(f"--lora {text}: the scale is not finite; expected FILE or FILE:0.8")
        if not whole.is_file():
            raise UserError(f"--lora {text}: there is no file {whole}")
        return cls(whole.resolve(), scale)

    def __str__(self) -> str:
        return str(self.path) if self.scale == 1.0 else f"{self.path}:{self.scale:g}"

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def metadata(self) -> dict[str, str]:
        """Return the texts in the file's header; raises UserError for a file that is no safetensors."""
        told = header(self.path)
        if told is None:
            raise UserError(
                f"{self.path} is no safetensors file; a LoRA is read from .safetensors, never from a pickle"
            )
        found = told.get("__metadata__")
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def sealed(files: Sequence[str], digests: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files with absolute paths, and their digests.

    digests: those that a run was made with, if any. Raises UserError for a file that is missing, is no
    safetensors, or is another than the run was made with.
    """
    loras = [LoraFile.parse(file) for file in files]
    for lora in loras:
        lora.metadata()
    found = tuple(lora.digest() for lora in loras)
    for lora, before, now in zip(loras, digests, found, strict=False):
        if before != now:
            raise UserError(
                f"{lora.path} is another file than this run was made with (its SHA-256 was {before[:12]}..., "
                f"and is {now[:12]}...); put it back, or start another run"
            )
    return tuple(map(str, loras)), found


def taught(files: Iterable[str]) -> tuple[str, ...]:
    """Return the phrases that LoRA files say they taught."""
    said = ",".join(LoraFile.parse(file).metadata().get(TRIGGER, "") for file in files)
    return tuple(phrase.strip() for phrase in said.split(",") if phrase.strip())


def merge(lora: LoraFile, unet: Any, text_encoder: Any, teacher: str) -> None:
    """Add a LoRA's change, times its scale, to the weights of a teacher's networks, in place.

    unet and text_encoder: networks in float32; the second may be None. Raises UserError, before anything is
    changed, for a file that is no LoRA of this teacher.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    from splatdistill.priors.networks import quiet

    parts = {UNET: unet, TEXT: text_encoder}
    state, metadata = _read(lora)
    first = next(iter(state))
    try:
        state = Loader.lora_state_dict(state)[0]
    except Exception as error:  # what diffusers' conversion raises for foreign names is not documented
        raise _foreign(lora, first) from error
    _check(lora, state, parts, teacher)
    options: dict[str, Any] = {"network_alphas": None, "metadata": metadata, "adapter_name": "lora"}
    with quiet():
        if any(key.startswith(f"{UNET}.") for key in state):
            Loader.load_lora_into_unet(state, unet=parts[UNET], **options)
            _fuse(parts[UNET], lora.scale)
        if any(key.startswith(f"{TEXT}.") for key in state):
            Loader.load_lora_into_text_encoder(state, text_encoder=parts[TEXT], **options)
            _fuse(parts[TEXT], lora.scale)


def _read(lora: LoraFile) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a file's tensors in float32, with kohya's alphas multiplied in, and peft's configuration."""
    from safetensors.torch import load_file

    told = lora.metadata()
    try:
        state = {_renamed(name): value.float() for name, value in load_file(lora.path).items()}
    except Exception as error:  # safetensors' own exception, and torch's
        raise UserError(
            f"{lora.path} is damaged ({' '.join(str(error).split())[:120]}); copy it again"
        ) from error
    for mark, kind in KINDS.items():
        if any(mark in name for name in state):
            raise UserError(
                f"{lora.path} is a {kind}, not a plain LoRA; merge it into a model, or convert it"
            )
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"{lora.path} holds numbers that are not finite; copy it again")
    for name in [name for name in state if name.endswith(".alpha")]:
        stem, alpha = name.removesuffix(".alpha"), float(state.pop(name))
        down, up = (next((stem + end for end in ends if stem + end in state), None) for ends in (DOWN, UP))
        if down is None or up is None:
            raise _foreign(lora, name)
        state[up] = state[up] * (alpha / state[down].shape[0])
    if not state:
        raise UserError(f"{lora.path} holds no weights; expected a LoRA")
    try:
        metadata = json.loads(told[ADAPTER]) if ADAPTER in told else None
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        return state, None
    return state, {_renamed(name): value for name, value in metadata.items()}


def _renamed(name: str) -> str:
    """Return a name under the denoiser's one prefix: diffusers has another for transformers."""
    return re.sub(rf"^{TRANSFORMER}\.", f"{UNET}.", name)


def _foreign(lora: LoraFile, name: str) -> UserError:
    return UserError(f"{lora.path} is no LoRA in diffusers' or kohya's naming: it holds '{name[:80]}'")


def _check(lora: LoraFile, state: dict[str, Tensor], parts: dict[str, Any], teacher: str) -> None:
    """Raise UserError unless each pair of factors fits a linear map or convolution of these networks."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    for key in state:
        if key.partition(".")[0] not in parts:
            raise _foreign(lora, key)
    for part, network in parts.items():
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        if not own:
            continue
        if network is None:
            raise UserError(f"{lora.path} changes a text encoder, and the teacher '{teacher}' has none")
        try:
            if part == TEXT:
                own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
            elif "lora_A" not in next(iter(own)):
                own = convert_unet_state_dict_to_peft(own)
        except ValueError as error:  # names of neither kind
            raise _foreign(lora, f"{part}.{next(iter(own))}") from error
        if part == TEXT and not hasattr(network, "text_model"):
            own = {k.removeprefix("text_model."): v for k, v in own.items()}
        _check_part(lora, own, network, f"{part} of the teacher '{teacher}'")


def _check_part(lora: LoraFile, state: dict[str, Tensor], network: nn.Module, whose: str) -> None:
    modules = dict(network.named_modules())
    for key, down in state.items():
        if key.endswith(".lora_B.weight"):
            continue
        name = key.removesuffix(".lora_A.weight")
        up, weight = state.get(f"{name}.lora_B.weight"), getattr(modules.get(name), "weight", None)
        if name == key or up is None:
            raise _foreign(lora, key)
        if weight is None:
            raise UserError(
                f"{lora.path} is for another model: it changes '{name[:100]}', which is not in the {whose}"
            )
        made = (up.shape[0], *down.shape[1:])  # of the product
        if up.shape[1] != down.shape[0]:
            raise UserError(
                f"{lora.path} is damaged: the factors of '{name[:100]}' have ranks {down.shape[0]} and "
                f"{up.shape[1]}, expected the same; copy it again"
            )
        if made != tuple(weight.shape):
            raise UserError(
                f"{lora.path} is for another model: its '{name[:100]}' is {list(made)}, that of the {whose} "
                f"is {list(weight.shape)}"
            )


def _fuse(network: Any, scale: float) -> None:
    """Add the adapters' products to the weights, and take the adapters away."""
    from diffusers.utils import recurse_remove_peft_layers, scale_lora_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    scale_lora_layers(network, scale)
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    recurse_remove_peft_layers(network)
    network.requires_grad_(False)
    network._hf_peft_config_loaded = False
    if hasattr(network, "peft_config"):
        del network.peft_config
