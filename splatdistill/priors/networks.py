"""Loading of the networks in a teacher's folder: safetensors only, no remote code, and no notices."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from splatdistill.priors.patch_codec import PatchCodec
from splatdistill.priors.view_transformer import ViewTransformer

STEMS = {"text_encoder": "model", "image_encoder": "model"}  # other names are diffusers' classes
STEM = "diffusion_pytorch_model"
PARTS: dict[str, Any] = {  # the classes that each part may have
    "vae": (AutoencoderKL, AutoencoderTiny, PatchCodec),
    "transformer": (ViewTransformer,),
    "text_encoder": (CLIPTextModel,),
    "image_encoder": (CLIPVisionModelWithProjection,),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = ("beta_schedule", "beta_start", "trained_betas")
# Mean and standard deviation of the pictures that OpenAI's CLIP was trained on.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
MOST_STEPS, MOST_SIDE = 100_000, 4096  # limits of a schedule and of latents; beyond, the file is invalid
# Keys by which a configuration can name code to fetch or run, in transformers.
CODE = re.compile(r"attn_implementation|experts_implementation|kernel|auto_map")


def load_network(
    root: Path, part: str, dtype: torch.dtype, subfolder: str = "", allowed: tuple[Any, ...] = ()
) -> Any:
    """Load one network of a pipeline.

    Args:
        root: the pipeline's folder.
        part: the kind: "unet", "vae", "text_encoder" or "image_encoder".
        dtype: of its weights.
        subfolder: its folder, if not named as the part.
        allowed: the classes that it may have, if not those of the part.

    Raises:
        ValueError: another kind of network, or weights that are not complete as safetensors.
    """
    place = subfolder or part
    folder = root / place
    model = model_of(folder, allowed or PARTS.get(part, (UNet2DConditionModel,)))
    variant = "fp16" if "fp16" in weights_file(folder, STEMS.get(part, STEM)).name else None
    own = transformers_arguments(folder, model) if PreTrainedModel in model.mro() else {}
    network, info = model.from_pretrained(
        root,
        subfolder=place,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **own,
    )
    missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
    if missing or info["mismatched_keys"]:
        raise ValueError(f"{place}/ lacks {len(missing) or len(info['mismatched_keys'])} of its weights")
    return network


def model_of(folder: Path, allowed: tuple[Any, ...]) -> Any:
    """Return the class that a network's folder names; ValueError for another than the allowed."""
    config = read_json(folder / "config.json")
    named = config.get("_class_name") or next(iter(config.get("architectures") or ["nothing"]))
    for model in allowed:
        if model.__name__ == named:
            return model
    names = " or ".join(model.__name__ for model in allowed)
    raise ValueError(f"{folder.name}/ is a {str(named)[:80]}, expected a {names}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a part; ValueError where there is none."""
    name = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ValueError(f"{name} is missing")
    try:
        given = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON ({error})") from error
    if not isinstance(given, dict):
        raise ValueError(f"{name} holds no JSON object")
    return given


def transformers_arguments(folder: Path, model: Any) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that keep a folder from naming code: only torch's attention.

    Raises ValueError for a folder with an adapter, which transformers would fetch a base for.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder.name}/ holds an adapter (adapter_config.json); merge it first")
    config = model.config_class.from_dict(without_code(read_json(folder / "config.json")))
    if model.__name__.endswith("Encoder"):  # T5Gemma's file describes a decoder as well
        config = getattr(config, "encoder", None) or config
    return {"config": config, "attn_implementation": "sdpa" if model._supports_sdpa else "eager"}


