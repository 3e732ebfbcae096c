"""Teachers in one file: checkpoints of Stable Diffusion 1 and 2, by diffusers' converter, and MV-Adapter's.

Only safetensors are read. What the file lacks (configurations, tokenizer, scheduler) comes from a pipeline's
folder: the file's own, where it lies in one, else that of the base that its shapes say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.errors import UserError
from splatdistill.priors.folders import Folder, header

if TYPE_CHECKING:
    import torch

READ = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
BASES = {768: "sd15", 1024: "sd21"}  # width of the text: the alias whose configurations are right
UNET, TEXT = "model.diffusion_model.", "cond_stage_model."
CAMERA_CHANNELS, CAMERA_CELL = (
    6,
    8,
)  # of what MV-Adapter reads of a camera; pixels of it to one of the latents


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of a whole latent diffusion model; only its header is read."""
    names = (header(path) or {}) if path.suffix.lower() == ".safetensors" else {}
    return any(name.startswith(UNET) for name in names) and any(name.startswith(TEXT) for name in names)


def is_adapter(path: Path) -> bool:
    """Return whether a file is MV-Adapter's for texts and Stable Diffusion 2.1; only its header is read.

    One that reads geometry has weights of the same names and shapes: the published name of its file tells.
    """
    names = (header(path) or {}) if path.suffix.lower() == ".safetensors" else {}
    shape = names.get("adapter.conv_in.weight", {}).get("shape", [0, 0])
    right = shape[1:2] == [CAMERA_CHANNELS * CAMERA_CELL**2] and "g2mv" not in path.name
    return right and any("_mv." in name for name in names) and not any("_ref." in name for name in names)


def base_of(path: Path) -> str:
    """Return the alias of the model that a checkpoint was made from; UserError for another kind."""
    width = (header(path) or {}).get(READ, {}).get("shape", [0, 0])[-1]
    if width not in BASES:
        raise UserError(
            f"prior '{path}': a checkpoint that reads texts of width {width}; without a folder only "
            "768 (Stable Diffusion 1) and 1024 (2) are known: put the file into its base's folder, beside "
            "model_index.json"
        )
    return BASES[width]


def load_part(folder: Folder, part: str, dtype: torch.dtype) -> Any:
    """Load the unet, vae or text_encoder of a folder's single file."""
    import diffusers
    from diffusers.loaders.single_file_utils import (
        create_diffusers_clip_model_from_ldm,
        load_single_file_checkpoint,
    )
    from transformers import CLIPTextModel

    assert folder.single is not None
    where: dict[str, Any] = {"subfolder": part, "torch_dtype": dtype, "local_files_only": True}
    if part == "text_encoder":
        checkpoint = load_single_file_checkpoint(str(folder.single), local_files_only=True)
        return create_diffusers_clip_model_from_ldm(
            CLIPTextModel, checkpoint=checkpoint, config=str(folder.root), **where
        )
    network = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    return network.from_single_file(str(folder.single), config=str(folder.root), **where)
