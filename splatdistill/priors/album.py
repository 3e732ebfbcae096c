"""The album of the teacher of real objects: small pictures of the models that it knows, from all around.

The denoiser draws a view beside the pictures that are nearest to it (retrieval: 2204.11824, 2209.14491).
So the album holds what each thing looks like, and the network how things look from other sides, in another
color or light, and on top of one another.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from splatdistill.ops.transfer import upload
from splatdistill.priors.reading import BETWEEN
from splatdistill.priors.tint import recolored
from splatdistill.priors.words import COLORS

FILE = "album.npz"  # in a teacher's folder
RINGS = ((2.0, 12), (26.0, 12), (52.0, 6))  # elevation in degrees, and pictures evenly around from azimuth 0
DISTANCE, FOV = 3.0, math.radians(42.0)
SIDE = 128  # pixels
SHOWN = 3  # pictures beside a view
OFFSET = 5  # features of each, see `offsets`
USUAL_SIZE = 0.78  # longest half side of a thing in the album, see `fit`
LEAST, GAP = 0.45, 0.06  # scale of a thing on a narrow one; half the space between things side by side
AZIMUTHS = torch.tensor([math.tau * i / count for _, count in RINGS for i in range(count)])
ELEVATIONS = torch.tensor([math.radians(height) for height, count in RINGS for _ in range(count)])
PICTURES = len(AZIMUTHS)
NOTHING = -1.0  # the number of no page
TINTED = "(tinted)"  # among a model's phrases: it was shown in all colors in training
KEPT = 16  # pages, of 2 MB each
THUMB = 8  # pixels a side of the smallest pictures
MOST = 2300  # models: the numbers of all pairs are exact in float32


def nearest(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Return the numbers [n, SHOWN] of the pictures taken from the nearest directions, the nearest first.

    azimuth, elevation: in radians, [n].
    """
    around, height = AZIMUTHS.to(azimuth), ELEVATIONS.to(azimuth)
    level = elevation.cos()[:, None] * height.cos() * (azimuth[:, None] - around).cos()
    return (level + elevation.sin()[:, None] * height.sin()).topk(SHOWN).indices


def offsets(turn: Tensor, rise: Tensor, zoom: Tensor) -> Tensor:
    """Return features [..., OFFSET] of pictures beside a view; a picture that is missing has zeros.

    turn, rise: azimuth and elevation of the view less those of the picture, in radians; zoom: log of how much
    larger things are in the view.
    """
    return torch.stack([torch.ones_like(turn), turn.sin(), turn.cos(), 2 * rise, 4 * zoom], -1)


def zoom_of(distance: Tensor, fov: Tensor) -> Tensor:
    """Return the log of how much larger things are in a camera's picture than in the album's."""
    return ((DISTANCE * math.tan(FOV / 2)) / (distance * (fov / 2).tan())).log()


def before(pictures: Tensor, zoom: Tensor, background: Tensor, side: int = SIDE) -> Tensor:
    """Return pictures [n, k, 3, side, side] in [0, 1], enlarged about their center and before a background.

    Args:
        pictures: [n, k, S, S, 4] uint8, premultiplied.
        zoom: log of the enlargement, [n].
        background: [n, 3].
        side: pixels of what is returned.
    """
    n, k = pictures.shape[:2]
    flat = pictures.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
    line = (torch.arange(side, device=flat.device) + 0.5) * (2 / side) - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    grid = grid * (-zoom).exp().repeat_interleave(k).view(-1, 1, 1, 1)
    flat = F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False)
    behind = background.repeat_interleave(k, 0)[:, :, None, None]
    return (flat[:, :3] + (1 - flat[:, 3:]) * behind).clamp(0, 1).unflatten(0, (n, k))


