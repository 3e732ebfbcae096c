"""The splat that a run starts from, in its own place and in the run's, and the part that may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.config.schema import Config, EditConfig
from splatdistill.files import atomic_write
from splatdistill.guidance.attention import words_found
from splatdistill.priors.base import Prior
from splatdistill.scene.gaussians import NAMES, from_tensors, moved
from splatdistill.scene.masks import Mask, around


@dataclass(frozen=True, eq=False)
class Origin:
    """A scene to start from: as it was read, on the CPU, and placed in the unit sphere, on the run's device.

    mask: what may change, in the run's frame; None for all.
    """

    raw: ParameterDict
    placed: ParameterDict
    mask: Mask | None = None

    @property
    def changeable(self) -> Tensor:
        """Which Gaussians may change: [N] bool."""
        count = len(self.raw["means"])
        everything = torch.ones(count, dtype=torch.bool, device=self.placed["means"].device)
        return everything if self.mask is None else self.mask.rows.to(everything.device)

    @torch.no_grad()
    def returned(self, scene: ParameterDict, rows: Tensor, config: EditConfig) -> ParameterDict:
        """Return a scene of the run in the place of the raw one, in the order of its ancestors.

        What must not change is taken from the raw scene, bit by bit: a change of place rounds.

        Args:
            scene: in the run's frame.
            rows: the ancestor of each Gaussian, [N].
            config: the place.
        """
        x, y, z = config.shift
        there = moved(moved(scene, (0.0, 0.0, 0.0), 1.0 / config.scale), (-x, -y, -z), 1.0)
        order = rows.argsort(stable=True).cpu()
        sorted_rows = rows.cpu()[order]
        same = torch.nn.functional.pad(~self.changeable.cpu(), (0, 1))[
            sorted_rows.clamp(max=len(self.raw["means"]))
        ]
        values = {}
        for name in NAMES:
            values[name] = there[name].detach().cpu()[order]
            values[name][same] = self.raw[name].detach()[sorted_rows[same]]
        return from_tensors(**values)


def place(raw: ParameterDict, mask: Mask | None, config: EditConfig, device: torch.device) -> Origin:
    """Return the origin of a run from the raw scene and its mask in the same frame, both on the CPU."""
    placed = moved(raw, config.shift, config.scale).to(device)
    there = None if mask is None else mask.moved(config.shift, config.scale).to(device)
    return Origin(raw, placed, there)


def found_mask(config: Config, prior: Prior, origin: Origin | None) -> Origin | None:
    """Return an origin whose mask in words, if it has one, was found in it by the teacher."""
    text = config.edit.mask
    if origin is None or origin.mask is not None or not text:
        return origin
    prompt = config.edit.source_prompt or config.prompt
    rows = words_found(prior, origin.placed, text, prompt, config.seed)
    mask = around(origin.raw, rows, text).moved(config.edit.shift, config.edit.scale)
    return replace(origin, mask=mask.to(origin.placed["means"].device))


def write_mask(path: Path, origin: Origin) -> None:
    """Write the indices of what may change, so that a run that goes on has the same."""
    if origin.mask is not None:
        with atomic_write(path) as file:
            np.save(file, origin.mask.rows.nonzero()[:, 0].cpu().numpy(), allow_pickle=False)
