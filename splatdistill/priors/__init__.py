"""Frozen 2D diffusion models, behind one protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from splatdistill.priors.latent import LatentPrior


def load_prior(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LatentPrior:
    """The prior of that name or folder, in the class that its UNet asks for; see `LatentPrior.load`."""
    from splatdistill.priors.latent import LatentPrior, locate
    from splatdistill.priors.multiview import CAMERA, MultiViewPrior
    from splatdistill.priors.zero123 import Zero123Prior

    folder, place = locate(name)
    cls: type[LatentPrior] = LatentPrior
    try:
        config = json.loads((folder / place / "config.json").read_text("utf-8"))
        if CAMERA in (config.get("projection_class_embeddings_input_dim"), config.get("camera_dim")):
            cls = MultiViewPrior
        elif config.get("in_channels") == 2 * config.get("out_channels", 0):
            cls = Zero123Prior
    except (OSError, ValueError, AttributeError):
        pass  # `load` will name what is broken
    return cls.load(name, device, dtype)
