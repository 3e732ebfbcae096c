"""Fused operations: native kernels where they were built, the pure-torch reference elsewhere."""

from .ddim import (
    ddim_coefficients,
    ddim_step,
    noise_residual,
    prediction_coefficients,
    recover_coefficients,
    recover_noise,
)
from .raster import rasterize
from .transfer import send, upload

__all__ = [
    "ddim_coefficients",
    "ddim_step",
    "noise_residual",
    "prediction_coefficients",
    "rasterize",
    "recover_coefficients",
    "recover_noise",
    "send",
    "upload",
]
