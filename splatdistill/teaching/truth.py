"""Looks of all true models, for measuring: `python -m splatdistill.teaching.truth --out DIR`.

Writes DIR/judge/truth.npz: 12 silhouettes of 32 x 32 and colors of 8 x 8 of each model, and how alike the
models of each noun are. The models themselves cannot be made of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splatdistill.console import exit_status
from splatdistill.files import atomic_write
from splatdistill.priors.judge import FOLDER, TRUTH
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.likeness import USUAL, Look, hole_share, loose_share, match
from splatdistill.teaching.renderer import Light, Renderer
from splatdistill.teaching.shelf import Shelf
from splatdistill.teaching.teach import all_entries

log = logging.getLogger(__name__)

VIEWS, SIZE = 12, 128


def look_at(shelf: Shelf, noun: str, size: int = SIZE) -> list[Look]:
    """Return the looks of a noun's models in their own colors."""
    cameras, looks = turntable(VIEWS, *EVALUATION_VIEW, size), []
    for entry in shelf.by_noun[noun]:
        mesh, _ = shelf.take(entry, np.random.default_rng(0), tint=0.0)
        rgba = shelf.renderer.draw(mesh.fitted(0.78), cameras, Light())
        seen = torch.from_numpy(rgba).permute(0, 3, 1, 2).float() / 255
        alpha = seen[:, 3:]
        looks.append(Look.of((seen[:, :3] + 1 - alpha).clamp(0, 1), alpha))
    return looks


def usual(looks: Sequence[Look]) -> list[float]:
    """Return the means of USUAL over the models of a noun: likeness to the nearest other one, and flaws."""
    alike = []
    for i, look in enumerate(looks):
        found = [match(look, other) for k, other in enumerate(looks) if k != i]
        if found:
            best = max(found, key=lambda m: m.iou - m.color_distance)
            alike.append((best.iou, best.color_distance))
    pair = np.mean(alike, 0).tolist() if alike else [float("nan")] * 2
    flaws = [(loose_share(look.shapes), hole_share(look.shapes)) for look in looks]
    return [*pair, *np.mean(flaws, 0).tolist()]


def write_truth(names_and_looks: Iterable[tuple[str, list[Look]]], path: Path) -> None:
    """Write the looks of what has a name, and how alike those of one name are."""
    shapes, colors, nouns, names, figures = [], [], [], [], []
    for noun, looks in names_and_looks:
        shapes += [np.packbits(look.shapes.numpy(), axis=-1) for look in looks]
        colors += [(look.colors * 255).round().byte().numpy() for look in looks]
        nouns += [noun] * len(looks)
        names.append(noun)
        figures.append(usual(looks))
        if len(names) % 100 == 0:
            log.info("%d nouns", len(names))
    told: dict[str, Any] = {"nouns": np.array(nouns), "names": np.array(names), "usual": np.array(figures)}
    assert told["usual"].shape == (len(names), len(USUAL))
    with atomic_write(path) as file:
        np.savez_compressed(file, shapes=np.stack(shapes), colors=np.stack(colors), **told)


def main(arguments: list[str] | None = None) -> int:
    """Parse and write."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.truth", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the teaching")
    parser.add_argument("--bundle", type=Path, default=Path("assets"), help="folder of assets.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def command() -> int:
        shelf = Shelf(
            tuple(all_entries(options.bundle)), options.bundle, options.out / "meshes", Renderer(SIZE)
        )
        (options.out / FOLDER).mkdir(parents=True, exist_ok=True)
        models = ((noun, look_at(shelf, noun)) for noun in sorted(shelf.by_noun))
        write_truth(models, options.out / FOLDER / TRUTH)
        return 0

    return exit_status(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
