"""Score distillation: one skeleton, its methods, and one call from pictures to a loss."""

from splatdistill.guidance.clip import CLIP
from splatdistill.guidance.core import Distillation, FixedNoise, GuideResult, Method, Views, distill, sample
from splatdistill.guidance.dsd import DSD, DSDPublished
from splatdistill.guidance.guide import Guide
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
from splatdistill.guidance.noise import Inversion, ddim_inversion
from splatdistill.guidance.query import Comparison, Query, Source, State
from splatdistill.guidance.registry import METHODS, find_method, method_names
from splatdistill.guidance.schedules import Timesteps
from splatdistill.guidance.vsd import VSD

__all__ = [
    "CLIP",
    "CSD",
    "DDS",
    "DSD",
    "ISM",
    "METHODS",
    "NFSD",
    "PDS",
    "SDI",
    "SDS",
    "SJC",
    "VSD",
    "Comparison",
    "DSDPublished",
    "Distillation",
    "DreamCatalyst",
    "FixedNoise",
    "Guide",
    "GuideResult",
    "Inversion",
    "Method",
    "Query",
    "SDIPublished",
    "SDIPublishedPerpNeg",
    "Source",
    "State",
    "Timesteps",
    "Views",
    "ddim_inversion",
    "distill",
    "find_method",
    "method_names",
    "sample",
]
