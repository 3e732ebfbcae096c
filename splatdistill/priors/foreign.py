"""Descriptions of folders and files that no prior reads, from their JSON files and headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splatdistill.priors.folders import Folder, header, number, one_line

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
NAMES = (  # parts of weight names, and the model they belong to
    ("to_q_mv", "an MV-Adapter of another kind: the one for texts and Stable Diffusion 2.1 is read"),
    ("lora", "a LoRA file, which changes a teacher but is none"),
    ("double_blocks.", "a single file of FLUX"),
    ("joint_blocks.", "a single file of Stable Diffusion 3"),
    ("model.diffusion_model.", "a single-file checkpoint: convert it to a diffusers folder"),
)


def kind_of(folder: Folder) -> str:
    """Return what a folder is, such as "DIR is an SDXL UNet: it needs ..."."""
    root = folder.root
    if root.is_file():
        return f"{root} is {_file(root)}"
    if not (root / "model_index.json").is_file():
        return f"{root} is {_no_pipeline(root)}"
    path = root / folder.place / "config.json"
    if path.is_file():
        if not folder.denoiser:
            return f"cannot load {path}: {_damage(path)}"
        return f"{root} has {_denoiser(folder)}"
    pipeline = str(folder.json("model_index.json").get("_class_name", "pipeline"))[:80]
    for place in ("transformer", "prior", "decoder"):
        name = folder.json(f"{place}/config.json").get("_class_name")
        if name:
            return f"{root} is a {pipeline}, whose denoiser is a {str(name)[:80]} and no UNet"
    return f"{root} is a {pipeline} without {folder.place}/"


def _damage(path: Path) -> str:
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return one_line(error)
    return "it is no JSON object"


def _file(path: Path) -> str:
    if path.suffix.lower() in PICKLES:
        return "a file of pickled weights, and those are refused"
    if path.suffix.lower() != ".safetensors":
        return "a file"
    names = json.dumps(header(path)).lower()
    kind = next((kind for part, kind in NAMES if part in names), "a lone file of weights")
    return f"{kind}"


def _no_pipeline(root: Path) -> str:
    missing = "no diffusers pipeline (no model_index.json)"
    files = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    if any("lora" in name.lower() for name in files) or "adapter_config.json" in files:
        return "a LoRA, which changes a teacher but is none"
    weights = [name for name in files if name.endswith(".safetensors")]
    if "config.json" in files:
        name = Folder("", root).json("config.json").get("_class_name", "model")
        return f"{missing} but one part of it, a {str(name)[:80]}: give the folder of the whole pipeline"
    if weights:
        return f"{missing}; in it lies {weights[0]}, {_file(root / weights[0])}"
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        return f"{missing}; in it lies {pickles[0]}, a file of pickled weights, and those are refused"
    return missing


def _denoiser(folder: Folder) -> str:
    """Return what a denoiser needs as input that no prior here provides."""
    config, name = folder.denoiser, str(folder.denoiser.get("_class_name"))[:80]
    if name != "UNet2DConditionModel":
        return f"a {name}, which is no text-to-image UNet that is read here"
    for kind in (_conditions(config), _channels(config)):
        if kind:
            return kind
    return f"a {name} of a kind that is not read here"


def _conditions(config: Mapping[str, Any]) -> str:
    """Return what a UNet2DConditionModel reads beside the text."""
    added, hidden = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    if config.get("time_cond_proj_dim"):
        return "a UNet distilled for few steps (LCM): it is told the guidance, and has no field at all levels"
    if hidden == "text_proj":
        return "a UNet of DeepFloyd IF that enlarges a picture; its first stage is read"
    if added == "text_time":
        return "an SDXL UNet that also reads a picture"
    if added not in (None, "text") or hidden is not None:
        return f"a UNet that also reads pictures or hints ({hidden or added})"
    kind, classes = config.get("class_embed_type"), number(config, "num_class_embeds")
    if kind in ("projection", "simple_projection"):
        return "an unCLIP UNet: it also reads the embedding of a picture"
    if number(config, "in_channels") == 7:
        return "an upscaling UNet (7 channels in): it reads a smaller picture"
    if kind is not None or classes:
        return "a UNet that is told a class by number"
    if config.get("attention_type", "default") != "default":
        return f"a UNet with {str(config['attention_type'])[:40]} attention: it also reads boxes"
    return ""


def _channels(config: Mapping[str, Any]) -> str:
    """Return what a UNet2DConditionModel reads, judged by its number of channels."""
    read, drawn = number(config, "in_channels"), number(config, "out_channels")
    known = {
        9: "an inpainting UNet: it also reads a mask and a masked picture",
        5: "a depth-to-image UNet: it also reads a map of depth",
        8: "an InstructPix2Pix UNet, which edits a picture, or Zero-1-to-3's without clip_camera_projection/",
    }
    if read == drawn:
        return ""
    kind = known.get(read, "a UNet that also reads something other than noisy latents") if read else ""
    return f"{kind or 'a UNet'} ({read} channels in, {drawn} out)"