def beside(
    pages: Sequence[Callable[[Sequence[int]], np.ndarray] | None],
    cameras: Tensor,
    background: Tensor,
    encode: Callable[[Tensor], Tensor],
    side: int = SIDE,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return latents [n, SHOWN, C, h, w] and offsets [n, SHOWN, OFFSET] of the pictures nearest to views.

    Args:
        pages: of each view, a function from the numbers of pictures to these [SHOWN, S, S, 4]; None: none.
        cameras: azimuth, elevation, distance, field of view; angles in radians, [n, 4], on the CPU.
        background: [n, 3], on the CPU.
        encode: from pictures [B, 3, side, side] in [0, 1] to latents.
        side: pixels of what is encoded.
        device: of what is encoded and returned.
    """
    chosen = nearest(*cameras[:, :2].unbind(1))
    pictures = np.zeros((len(pages), SHOWN, SIDE, SIDE, 4), np.uint8)
    for i, (page, numbers) in enumerate(zip(pages, chosen.tolist(), strict=True)):
        if page is not None:
            pictures[i] = page(numbers)
    there = torch.tensor([page is not None for page in pages])
    placed = offsets_of(chosen, there, cameras)
    seen, cameras, background, placed = upload(
        [torch.from_numpy(pictures), cameras, background, placed], device
    )
    return latents_of(seen, cameras, background, encode, side), placed


def offsets_of(chosen: Tensor, there: Tensor, cameras: Tensor) -> Tensor:
    """Return offsets [n, SHOWN, OFFSET] of the pictures with the numbers `chosen` [n, SHOWN].

    there: whether a view has any, bool [n]; cameras as in `beside`.
    """
    azimuth, elevation = cameras[:, :2].unbind(1)
    turn = azimuth[:, None] - AZIMUTHS.to(cameras)[chosen]
    rise = elevation[:, None] - ELEVATIONS.to(cameras)[chosen]
    return offsets(turn, rise, torch.zeros_like(turn)) * there[:, None, None]


def latents_of(
    pictures: Tensor,
    cameras: Tensor,
    background: Tensor,
    encode: Callable[[Tensor], Tensor],
    side: int = SIDE,
) -> Tensor:
    """Return latents [n, SHOWN, C, h, w] of pictures [n, SHOWN, S, S, 4]; the rest as in `beside`."""
    rgb = before(pictures, zoom_of(*cameras[:, 2:].unbind(1)), background, side)
    return encode(rgb.flatten(0, 1)).unflatten(0, (-1, SHOWN))


def beside_picture(latents: Tensor, seen: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `beside` does, for one given picture beside each view.

    latents [n, C, h, w] of the picture; seen: its camera, [n, 4] or [1, 4]; cameras [n, 4]; as in `beside`.
    """
    turn, rise = cameras[:, 0] - seen[:, 0], cameras[:, 1] - seen[:, 1]
    zoom = (seen[:, 2] * (seen[:, 3] / 2).tan() / (cameras[:, 2] * (cameras[:, 3] / 2).tan())).log()
    told = offsets(turn, rise, zoom)[:, None]  # [n, 1, OFFSET]
    rest = SHOWN - 1
    return F.pad(latents[:, None], (0, 0, 0, 0, 0, 0, 0, rest)), F.pad(told, (0, 0, 0, rest))


@dataclass(frozen=True)
class Page:
    """One thing: pictures [PICTURES, S, S, 4] uint8, premultiplied; half sizes [3] along x, y, z."""

    pictures: np.ndarray
    half: np.ndarray


def fit(half: np.ndarray, size: float = USUAL_SIZE) -> float:
    """Return the scale that brings a box of half sizes [3] to a longest half side of `size`.

    It is smaller where half the diagonal would be over 1.25 `size`.
    """
    return size / max(float(half.max()), float(np.linalg.norm(half)) / 1.25, 1e-9)


def on_top(upper: float, lower: float) -> float:
    """Return by how much a thing of a width is scaled to stand on one of another width."""
    return max(min(1.25 * lower / max(upper, 1e-9), 1.0), LEAST)


def standing(first: np.ndarray, second: np.ndarray, relation: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the center and the half sides, [3] each, of the boxes of two things in the frame of their page.

    first, second: half sides [3] of the things, at any scale.
    """
    halves = [half / half.max() / 2 for half in (first, second)]  # longest side 1
    if relation == "on top of":
        halves[0] = halves[0] * on_top(float(halves[0][:2].max()), float(halves[1][:2].min()))
        centers = [np.array([0, 0, 2 * halves[1][2] + halves[0][2]]), np.array([0, 0, halves[1][2]])]
    else:
        centers = [np.array([0, s * (h[1] + GAP), h[2]]) for s, h in zip((-1, 1), halves, strict=True)]
    low = np.min([c - h for c, h in zip(centers, halves, strict=True)], 0)
    high = np.max([c + h for c, h in zip(centers, halves, strict=True)], 0)
    scale = fit((high - low) / 2)
    return [((c - (low + high) / 2) * scale, h * scale) for c, h in zip(centers, halves, strict=True)]


def together(first: Page, second: Page, relation: str, chosen: Sequence[int] = range(PICTURES)) -> Page:
    """Return the page of two things as a collage: the first one on top of the second, or beside it.

    Boxes stand for the things: each picture is scaled and moved to where its box is seen, the nearer one in
    front. What that gets wrong is the network's to mend. Only the `chosen` pictures are made.
    """
    pages = (first, second)
    boxes = standing(first.half, second.half, relation)
    places = [center for center, _ in boxes]
    sizes = [
        float(half.max() / page.half.max()) / fit(page.half)
        for (_, half), page in zip(boxes, pages, strict=True)
    ]
    focal = SIDE / 2 / math.tan(FOV / 2)
    made = []
    for i in chosen:
        a, e = float(AZIMUTHS[i]), float(ELEVATIONS[i])
        outward = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        right = np.array([-math.sin(a), math.cos(a), 0.0])
        down = np.array([math.sin(e) * math.cos(a), math.sin(e) * math.sin(a), -math.cos(e)])
        canvas = np.zeros((SIDE, SIDE, 4), np.float32)
        for k in sorted((0, 1), key=lambda k: float(places[k] @ outward)):  # the far one first
            depth = DISTANCE - float(places[k] @ outward)
            shift = focal / depth * np.array([right @ places[k], down @ places[k]])
            picture = moved(pages[k].pictures[i], sizes[k] * DISTANCE / depth, shift)
            canvas = picture + canvas * (1 - picture[..., 3:] / 255.0)
        made.append((canvas + 0.5).clip(0, 255).astype(np.uint8))
    low = np.min([center - half for center, half in boxes], 0)
    high = np.max([center + half for center, half in boxes], 0)
    side = 2 * boxes[1][1].max()  # what the second one's longest is in the page's frame
    return Page(np.stack(made), (high - low) / 2 / side)


def moved(picture: np.ndarray, size: float, shift: np.ndarray) -> np.ndarray:
    """Return a picture [S, S, 4] scaled about its center and moved by pixels [2] right and down, float32."""
    theta = torch.tensor([[[1 / size, 0, 0], [0, 1 / size, 0]]], dtype=torch.float32)
    theta[0, :, 2] = torch.from_numpy(-shift / (SIDE / 2) / size).float()
    flat = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    if size < 0.75:  # against aliasing
        flat = F.interpolate(
            F.interpolate(flat, scale_factor=0.5, mode="area"), scale_factor=2.0, mode="bilinear"
        )
    grid = F.affine_grid(theta, [1, 4, SIDE, SIDE], align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False)[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Album:
    """Pages by the number of a model, read when they are asked for.

    strips: WebP files, the pictures of a page beside one another; halves [n, 3]; ids, nouns, and phrases
    (with semicolons between) of the models.
    """

    strips: Sequence[bytes]
    halves: np.ndarray
    ids: tuple[str, ...]
    nouns: tuple[str, ...]
    phrases: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Album:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            joined, ends = arrays["strips"], arrays["lengths"].cumsum().tolist()
            strips = [joined[a:b].tobytes() for a, b in zip([0, *ends], ends, strict=False)]
            if len(strips) > MOST:
                raise ValueError(f"{path} has {len(strips)} models; at most {MOST} can be told apart")
            told = (tuple(arrays[name].tolist()) for name in ("ids", "nouns", "phrases"))
            return cls(strips, arrays["halves"], *told)

    def save(self, file: Any) -> None:
        """Write everything to an open file, without pickles."""
        lengths = np.array([len(strip) for strip in self.strips])
        joined = np.frombuffer(b"".join(self.strips), np.uint8)
        told: dict[str, Any] = {name: np.array(getattr(self, name)) for name in ("ids", "nouns", "phrases")}
        told["halves"] = self.halves
        np.savez(file, allow_pickle=False, strips=joined, lengths=lengths, **told)

    @cached_property
    def of_noun(self) -> dict[str, list[int]]:
        """The numbers of each noun's models, the first the best."""
        found: dict[str, list[int]] = {}
        for number, noun in enumerate(self.nouns):
            found.setdefault(noun, []).append(number)
        return found

    @cached_property
    def thumbnails(self) -> Tensor:
        """All pictures at THUMB pixels a side, [n, PICTURES, 4, THUMB, THUMB] uint8, premultiplied."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            small = [torch.from_numpy(part) for part in threads.map(thumbnails, self.strips)]
        return torch.stack(small).movedim(-1, -3).contiguous()

    def find(self, noun: str, words: Sequence[str]) -> list[int]:
        """Return the models of a noun whose phrases have most of the words, the best first.

        Those that were tinted in training have every color: so a thing is the same one in another color.
        """

        def said(number: int) -> int:
            known = self._known(number)
            return sum(word in known or (word in COLORS and TINTED in known) for word in words)

        models = self.of_noun.get(noun, [])
        most = max(map(said, models), default=0)
        return [number for number in models if said(number) == most]

    def _known(self, number: int) -> list[str]:
        """Return the words of a model's phrases."""
        return self.phrases[number].replace(";", " ").split()

    def numbers(self, things: Sequence[Sequence[int]], relation: str, seed: int, count: int) -> list[float]:
        """Return the numbers of the pages of a thing, or of a pair, each given as models to choose from.

        Of a thing they are `count` at most, from the one that the seed chooses on: seed 0 the first, 1 the
        second, and so on around. A pair has one; none is NOTHING.
        """
        if not things or not all(things):
            return [NOTHING]
        if len(things) == 1:
            models = things[0]
            return [float(models[(seed + k) % len(models)]) for k in range(min(count, len(models)))]
        first, second = (models[seed % len(models)] for models in things)
        pair = first * len(self.ids) + second
        return [float(len(self.ids) + pair * len(BETWEEN) + BETWEEN.index(relation))]

    @cached_property
    def page(self) -> Callable[..., Page]:
        """The page of a number, its things in colors by number or, NOTHING, in their own; a few are kept."""
        return lru_cache(KEPT)(self._make)

    def _make(self, number: int, colors: Sequence[int] = (int(NOTHING),) * 2) -> Page:
        if number < len(self.ids):
            return self._read(number, colors[0])
        pair, relation = divmod(number - len(self.ids), len(BETWEEN))
        models = divmod(pair, len(self.ids))
        first, second = (self._read(model, color) for model, color in zip(models, colors, strict=True))
        return together(first, second, BETWEEN[relation])

    def _read(self, number: int, color: int) -> Page:
        """Return the page of a model, in a color that it was shown in and that its pictures do not have."""
        pictures, known = pictures_of(self.strips[number]), self._known(number)
        name = list(COLORS)[color] if color >= 0 else ""
        if name and name not in known and TINTED in known:
            pictures = recolored(pictures, COLORS[name])
        return Page(pictures, self.halves[number])


def pictures_of(strip: bytes) -> np.ndarray:
    """Return the pictures [PICTURES, S, S, 4] uint8, premultiplied, of what `strip` wrote."""
    whole = np.asarray(Image.open(io.BytesIO(strip)).convert("RGBA"))
    parts = np.stack(np.split(whole, PICTURES, 1)).astype(np.float32)
    parts[..., :3] *= parts[..., 3:] / 255.0
    return (parts + 0.5).astype(np.uint8)


def thumbnails(strip: bytes) -> np.ndarray:
    """Return the pictures of a strip at [PICTURES, THUMB, THUMB, 4] uint8, premultiplied."""
    whole = Image.open(io.BytesIO(strip)).convert("RGBA").convert("RGBa")
    return np.stack(np.split(np.asarray(whole.reduce(whole.height // THUMB)), PICTURES, 1))


def strip(page: Page, quality: int) -> bytes:
    """Return the pictures of a page as one WebP file with transparency."""
    parts = page.pictures.astype(np.float32)
    parts[..., :3] *= 255.0 / np.maximum(parts[..., 3:], 1)
    whole = np.concatenate(list(parts.clip(0, 255).astype(np.uint8)), 1)
    stream = io.BytesIO()
    Image.fromarray(whole, "RGBA").save(stream, "WEBP", quality=quality, alpha_quality=50, method=4)
    return stream.getvalue()
