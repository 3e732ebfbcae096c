"""Frozen 2D diffusion models, behind one protocol."""
