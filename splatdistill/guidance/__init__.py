"""Score distillation: one skeleton, its noise sources and its methods."""

from splatdistill.guidance.core import Distillation, Method, distill, sample
from splatdistill.guidance.methods import METHODS, build_method
from splatdistill.guidance.noise import (
    FixedNoise,
    InversionSettings,
    Source,
    StudentSettings,
    TrajectorySettings,
    ddim_inversion,
    predicted_noise,
    random_noise,
)

__all__ = [
    "METHODS",
    "Distillation",
    "FixedNoise",
    "InversionSettings",
    "Method",
    "Source",
    "StudentSettings",
    "TrajectorySettings",
    "build_method",
    "ddim_inversion",
    "distill",
    "predicted_noise",
    "random_noise",
    "sample",
]
