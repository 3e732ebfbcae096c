"""Procedural scenes (structure, cameras, captions and images), made in groups from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from splatdistill.priors.words import (
    BACKGROUNDS,
    COLORS,
    OBJECTS,
    OPENINGS,
    PRIMITIVES,
    SIZES,
    SYNONYMS,
    TEXTURELESS,
    USUAL_COLOR,
    USUAL_SIZE,
    describe,
)
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.views import view_word
from splatdistill.teaching.objects import BUILDERS
from splatdistill.teaching.solids import Solids, composite, raycast

GROUP = 32  # scenes of one structure, built and rendered together
SUPPORTS = ("cube", "cylinder", "sphere", "cone", "table", "house", "cake", "castle", "car")
# Where the flat or rounded top of a support lies, as a share of its height above the bottom of its bounds.
SUPPORT_TOP = {"castle": 0.62, "cake": 0.80, "cone": 0.97, "house": 0.97}


@dataclass(frozen=True)
class Batch:
    """Scenes that share one structure: packed solids [n, P, 17], and the words of each."""

    table: np.ndarray
    things: tuple[str, ...]  # one or two names; the first stands on the second
    colors: list[tuple[str | None, ...]]  # n tuples, None where the caption leaves the color out
    sizes: list[str]  # n, "" where usual

    def repeated(self, times: int) -> Batch:
        """Return the batch with every scene repeated `times` times."""
        rows = np.repeat(np.arange(len(self.table)), times)
        colors, sizes = [self.colors[i] for i in rows], [self.sizes[i] for i in rows]
        return Batch(self.table[rows], self.things, colors, sizes)


def _thing(name: str, colors: list[str], rng: np.random.Generator) -> Solids:
    solids = Solids(len(colors), rng)
    base = np.array([COLORS[color] for color in colors])  # [n, 3]
    BUILDERS[name](solids, np.clip(base + rng.normal(0, 0.015, base.shape), 0.03, 1.0))
    return solids


def build(
    things: tuple[str, ...],
    n: int,
    rng: np.random.Generator,
    named: float = 0.75,
    colors: tuple[str, ...] | None = None,
) -> Batch:
    """Build n scenes of one thing, or of one thing on top of another.

    Args:
        things: one or two keys of BUILDERS.
        n: number of variants.
        rng: source of shape jitter, colors and sizes.
        named: share of captions that name a color (others show the usual one).
        colors: one for each thing instead of drawn ones; from the same draws come the same shapes in any.
    """
    columns = []  # per thing: n color names or None
    for i, _ in enumerate(things):
        names = rng.choice(list(COLORS), n)
        names = names if colors is None else np.repeat(colors[i], n)
        columns.append(
            [str(c) if keep else None for c, keep in zip(names, rng.random(n) < named, strict=True)]
        )
    shown = [[c or USUAL_COLOR[t] for c in column] for t, column in zip(things, columns, strict=True)]
    sizes = [str(s) for s in rng.choice(["", *SIZES], n, p=[0.84, 0.08, 0.08])]
    solids = _thing(things[0], shown[0], rng)
    if len(things) == 2:
        solids.fit(rng.uniform(0.42, 0.5, n))
        low = solids.extent()[0]
        support = _thing(things[1], shown[1], rng)
        support.fit(rng.uniform(0.42, 0.5, n))
        bottom, top = support.extent()
        height = bottom[:, 2] + SUPPORT_TOP.get(things[1], 1.0) * (top[:, 2] - bottom[:, 2])
        solids.place(1.0, np.stack([np.zeros(n), np.zeros(n), height - low[:, 2]], -1))
        solids.extend(support)
    solids.fit(np.array([SIZES.get(size, USUAL_SIZE) for size in sizes]) * rng.uniform(0.95, 1.05, n))
    return Batch(solids.packed(), things, list(zip(*columns, strict=True)), sizes)


def sample_cameras(
    n: int, size: int, rng: np.random.Generator, views: int = 1, reference: bool = False
) -> Cameras:
    """Draw n training cameras: every azimuth, elevations -10..50, one in eight from overhead.

    Each `views` in turn are spread evenly around one scene and share the rest; with a reference, the first
    of them is anywhere instead and the others are so.
    """
    scenes = n // views

    def ring(count: int) -> tuple[np.ndarray, ...]:  # azimuth, elevation and distance, each [scenes, count]
        overhead = rng.random(scenes) < 0.125
        elevation = np.where(overhead, rng.uniform(60, 85, scenes), rng.uniform(-10, 50, scenes))
        first, distance = rng.uniform(0, 360, scenes), rng.uniform(2.8, 3.2, scenes)
        azimuth = (first[:, None] + np.arange(count) * (360.0 / count)) % 360.0
        return azimuth, elevation[:, None].repeat(count, 1), distance[:, None].repeat(count, 1)

    rings = [ring(1), ring(views - 1)] if reference else [ring(views)]
    azimuth, elevation, distance = (np.concatenate(x, 1).ravel().tolist() for x in zip(*rings, strict=True))
    return orbit(azimuth, elevation, distance, 40.0, size, size)


def captions(
    batch: Batch, cameras: Cameras, backgrounds: list[str], rng: np.random.Generator, views: float = 0.7
) -> list[str]:
    """Caption n images; 6 % are empty and 6 % name only the background, for classifier-free guidance.

    A share `views` of the others have the view words. Gray and black backgrounds are always named, white ones
    in half.
    """
    texts = []
    azimuths, elevations = cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist()
    for i, background in enumerate(backgrounds):
        kind = rng.random()
        if kind < 0.06:
            texts.append("")
            continue
        if kind < 0.12:
            texts.append(f"{background} background")
            continue
        things = tuple(SYNONYMS[t] if t in SYNONYMS and rng.random() < 0.15 else t for t in batch.things)
        text = describe(things, batch.colors[i], batch.sizes[i])
        opening = OPENINGS[rng.integers(len(OPENINGS))]
        text = opening + (text.split(" ", 1)[1] if opening == "a toy " else text)
        if rng.random() < views:
            text += f", {view_word(azimuths[i], elevations[i])}"
        if background != "white" or rng.random() < 0.5:
            text += f", {background} background"
        texts.append(text)
    return texts


def sample_structure(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw what a group of training scenes shows: 68 % objects, 10 % primitives, 22 % two things stacked."""
    kind, objects, primitives = rng.random(), list(OBJECTS), list(PRIMITIVES)
    if kind < 0.68:
        return (objects[rng.integers(len(objects))],)
    if kind < 0.78:
        return (primitives[rng.integers(len(primitives))],)
    upper = objects if rng.random() < 0.6 else primitives
    lower = SUPPORTS if rng.random() < 0.3 else ("cube", "cylinder", "sphere")
    return (upper[rng.integers(len(upper))], lower[rng.integers(len(lower))])


