"""The album's pages: rendered from the models, kept for training, and shown beside views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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
        azimuth, elevation, distance, fov = cameras.unbind(1)
        chosen = album.nearest(azimuth, elevation)
        shape = (len(things), album.SHOWN, album.SIDE, album.SIDE, 4)
        pictures = np.zeros(shape, np.uint8)
        for i, (numbers, picked) in enumerate(zip(things, chosen.tolist(), strict=True)):
            if len(numbers) == 1:
                pictures[i] = self.pictures[numbers[0], picked]
            elif numbers:
                first, second = (self.page(number) for number in numbers)
                pictures[i] = album.together(first, second, relations[i], picked).pictures
        rgb = album.before(
            torch.from_numpy(pictures).to(cameras.device), album.zoom_of(distance, fov), background
        )
        turn = azimuth[:, None] - album.AZIMUTHS.to(cameras)[chosen]
        rise = elevation[:, None] - album.ELEVATIONS.to(cameras)[chosen]
        there = torch.tensor([float(len(numbers) > 0) for numbers in things], device=cameras.device)
        told = album.offsets(turn, rise, torch.zeros_like(turn)) * there[:, None, None]
        return self.encode(rgb.flatten(0, 1)).unflatten(0, (-1, album.SHOWN)), told


def beside_picture(picture: Tensor, seen: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `Pages.beside` does, for one picture beside each of several views of a scene.

    picture: latents [G, 1, C, h, w]; seen: its camera [G, 1, 4]; cameras [G, views, 4]; as in Examples.
    """
    turn, rise = cameras[..., 0] - seen[..., 0], cameras[..., 1] - seen[..., 1]
    zoom = (seen[..., 2] * (seen[..., 3] / 2).tan() / (cameras[..., 2] * (cameras[..., 3] / 2).tan())).log()
    offsets = album.offsets(turn, rise, zoom).flatten(0, 1)[:, None]  # [n, 1, OFFSET]
    shown = picture.expand(-1, cameras.shape[1], -1, -1, -1).flatten(0, 1)[:, None]
    rest = album.SHOWN - 1
    return F.pad(shown, (0, 0, 0, 0, 0, 0, 0, rest)), F.pad(offsets, (0, 0, 0, rest))
