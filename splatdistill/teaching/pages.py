"""The album's pages: rendered from the models, kept for training, and shown beside views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from splatdistill.files import atomic_write
from splatdistill.priors import album
from splatdistill.priors.album import AZIMUTHS, DISTANCE, ELEVATIONS, FOV, SIDE, USUAL_SIZE
from splatdistill.scene.cameras import orbit
from splatdistill.teaching.meshes import Mesh
from splatdistill.teaching.renderer import Light, Renderer
from splatdistill.teaching.shelf import Shelf

LIGHT = Light(ambient=0.5, lamp=0.4, head=0.15)


def plain_meshes(shelf: Shelf) -> Iterator[Mesh]:
    """Yield the shelf's models as they are, not tinted."""
    for entry in shelf.entries:
        yield shelf.take(entry, np.random.default_rng(0), tint=0.0)[0]


def half_sizes(meshes: Iterator[Mesh]) -> np.ndarray:
    """Return the half sizes [n, 3] of the boxes around meshes."""
    return np.stack([np.ptp(mesh.positions, axis=0) / 2 for mesh in meshes])


def render_pages(meshes: Iterator[Mesh], renderer: Renderer) -> Iterator[np.ndarray]:
    """Yield the pictures [PICTURES, S, S, 4] uint8, premultiplied, of each mesh."""
    azimuths, elevations = (x.rad2deg().tolist() for x in (AZIMUTHS, ELEVATIONS))
    cameras = orbit(azimuths, elevations, DISTANCE, float(np.degrees(FOV)), SIDE, SIDE)
    for mesh in meshes:
        yield renderer.draw(mesh.fitted(USUAL_SIZE), cameras, LIGHT)


@dataclass(frozen=True)
class Pages:
    """The album in memory or mapped from disk, and the codec that encodes what is shown of it.

    pictures [m, PICTURES, S, S, 4] uint8 premultiplied; halves [m, 3]; numbers by id; encode: from pictures
    [B, 3, S, S] in [0, 1] to latents.
    """

    pictures: np.ndarray
    halves: np.ndarray
    numbers: dict[str, int]
    encode: Callable[[Tensor], Tensor]

    @staticmethod
    def save(folder: Path, pages: Iterable[np.ndarray], halves: np.ndarray, ids: Sequence[str]) -> None:
        """Write pages.npy and pages.npz of pages [PICTURES, S, S, 4], one after the other."""
        shape = (len(ids), album.PICTURES, album.SIDE, album.SIDE, 4)
        written = np.lib.format.open_memmap(folder / "pages.npy", mode="w+", dtype=np.uint8, shape=shape)
        for i, page in enumerate(pages):
            written[i] = page
        written.flush()
        with atomic_write(folder / "pages.npz") as file:
            np.savez(file, allow_pickle=False, halves=halves, ids=np.array(ids))

    @classmethod
    def load(cls, folder: Path, encode: Callable[[Tensor], Tensor]) -> Pages:
        """Read what `save` wrote."""
        with np.load(folder / "pages.npz") as told:
            numbers = {name: i for i, name in enumerate(told["ids"].tolist())}
            return cls(np.load(folder / "pages.npy", mmap_mode="r"), told["halves"], numbers, encode)

    def page(self, number: int) -> album.Page:
        """Return the page of a model."""
        return album.Page(self.pictures[number], self.halves[number])

    def beside(
        self, things: list[list[int]], relations: list[str], cameras: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return latents [n, SHOWN, C, h, w] and offsets [n, SHOWN, OFFSET] of the pictures nearest to views.

        Args:
            things: the numbers of the one or two things of each view; none of them, no pictures.
            relations: of the two.
            cameras: [n, 4] as in Examples.
            background: [n, 3].
        """
        pages = [self._picker(*pair) for pair in zip(things, relations, strict=True)]
        return album.beside(pages, cameras, background, self.encode)

    def _picker(self, numbers: list[int], relation: str) -> Callable[[Sequence[int]], np.ndarray] | None:
        if not numbers:
            return None
        if len(numbers) == 1:
            return lambda picked: self.pictures[numbers[0], picked]
        first, second = (self.page(number) for number in numbers)
        return lambda picked: album.together(first, second, relation, picked).pictures
