"""Training pictures of the procedural scenes, made in groups, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from splatdistill.priors import words as grammar
from splatdistill.scene.cameras import Cameras
from splatdistill.teaching.solids import composite, raycast

GROUP = 32  # scenes of one structure, built and rendered together


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show.

    images [n, S, S, 3] uint8; captions (n); things, colors as in grammar.Batch (n); cameras [n].
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

    With several views, each scene fills so many pictures in turn, before one background, seen from evenly all
    around at one elevation; with a reference, the first of them from anywhere, and no caption names a view.

    Args:
        rng: source of everything random.
        size: pixels a side.
        things: one or two names of grammar.BUILDERS.
        threads: rendering threads.
        count: number of pictures, a multiple of `views`.
        views: pictures of each scene.
        reference: the first view of each scene is a picture to start from.
        textureless: everything in one light grey, and no colour in the captions.
    """
    things = things or grammar.sample_structure(rng)
    batch = grammar.build(things, count // views, rng, 0.0 if textureless else 0.75).repeated(views)
    if textureless:
        batch.table[..., 14:] = grammar.TEXTURELESS
    cameras = grammar.sample_cameras(count, size, rng, views, reference)
    drawn = rng.choice(list(grammar.BACKGROUNDS), count // views, p=[0.5, 0.25, 0.25])
    backgrounds = [str(name) for name in np.repeat(drawn, views)]
    colors = np.array([grammar.BACKGROUNDS[name] for name in backgrounds], np.float32)
    images = composite(raycast(batch.table, cameras, threads), colors)
    shown = [
        tuple(c or grammar.USUAL_COLOR[t] for t, c in zip(things, row, strict=True)) for row in batch.colors
    ]
    return Pictures(
        images,
        grammar.captions(batch, cameras, backgrounds, rng, 0.0 if reference else 0.7),
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
