"""Comparison of a splat with the true models of its noun, all around, at the best turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatdistill.priors.judge import TRUTH
from splatdistill.priors.loading import user_errors
from splatdistill.scene.likeness import USUAL, Look, hole_share, loose_share, match, second_front


@dataclass(frozen=True)
class Truth:
    """The looks of the true models of each noun, and how alike those are.

    looks: of each model; nouns: the noun of each; usual: the figures USUAL of each noun, nan where it has one
    model only; whole: their medians over all nouns.
    """

    looks: tuple[Look, ...]
    nouns: tuple[str, ...]
    usual: dict[str, dict[str, float]]
    whole: dict[str, float]

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read the file of a judge's folder; UserError where it is broken."""
        with user_errors("the true models", folder), np.load(folder / TRUTH) as arrays:
            shapes = np.unpackbits(arrays["shapes"], axis=-1).astype(bool)  # [M, V, h, w]
            colors = arrays["colors"].astype(np.float32) / 255  # [M, V, 3, c, c]
            looks = tuple(map(Look, torch.from_numpy(shapes), torch.from_numpy(colors)))
            of_noun = zip(arrays["names"].tolist(), arrays["usual"].tolist())
            usual = {noun: dict(zip(USUAL, values)) for noun, values in of_noun}
            whole = dict(zip(USUAL, np.nanmedian(arrays["usual"], 0).tolist()))
            return cls(looks, tuple(arrays["nouns"].tolist()), usual, whole)

    def compare(self, noun: str, rgb: Tensor, alpha: Tensor) -> dict[str, Any]:
        """Return the figures of a thing beside the nearest true model of a noun.

        iou and color_distance are those of the nearest model; the shares are relative to what a true model
        of the noun has with the nearest other one, or where there is only one, to the median over all nouns.

        Args:
            noun: what it should be.
            rgb: views of the turntable [V, 3, S, S] on white.
            alpha: coverage [V, 1, S, S].

        Raises:
            KeyError: there is no model of that noun.
        """
        seen = Look.of(rgb, alpha)
        models = [look for look, name in zip(self.looks, self.nouns, strict=True) if name == noun]
        if not models:
            raise KeyError(noun)
        found = [match(seen, model) for model in models]
        best = max(range(len(found)), key=lambda i: found[i].iou - found[i].color_distance)
        usual = {k: v if v == v else self.whole[k] for k, v in self.usual[noun].items()}
        step = 360.0 / len(seen.shapes)
        return {
            "iou": found[best].iou,
            "color_distance": found[best].color_distance,
            "iou_share": found[best].iou / max(usual["iou"], 1e-6),
            "color_share": min(usual["color_distance"] / max(found[best].color_distance, 1e-6), 1.0),
            "turn_deg": found[best].turn * step,
            "second_front": second_front(seen, models[best], found[best].turn),
            "loose": loose_share(seen.shapes),
            "loose_usual": usual["loose"],
            "holes": hole_share(seen.shapes),
            "holes_usual": usual["holes"],
        }
