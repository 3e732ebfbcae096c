"""What the judge learns from and is measured on: framed views of models in new variations, and of nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.files import atomic_write
from splatdistill.priors.judge import FOLDER, SIDE
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, orbit, turntable
from splatdistill.scene.likeness import framed
from splatdistill.teaching.assets import Entry
from splatdistill.teaching.compositions import beside, draw_light, stacked, varied
from splatdistill.teaching.meshes import Mesh
from splatdistill.teaching.renderer import Renderer
from splatdistill.teaching.shards import strip, views_of
from splatdistill.teaching.shelf import Shelf
from splatdistill.teaching.teach import all_entries

log = logging.getLogger(__name__)

SEED, MEASURED = 77_000, 78_000  # the first for training
SIZE = 128  # pixels of a rendering
VIEWS, TURNTABLE = 6, 12  # of a model in training, and where it is measured
PAIRS = 0.12  # how often there is a second thing
QUALITY = 80  # of WebP
EVERY = 4  # of the training models are measured with views of their own


@dataclass(frozen=True)
class Views:
    """Framed views of things: pictures [n, V, 3, SIDE, SIDE] uint8, labels [n, 2], -1 for no second thing."""

    pictures: Tensor
    labels: Tensor


@dataclass
class Course:
    """The things to learn from, and where their views are kept.

    shelf: models that are learned; held_out: those that are not; nouns: the classes in their order.
    """

    shelf: Shelf
    held_out: Shelf
    folder: Path
    nouns: list[str]
    size: int = SIZE
    entries: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [entry for entries in self.shelf.by_noun.values() for entry in entries]

    @classmethod
    def of(cls, out: Path, bundle: Path) -> Course:
        """Return the course of a bundle; meshes are cached where the teacher's are."""
        entries = all_entries(bundle)
        shelf = Shelf(tuple(entries), bundle, out / "meshes", Renderer(SIZE))
        folder = out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return cls(shelf.split(False), shelf.split(True), folder, sorted({e.noun for e in entries}))

    def epoch(self, number: int) -> Views:
        """Return one variation of all models, some with a second thing, rendered where it is not there."""
        count = len(self.entries)

        def draw(i: int, rng: np.random.Generator) -> tuple[Mesh, Cameras, list[str]]:
            things = [self.entries[i]]
            if rng.random() < PAIRS:
                things.append(self.entries[int(rng.integers(count))])
            meshes = [varied(self.shelf, thing, rng)[0] for thing in things]
            if len(meshes) > 1:
                meshes = [stacked(*meshes) if rng.random() < 0.6 else beside(*meshes)]
            turns, heights = rng.uniform(0, 360, VIEWS), rng.uniform(-8, 40, VIEWS)
            cameras = orbit(turns.tolist(), heights.tolist(), 3.0, 42.0, self.size, self.size)
            return meshes[0], cameras, [thing.noun for thing in things]

        return self._views(f"views-{number:03d}", (SEED, number), count, draw)

    def measured(self, held_out: bool) -> Views:
        """Return turntables of the held-out models, or of some that are learned, in other light."""
        shelf = self.held_out if held_out else self.shelf
        entries = [entry for entries in shelf.by_noun.values() for entry in entries]
        chosen = entries if held_out else entries[::EVERY]

        def draw(i: int, rng: np.random.Generator) -> tuple[Mesh, Cameras, list[str]]:
            cameras = turntable(TURNTABLE, *EVALUATION_VIEW, self.size)
            return varied(shelf, chosen[i], rng)[0], cameras, [chosen[i].noun]

        name = "held_out_models" if held_out else "held_out_views"
        return self._views(name, (MEASURED, int(held_out)), len(chosen), draw)

    def _views(self, name: str, seed: tuple[int, ...], count: int, draw: Any) -> Views:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            pictures, labels = [], []
            for i in range(count):
                rng = np.random.default_rng((*seed, i))
                mesh, cameras, nouns = draw(i, rng)
                rgba = self.shelf.renderer.draw(mesh.fitted(0.78), cameras, draw_light(rng))
                seen = torch.from_numpy(rgba).permute(0, 3, 1, 2).float() / 255
                white = (seen[:, :3] + 1 - seen[:, 3:]).clamp(0, 1)
                pictures.append((framed(white, seen[:, 3:], SIDE) * 255).round().byte().numpy())
                labels.append([self.nouns.index(n) for n in nouns] + [-1] * (2 - len(nouns)))
            write_views(path, pictures, labels)
            log.info("%s: %d things", name, count)
        return read_views(path)


