"""The album's pages: rendered from the models, kept for training, and shown beside views."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatdistill.files import atomic_write
from splatdistill.priors import album
from splatdistill.priors.album import AZIMUTHS, DISTANCE, ELEVATIONS, FOV, SIDE, USUAL_SIZE
from splatdistill.priors.reading import canonical
from splatdistill.scene.cameras import orbit
from splatdistill.teaching.assets import Entry
from splatdistill.teaching.meshes import Mesh
from splatdistill.teaching.renderer import Light, Renderer
from splatdistill.teaching.shards import spread
from splatdistill.teaching.shelf import Shelf

log = logging.getLogger(__name__)

LIGHT = Light(ambient=0.5, lamp=0.4, head=0.15)


def plain_meshes(shelf: Shelf) -> Iterator[Mesh]:
    """Yield the shelf's models as they are, not tinted."""
    for entry in shelf.entries:
        yield shelf.take(entry, np.random.default_rng(0), tint=0.0)[0]


def render_pages(meshes: Iterator[Mesh], renderer: Renderer) -> Iterator[album.Page]:
    """Yield the page of each mesh."""
    azimuths, elevations = (x.rad2deg().tolist() for x in (AZIMUTHS, ELEVATIONS))
    cameras = orbit(azimuths, elevations, DISTANCE, float(np.degrees(FOV)), SIDE, SIDE)
    for mesh in meshes:
        pictures = renderer.draw(mesh.fitted(USUAL_SIZE), cameras, LIGHT)
        yield album.Page(pictures, np.ptp(mesh.positions, axis=0) / 2)


def name_of(ids: Sequence[str], relation: str) -> str:
    """Return the name of the page of one or two models, "" where the second one is missing."""
    return f" {relation} ".join(name for name in ids if name)


def said_of(entry: Entry, tinted: bool) -> list[str]:
    """Return a model's phrases as the album has them, and whether it was tinted in training."""
    return [*map(canonical, entry.phrases), *([album.TINTED] if tinted else [])]


def _collage(path: Path, halves: np.ndarray, pair: tuple[int, int, str]) -> album.Page:
    pictures = np.load(path, mmap_mode="c")
    first, second = (album.Page(pictures[number], halves[number]) for number in pair[:2])
    return album.together(first, second, pair[2])


@dataclass(frozen=True)
class Pages:
    """The album in memory or mapped from disk.

    pictures [m, PICTURES, S, S, 4] uint8 premultiplied, of models and then of pairs of them; halves [m, 3];
    numbers by `name_of`.
    """

    pictures: Tensor
    halves: np.ndarray
    numbers: dict[str, int]

    @staticmethod
    def save(
        folder: Path,
        pages: Iterable[album.Page],
        ids: Sequence[str],
        pairs: Iterable[tuple[str, str, str]] = (),
        workers: int = 1,
    ) -> None:
        """Write pages.npy and pages.npz: of models, then collages of pairs (first, second, relation)."""
        number = {name: i for i, name in enumerate(ids)}
        pairs = sorted({pair for pair in pairs if pair[0] in number and pair[1] in number})
        names = [*ids, *(name_of(pair[:2], pair[2]) for pair in pairs)]
        path = folder / "pages.npy"
        shape = (len(names), album.PICTURES, album.SIDE, album.SIDE, 4)
        written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        halves = np.zeros((len(names), 3), np.float32)
        for i, page in enumerate(pages):
            written[i], halves[i] = page.pictures, page.half
        written.flush()
        asked = [(number[first], number[second], relation) for first, second, relation in pairs]
        collages = spread(partial(_collage, path, halves[: len(ids)]), asked, workers)
        for i, page in enumerate(collages, len(ids)):
            written[i], halves[i] = page.pictures, page.half
        written.flush()
        with atomic_write(folder / "pages.npz") as file:
            np.savez(file, allow_pickle=False, halves=halves, ids=np.array(names))

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Pages:
        """Read what `save` wrote; on the CPU the pictures stay on disk until they are used."""
        with np.load(folder / "pages.npz") as told:
            numbers = {name: i for i, name in enumerate(told["ids"].tolist())}
            pictures = torch.from_numpy(np.load(folder / "pages.npy", mmap_mode="c"))
            return cls(pictures.to(device), told["halves"], numbers)

    def page(self, number: int) -> album.Page:
        """Return the page of a number."""
        return album.Page(self.pictures[number].numpy(), self.halves[number])

    def export(self, shelf: Shelf, path: Path, quality: int, models: int | None = None) -> None:
        """Write an album of the first `models` of each noun on a shelf, its pictures as WebP of a quality."""
        entries = {entry.id: entry for entry in shelf.entries}
        of_noun: dict[str, list[str]] = {}
        alone = (name for name in self.numbers if name in entries)
        for name in sorted(alone, key=lambda name: (entries[name].noun, entries[name].rank)):
            of_noun.setdefault(entries[name].noun, []).append(name)
        kept = [entries[name] for names in of_noun.values() for name in names[:models]]
        numbers = [self.numbers[entry.id] for entry in kept]
        strips = [album.strip(self.page(number), quality) for number in numbers]
        said = tuple(";".join(said_of(entry, shelf.can_tint(entry))) for entry in kept)
        ids, nouns = tuple(entry.id for entry in kept), tuple(entry.noun for entry in kept)
        with atomic_write(path) as file:
            album.Album(strips, self.halves[numbers], ids, nouns, said).save(file)
        log.info("%d pages of %d nouns, %.1f MB", len(kept), len(of_noun), sum(map(len, strips)) / 1e6)

    def beside(
        self, numbers: Tensor, cameras: Tensor, background: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return latents [n, SHOWN, C, h, w] and offsets [n, SHOWN, OFFSET] of the pictures nearest to views.

        Args:
            numbers: of the page of each view, [n]; -1 for none.
            cameras: [n, 4] as in Examples.
            background: [n, 3].
            encode: from pictures [B, 3, S, S] in [0, 1] to latents.
        """
        chosen, there = album.nearest(*cameras[:, :2].unbind(1)), numbers >= 0
        pictures = self.pictures[numbers.clamp(min=0)[:, None], chosen]
        pictures = pictures * there.view(-1, 1, 1, 1, 1)
        latents = album.latents_of(pictures, cameras, background, encode)
        return latents, album.offsets_of(chosen, there, cameras)