@dataclass(frozen=True)
class Pictures:
    """Images with their captions and contents.

    images [n, S, S, 3] uint8; captions (n); things, colors as in Batch (n); cameras [n].
    """

    images: np.ndarray
    captions: list[str]
    things: list[tuple[str, ...]]
    colors: list[tuple[str, ...]]
    cameras: Cameras


def group(
    rng: np.random.Generator,
    size: int,
    things: tuple[str, ...] | None = None,
    threads: int = 1,
    count: int = GROUP,
    views: int = 1,
    reference: bool = False,
    textureless: bool = False,
) -> Pictures:
    """Render one group of scenes of one structure, drawn when `things` is None.

    With several views, each scene has that many consecutive images on one background, evenly around at one
    elevation; with a reference, the first of them is from anywhere, and no caption names a view.

    Args:
        rng: source of everything random.
        size: pixels a side.
        things: one or two names of BUILDERS.
        threads: rendering threads.
        count: number of images, a multiple of `views`.
        views: images of each scene.
        reference: the first view of each scene is a reference picture.
        textureless: everything in one light gray, and no color in the captions.
    """
    things = things or sample_structure(rng)
    batch = build(things, count // views, rng, 0.0 if textureless else 0.75).repeated(views)
    if textureless:
        batch.table[..., 14:] = TEXTURELESS
    cameras = sample_cameras(count, size, rng, views, reference)
    drawn = rng.choice(list(BACKGROUNDS), count // views, p=[0.5, 0.25, 0.25])
    backgrounds = [str(name) for name in np.repeat(drawn, views)]
    colors = np.array([BACKGROUNDS[name] for name in backgrounds], np.float32)
    images = composite(raycast(batch.table, cameras, threads), colors)
    shown = [tuple(c or USUAL_COLOR[t] for t, c in zip(things, row, strict=True)) for row in batch.colors]
    return Pictures(
        images,
        captions(batch, cameras, backgrounds, rng, 0.0 if reference else 0.7),
        [things] * count,
        shown,
        cameras,
    )


def groups(
    seed: int, count: int, size: int, threads: int = 1, views: int = 1, reference: bool = False
) -> Iterator[Pictures]:
    """Yield whole groups until `count` pictures are made; group i depends on all arguments but threads."""
    for i in range(-(-count // GROUP)):
        yield group(np.random.default_rng((seed, i)), size, threads=threads, views=views, reference=reference)
