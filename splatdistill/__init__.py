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
    from splatdistill.guidance.bridge import SDSBridge
    from splatdistill.guidance.cfd import CFD
    from splatdistill.guidance.clip import CLIP
    from splatdistill.guidance.core import GuideResult, Method, distill, sample
    from splatdistill.guidance.dsd import ASD, DSD, DSDPublished
    from splatdistill.guidance.flow import RFDS, FlowSDI, RFDSRev
    from splatdistill.guidance.guide import Guide
    from splatdistill.guidance.hifa import HiFA
    from splatdistill.guidance.methods import (
        CSD,
        DDS,
        ISM,
        NFSD,
        PDS,
        SDI,
        SDS,
        SJC,
        DreamCatalyst,
        SDIPublished,
        SDIPublishedPerpNeg,
    )
    from splatdistill.guidance.noise import Inversion
    from splatdistill.guidance.query import Comparison, Query, Source, State
    from splatdistill.guidance.registry import METHODS
    from splatdistill.guidance.reward import Reward, RewardConfig
    from splatdistill.guidance.schedules import Timesteps
    from splatdistill.guidance.sctd import SCTD
    from splatdistill.guidance.vsd import VSD
    from splatdistill.priors import load_prior
    from splatdistill.scene.cameras import Cameras
    from splatdistill.scene.gaussians import Gaussians
    from splatdistill.scene.rendering import rasterize, render
    from splatdistill.training.progress import RunResult
    from splatdistill.training.run import make_run

_HOMES = {
    "CLIP": "guidance.clip",
    "GuideResult": "guidance.core",
    "Method": "guidance.core",
    "distill": "guidance.core",
    "sample": "guidance.core",
    "SDSBridge": "guidance.bridge",
    "CFD": "guidance.cfd",
    "ASD": "guidance.dsd",
    "DSD": "guidance.dsd",
    "DSDPublished": "guidance.dsd",
    **dict.fromkeys(("RFDS", "RFDSRev", "FlowSDI"), "guidance.flow"),
    "Guide": "guidance.guide",
    "HiFA": "guidance.hifa",
    **dict.fromkeys(("CSD", "DDS", "ISM", "NFSD", "PDS", "SDI", "SDS", "SJC"), "guidance.methods"),
    "DreamCatalyst": "guidance.methods",
    "SDIPublished": "guidance.methods",
    "SDIPublishedPerpNeg": "guidance.methods",
    "Inversion": "guidance.noise",
    **dict.fromkeys(("Comparison", "Query", "Source", "State"), "guidance.query"),
    "METHODS": "guidance.registry",
    "Reward": "guidance.reward",
    "RewardConfig": "guidance.reward",
    "SCTD": "guidance.sctd",
    "Timesteps": "guidance.schedules",
    "VSD": "guidance.vsd",
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
    "ASD", "CFD", "CLIP", "CSD", "DDS", "DSD", "ISM", "METHODS", "NFSD", "PDS", "RFDS", "SCTD", "SDI", "SDS",
    "SJC", "VSD", "Cameras", "Comparison", "Config", "DSDPublished", "DreamCatalyst", "FlowSDI", "Gaussians",
    "Guide", "GuideResult", "HiFA", "Inversion", "Method", "Query", "RFDSRev", "Reward", "RewardConfig",
    "RunResult", "SDIPublished", "SDIPublishedPerpNeg", "SDSBridge", "Source", "State", "Timesteps",
    "UserError", "__version__", "distill", "load_prior", "make_run", "rasterize", "read_splat", "render",
    "resolve", "sample", "write_splat",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'splatdistill' has no attribute '{name}'")
    value = getattr(import_module(f"splatdistill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
