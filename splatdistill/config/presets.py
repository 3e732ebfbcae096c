"""The presets: which YAML files apply to a prior, a method and an edit."""

import os
import re
from pathlib import Path

from splatdistill.priors.folders import Folder
from splatdistill.priors.loading import SHIPPED
from splatdistill.priors.single import is_adapter

VARIABLE = "SPLATDISTILL_PRIOR"  # of the environment: another default
DEFAULT = os.environ.get(VARIABLE) or "real"  # the prior where none is named


def preset_folder() -> Path:
    """Return the folder of the presets: inside the installed package, or configs/ of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def named(config: str) -> Path:
    """Return the file that --config means: a path, or the name of a preset (sdi_published)."""
    preset = preset_folder() / f"{config}.yaml"
    return preset if preset.is_file() and not Path(config).exists() else Path(config)


def family_of(prior: str) -> str:
    """Return the family of presets that suits a prior: what its folder says, or by its denoiser."""
    places = (Path(prior), Path(prior).parent)  # a pipeline, or a denoiser in it
    if prior in SHIPPED:
        places = (SHIPPED[prior].root,)
    for place in places:
        told = Folder(prior, place).json("model_index.json").get("family")
        if isinstance(told, str) and re.fullmatch(r"\w+", told):
            return told
    draws = Folder(prior, places[0])
    pixels = draws.json("unet/config.json").get("in_channels") == 3 and not draws.json("vae/config.json")
    return "pixel" if pixels else "sd"


def presets_for(prior: str, method: str, task: str) -> list[Path]:
    """Return the presets of the family, of the method in it and of the task, where they exist.

    A task has settings of its own (edit.yaml), and some that depend on the family (views-refine.yaml).
    """
    family = family_of(prior)
    names = [family, f"{family}_{method}"]
    names += [f"{family}-mvadapter"] if is_adapter(Path(prior)) else []
    names += [task, f"{family}-{task}"] if task else []
    return [path for name in names if (path := preset_folder() / f"{name}.yaml").is_file()]
