"""Frozen 2D diffusion models, behind one protocol."""

from splatdistill.priors.loading import load_prior

__all__ = ["load_prior"]
