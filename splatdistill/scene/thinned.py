"""Splats that lack most of their Gaussians, as those that were thinned to save room."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import from_tensors

VISIBLE = 0.1  # opacity
SAMPLE = 500  # Gaussians whose neighbors are looked for
# Distances of neighbors beside their size: from where there are holes, without, and where all is blurred.
SPARSE, USUAL, CROWDED = 2.5, 1.8, 0.95


@torch.no_grad()
def sparseness(gaussians: ParameterDict) -> float:
    """Return the distance to the four nearest, of the median visible Gaussian, beside its standard deviation.

    0 where there are too few to tell.
    """
    seen = (gaussians["opacities"].detach().sigmoid() >= VISIBLE).nonzero()[:, 0]
    if len(seen) < 10:
        return 0.0
    means = gaussians["means"].detach()[seen]
    some = means[torch.linspace(0, len(means) - 1, min(len(means), SAMPLE), device=means.device).long()]
    exact = "donot_use_mm_for_euclid_dist"  # far from the origin the other way is too coarse
    apart: list[Tensor] = [torch.cdist(part, means, compute_mode=exact) for part in some.split(50)]
    near = torch.cat([distances.topk(5, largest=False).values[:, 1:].mean(1) for distances in apart])
    return float(near.median() / gaussians["scales"].detach()[seen].exp().median())


@torch.no_grad()
def filled(gaussians: ParameterDict) -> ParameterDict:
    """Return a scene whose Gaussians are as wide as it takes to close the holes, if it has such all over.

    One whose Gaussians are near to one another beside their size is returned as it is.
    """
    found = sparseness(gaussians)
    if found < SPARSE:
        return gaussians
    wider = gaussians["scales"] + torch.tensor(found / USUAL).log()
    return from_tensors(**{**gaussians, "scales": wider})
