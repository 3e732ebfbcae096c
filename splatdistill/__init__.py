"""Text to 3D Gaussian splats by score distillation: the public names, imported when they are first used."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads that wait for work must not spin: with one other busy process a run would take ten times as long.
# OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from splatdistill.config.load import resolve
    from splatdistill.config.schema import Config
    from splatdistill.errors import UserError
    from splatdistill.formats import read_splat, write_splat
    from splatdistill.guidance import (
        CLIP,
        CSD,
        DDS,
        DSD,
        ISM,
        METHODS,
        NFSD,
        PDS,
        SDI,
        SDS,
        SJC,
        VSD,
        DreamCatalyst,
        DSDPublished,
        Guide,
        GuideResult,
        Inversion,
        Method,
        SDIPublished,
        SDIPublishedPerpNeg,
        Timesteps,
        distill,
        sample,
    )
    from splatdistill.priors import load_prior
    from splatdistill.scene.cameras import Cameras
    from splatdistill.scene.gaussians import Gaussians
    from splatdistill.scene.rendering import rasterize, render
    from splatdistill.training.progress import RunResult
    from splatdistill.training.run import make_run

_GUIDANCE = (
    "CLIP", "CSD", "DDS", "DSD", "ISM", "METHODS", "NFSD", "PDS", "SDI", "SDS", "SJC", "VSD",
    "DSDPublished", "DreamCatalyst", "Guide", "GuideResult", "Inversion", "Method", "SDIPublished",
    "SDIPublishedPerpNeg", "Timesteps", "distill", "sample",
)  # fmt: skip
_HOMES = dict.fromkeys(_GUIDANCE, "guidance") | {
    "Cameras": "scene.cameras",
    "Config": "config.schema",
    "Gaussians": "scene.gaussians",
    "RunResult": "training.progress",
    "UserError": "errors",
    "load_prior": "priors",
    "make_run": "training.run",
    "rasterize": "scene.rendering",
    "read_splat": "formats",
    "render": "scene.rendering",
    "resolve": "config.load",
    "write_splat": "formats",
}

__all__ = [
    "CLIP", "CSD", "DDS", "DSD", "ISM", "METHODS", "NFSD", "PDS", "SDI", "SDS", "SJC", "VSD", "Cameras",
    "Config", "DSDPublished", "DreamCatalyst", "Gaussians", "Guide", "GuideResult", "Inversion", "Method",
    "RunResult", "SDIPublished", "SDIPublishedPerpNeg", "Timesteps", "UserError", "__version__", "distill",
    "load_prior", "make_run", "rasterize", "read_splat", "render", "resolve", "sample", "write_splat",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'splatdistill' has no attribute '{name}'")
    value = getattr(import_module(f"splatdistill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
