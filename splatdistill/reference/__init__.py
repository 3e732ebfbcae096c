"""Slow pure-torch twins of the operations in splatdistill.ops, with the same names and signatures."""

from .ddim import (
    ddim_coefficients,
    ddim_step,
    guided_output,
    noise_residual,
    prediction_coefficients,
    recover_coefficients,
    recover_noise,
)
from .raster import rasterize

__all__ = [
    "ddim_coefficients",
    "ddim_step",
    "guided_output",
    "noise_residual",
    "prediction_coefficients",
    "rasterize",
    "recover_coefficients",
    "recover_noise",
]