def without_code(config: Any) -> Any:
    """Return a configuration without the keys that name code, on every level."""
    if isinstance(config, dict):
        return {key: without_code(value) for key, value in config.items() if not CODE.search(key)}
    return [without_code(value) for value in config] if isinstance(config, list) else config


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer of a folder; ValueError for one without words."""
    words = [{"tokenizer.json"}, {"vocab.json", "merges.txt"}]
    there = {path.name for path in folder.glob("*.*")}
    if not any(files <= there for files in words):
        raise ValueError(f"{folder.name}/ has no tokenizer.json, nor vocab.json with merges.txt")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def load_any_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, of whatever class it names in transformers; ValueError for none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model")):
        raise ValueError(f"{folder.name}/ has no tokenizer.json, vocab.json or spiece.model")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def weights_file(folder: Path, stem: str) -> Path:
    """Return the safetensors of a network's folder (the first of several); ValueError when it has none."""
    found = sorted(folder.glob(f"{stem}.safetensors*")) + sorted(folder.glob(f"{stem}*.safetensors"))
    if found:
        return found[0]
    if not folder.is_dir():
        raise ValueError(f"{folder.name}/ is missing")
    raise ValueError(f"{folder.name}/ has no {stem}.safetensors (pickled weights are refused)")


def weights_bytes(folder: Path, stem: str) -> int:
    """Return the size of a network's weights in its folder; of several variants, the first."""
    variant = ".fp16" if "fp16" in weights_file(folder, stem).name else ""
    files = [path for path in folder.glob(f"{stem}*.safetensors") if (".fp16" in path.name) == bool(variant)]
    return sum(path.stat().st_size for path in files)


def load_scheduler(root: Path) -> DDIMScheduler:
    """Return the noise schedule of a pipeline; ValueError for one that is no diffusion of this kind."""
    config = read_json(root / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name", "scheduler"))[:80]
    prediction = config.get("prediction_type", "epsilon")
    if "Flow" in name or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise ValueError(f"its scheduler ({name}) is made for flow matching, not for diffusion with betas")
    if not any(key in config for key in BETAS) and name not in ("DDIMScheduler", "DDPMScheduler"):
        raise ValueError(f"its scheduler ({name}) has no betas: it is no diffusion of this kind")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"its scheduler predicts '{str(prediction)[:40]}', expected {', '.join(PREDICTIONS)}"
        )
    count = config.get("num_train_timesteps", 1000)
    if not isinstance(count, int) or not 1 <= count <= MOST_STEPS:
        raise ValueError(
            f"its scheduler has {str(count)[:40]} training timesteps, expected 1 to {MOST_STEPS}"
        )
    scheduler: Any = DDIMScheduler.from_config(config)
    table = scheduler.alphas_cumprod
    if not (table.isfinite().all() and (table >= 0).all() and (table <= 1).all()):
        raise ValueError("its scheduler's alphas_cumprod leave [0, 1]")
    return scheduler


def normalization(folder: Path) -> tuple[list[float], list[float]] | None:
    """Return the image mean and standard deviation of a CLIP model; None if not stated.

    They are in preprocessor_config.json, or since transformers 5 in processor_config.json.
    """
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            given = read_json(folder / name)
            given = given if inside is None else given.get(inside, {})
            mean, std = given["image_mean"], given["image_std"]
            if len(mean) != 3 or len(std) != 3:
                raise ValueError(f"{name}: expected an image_mean and an image_std of three numbers")
            return mean, std
    return None


def side_of(sample_size: Any) -> int:
    """Return the side of square latents, from a number or a pair of equal ones; ValueError for others."""
    pair = sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    if len(pair) == 2 and pair[0] == pair[1] and isinstance(pair[0], int) and 1 <= pair[0] <= MOST_SIDE:
        return pair[0]
    raise ValueError(f"its UNet's sample_size is {str(sample_size)[:40]}, expected one side of a square")


def scale_of(config: Any) -> tuple[float, float]:
    """Return the scale of an autoencoder's latents, and the shift subtracted before.

    Raises ValueError for a scale that is missing, zero or not finite, and for latents scaled by channel.
    """
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    if not isinstance(scale, int | float) or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"its vae's scaling_factor is {str(scale)[:40]}, expected a number such as 0.18215")
    if not isinstance(shift, int | float) or not math.isfinite(shift):
        raise ValueError(f"its vae's shift_factor is {str(shift)[:40]}, expected a number")
    if getattr(config, "latents_mean", None) is not None or getattr(config, "latents_std", None) is not None:
        raise ValueError("its vae scales each channel by its own latents_mean and latents_std: not read here")
    return float(scale), float(shift)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' progress bars and notices while loading; errors are still raised."""
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