def write_views(path: Path, pictures: Sequence[np.ndarray], labels: Sequence[Sequence[int]]) -> None:
    """Write the views [V, 3, S, S] of each thing as one WebP strip, and labels [n, 2]: .4 kB a view."""
    strips = [strip(views.transpose(0, 2, 3, 1), QUALITY) for views in pictures]
    joined, lengths = np.frombuffer(b"".join(strips), np.uint8), np.array([len(one) for one in strips])
    with atomic_write(path) as file:
        np.savez(file, strips=joined, lengths=lengths, labels=np.array(labels))


def read_views(path: Path) -> Views:
    """Read what `write_views` wrote."""
    with np.load(path) as arrays:
        strips, lengths, labels = arrays["strips"], arrays["lengths"], arrays["labels"]
    ends = pairwise(np.concatenate([[0], lengths.cumsum()]))
    pictures = np.stack([views_of(strips[start:end].tobytes()) for start, end in ends]).transpose(
        0, 1, 4, 2, 3
    )
    return Views(torch.from_numpy(pictures), torch.from_numpy(labels))


def targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return the probabilities [n, classes] of labels [n, 2]: halves where there are two things."""
    two = labels[:, 1] >= 0
    wanted = F.one_hot(labels[:, 0], classes).float()
    other = F.one_hot(labels[:, 1].clamp(min=0), classes).float()
    wanted = torch.where(two[:, None], (wanted + other) / 2, wanted)
    return (1 - smoothing) * wanted + smoothing / classes


def softened(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures [n, 3, S, S] moved, scaled, mirrored never, colored a little otherwise and blurred.

    Splats are softer than meshes, and their frames less exact. The generator is of the pictures' device.
    """
    count, side = len(pictures), pictures.shape[-1]

    drawn: dict[str, Any] = {"generator": rng, "device": rng.device}

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, **drawn)

    move = torch.zeros(count, 2, 3, device=rng.device)
    move[:, 0, 0], move[:, 1, 1] = uniform(0.85, 1.2), uniform(0.85, 1.2)
    move[:, :, 2] = uniform(-0.08, 0.08, 2)
    places = F.affine_grid(move, list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, places, align_corners=False)
    gain, shift = uniform(0.85, 1.15, 3, 1, 1), uniform(-0.06, 0.06, 1, 1, 1)
    there = (1 - moved).amax(1, keepdim=True) > 0.02
    colored = torch.where(there, (moved * gain + shift).clamp(0, 1), moved)
    size = int(torch.randint(side // 3, side + 1, (1,), **drawn))
    small = F.interpolate(colored, (size, size), mode="bilinear", antialias=True)
    soft = F.interpolate(small, (side, side), mode="bicubic")
    return (soft + 0.02 * torch.randn(soft.shape, **drawn)).clamp(0, 1)


def junk(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Return as many pictures that show nothing: torn ones, blends of two, and colored fog, in turn."""
    count, _, side, _ = pictures.shape
    tile = side // 4
    tiles = pictures.unfold(2, tile, tile).unfold(3, tile, tile).flatten(2, 3)  # [n, 3, 16, t, t]
    torn = tiles[:, :, torch.randperm(16, generator=rng, device=rng.device)].unflatten(2, (4, 4))
    torn = torn.permute(0, 1, 2, 4, 3, 5).reshape(count, 3, 4 * tile, 4 * tile)
    torn = F.pad(torn, (0, side - 4 * tile, 0, side - 4 * tile), value=1.0)
    blended = (pictures + pictures.roll(1, 0) + pictures.roll(2, 0)) / 3
    fog = torch.rand(count, 4, 6, 6, generator=rng, device=rng.device)
    fog = F.interpolate(fog, (side, side), mode="bicubic").clamp(0, 1)
    cover = ((fog[:, 3:] - 0.35) * 4).clamp(0, 1)
    foggy = cover * fog[:, :3] + 1 - cover
    kinds = torch.stack([torn, blended, foggy])
    each = torch.arange(count, device=rng.device)
    return kinds[each % 3, each]
