"""Score distillation: one skeleton, its noise sources and its methods."""

from splatdistill.guidance.core import Distillation, Method, distill, sample
from splatdistill.guidance.methods import METHODS, build_method
from splatdistill.guidance.noise import FixedNoise, InversionSettings, ddim_inversion, random_noise

__all__ = [
    "METHODS",
    "Distillation",
    "FixedNoise",
    "InversionSettings",
    "Method",
    "build_method",
    "ddim_inversion",
    "distill",
    "random_noise",
    "sample",
]
