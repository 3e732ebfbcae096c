"""A reader of a tinted thing's color: that of the true renderings of the thing that it resembles most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splatdistill.measure.claims.base import Interval, share
from splatdistill.priors.album import USUAL_SIZE
from splatdistill.priors.words import COLORS
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.teaching.compositions import draw_light
from splatdistill.teaching.renderer import Renderer
from splatdistill.teaching.shelf import Shelf, tinted
from splatdistill.teaching.teach import all_entries

BINS = 6  # of each channel
LAMPS = 3  # under which each true model is drawn
JITTER = 0.02  # of a color in sRGB, as in teaching
FAINT, PLAIN = (
    0.06,
    0.3,
)  # differences from white in the largest channel: of what counts for nothing, and in full


def histogram(rgb: np.ndarray) -> np.ndarray:
    """Return the square roots of the shares of colors [BINS^3] of a picture [S, S, 3], uint8, on white.

    Faint pixels, as at the soft edges of samples, count less: a thin thing would be read as white for them.
    """
    apart = (255 - rgb.astype(int)).max(-1) / 255
    weight = np.where(apart > FAINT, (apart / PLAIN).clip(0, 1) ** 2, 0.0)
    bins = (rgb.astype(int) * BINS // 256) @ np.array([BINS**2, BINS, 1])
    counts = np.bincount(bins.ravel(), weights=weight.ravel(), minlength=BINS**3)
    return np.sqrt(counts / max(counts.sum(), 1e-9))


class ColorReader:
    """The true renderings of things in all named colors, by their histograms.

    Args:
        bundle: the folder of models that the teacher learned from.
        things: nouns whose models can be tinted.
        size: of the pictures, in pixels.
        views: of the turntable that is compared, all alike.
    """

    def __init__(self, bundle: Path, cache: Path, things: Sequence[str], size: int, views: int) -> None:
        shelf = Shelf(tuple(all_entries(bundle)), bundle, cache, Renderer(size)).split(held_out=False)
        self.cameras = turntable(views, *EVALUATION_VIEW, size)
        self.known = {thing: self.drawn(shelf, thing, np.random.default_rng(0), LAMPS) for thing in things}
        self.own = self.on_true_views(shelf, things)

    def on_true_views(self, shelf: Shelf, things: Sequence[str]) -> dict[str, Interval]:
        """Return the shares of other true views, and of the views of one model together, read right."""
        hits: dict[str, list[bool]] = {"view": [], "scene": []}
        for thing in things:
            for color, rows in self.drawn(shelf, thing, np.random.default_rng(1), 1).items():
                for views in np.split(rows, len(rows) // len(self.cameras)):
                    hits["view"] += [self.read(thing, view[None]) == color for view in views]
                    hits["scene"].append(self.read(thing, views) == color)
        return {name: share(found) for name, found in hits.items()}

    def drawn(self, shelf: Shelf, thing: str, rng: np.random.Generator, lamps: int) -> dict[str, np.ndarray]:
        """Return the histograms [n, BINS^3] of a thing in each color, for all models that can be tinted."""
        found: dict[str, list[Any]] = {color: [] for color in COLORS}
        for entry in shelf.by_noun[thing]:
            mesh, main = shelf.mesh(entry)
            if not entry.tintable or main is None:
                continue
            for color, rgb in COLORS.items():
                for _ in range(lamps):
                    changed = tinted(mesh, main, np.clip(rgb + rng.normal(0, JITTER, 3), 0.03, 1.0))
                    rgba = shelf.renderer.draw(changed.fitted(USUAL_SIZE), self.cameras, draw_light(rng))
                    on_white = (rgba[..., :3].astype(int) + 255 - rgba[..., 3:]).clip(0, 255).astype(np.uint8)
                    found[color] += [histogram(view) for view in on_white]
        return {color: np.array(rows) for color, rows in found.items()}

    def read(self, thing: str, views: np.ndarray) -> str:
        """Return the color of a thing by histograms [n, BINS^3] of its views: of the nearest true ones."""
        known = self.known[thing]
        return max(COLORS, key=lambda color: float((known[color] @ views.T).max(0).sum()))
