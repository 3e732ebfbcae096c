"""Which thing of the album a given picture shows, and from where: by its looks, then by the teacher itself.

The denoiser errs least on a picture beside the page that the picture belongs to: so a diffusion model
classifies (2303.16203). A picture that it draws no better beside any page shows something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.priors.album import AZIMUTHS, ELEVATIONS, RINGS, THUMB, Album, zoom_of

ZOOMS = tuple(k / 10 for k in range(-4, 5))  # logs of how much larger the thing may be than on its page
APART = math.radians(30.0)  # largest difference of elevation from a page's picture
LIKELY, LIKELIER = 96, 4  # models that the teacher looks at once, and of those from all sides
TURN = math.radians(30.0)  # between these sides
FINE = tuple(math.radians(x) for x in (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0))
LARGER = (-0.1, 0.0, 0.1)  # logs of how much larger things are tried, whose looks said otherwise
LEVELS = (0.3, 0.5, 0.7)  # of the noise, of all steps
GLANCE = (0.6,)  # those of a single look
SURE = 0.7  # see `recognized`


@dataclass(frozen=True)
class Sighting:
    """A thing that a picture shows.

    number: of its page; noun: what that is; azimuth: of the picture's camera around the page's thing, in
    radians; zoom: log of how much larger the thing is than on the page.
    """

    number: int
    noun: str
    azimuth: float
    zoom: float


class Surprise(Protocol):
    """The teacher's error on the picture beside each of some sightings, None being no page."""

    def __call__(self, guesses: Sequence[Sighting | None], levels: Sequence[float], /) -> Tensor:
        """Return the mean squared error of v at some levels of noise, [n]."""
        ...


def likely(album: Album, picture: Tensor, camera: Tensor, count: int = LIKELY) -> list[Sighting]:
    """Return the models, `count` at most, one of whose pictures looks most like this one, the nearest first.

    picture: [4, S, S] in [0, 1], color times alpha; camera: elevation in radians, distance, field of view in
    radians, [3].
    """
    elevation, distance, fov = camera
    line = (torch.arange(THUMB * 8) + 0.5) * (2 / (THUMB * 8)) - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    larger = (torch.tensor(ZOOMS) + zoom_of(distance, fov)).exp().view(-1, 1, 1, 1)
    scaled = F.grid_sample(picture.expand(len(ZOOMS), -1, -1, -1), grid * larger, align_corners=False)
    looks = F.avg_pool2d(scaled, 8).flatten(1)  # [Z, 4 * THUMB^2]
    height = (ELEVATIONS - elevation).abs()
    near = (height <= max(APART, float(height.min()))).repeat(2)
    counts = [count for _, count in RINGS]
    pages = album.thumbnails.flatten(2).float() / 255.0  # [n, PICTURES, 4 * THUMB^2]
    between = [(ring + ring.roll(-1, 1)) / 2 for ring in pages.split(counts, 1)]
    pages = torch.cat([pages, *between], 1)[:, near]
    halfway = torch.cat([torch.full((count,), math.pi / count) for count in counts])
    azimuths = torch.cat([AZIMUTHS, AZIMUTHS + halfway])[near]
    apart = pages.square().sum(2)[..., None] - 2 * pages @ looks.T + looks.square().sum(1)
    best, which = apart.flatten(1).min(1)
    found = []
    for number in best.argsort()[:count].tolist():
        view, zoom = divmod(int(which[number]), len(ZOOMS))
        found.append(Sighting(number, album.nouns[number], float(azimuths[view]), ZOOMS[zoom]))
    return found


def recognized(guesses: Sequence[Sighting], surprise: Surprise) -> Sighting | None:
    """Return the guess that explains the picture best, its azimuth refined; None if none does surely.

    The square of its error must be below SURE times the errors without a page and beside that of another
    thing: the first alone would ask too much of a page, which the teacher trusts in all it shows.
    """
    if not guesses:
        return None
    sized = [replace(guess, zoom=guess.zoom + larger) for guess in guesses for larger in LARGER]
    errors = surprise(sized, GLANCE).unflatten(0, (-1, len(LARGER))).min(1)
    order = errors.values.argsort()[:LIKELIER].tolist()
    closer = [sized[k * len(LARGER) + int(errors.indices[k])] for k in order]
    sides = [k * TURN for k in range(round(math.tau / TURN))]
    turned = [replace(guess, azimuth=guess.azimuth + side) for guess in closer for side in sides]
    beside = surprise(turned, LEVELS).tolist()
    first = turned[min(range(len(turned)), key=beside.__getitem__)]
    others = [error for guess, error in zip(turned, beside, strict=True) if guess.noun != first.noun]
    fine = [
        replace(first, azimuth=first.azimuth + turn, zoom=first.zoom + larger / 2)
        for turn in FINE
        for larger in LARGER
    ]
    *beside, alone = surprise([*fine, None], LEVELS).tolist()
    best = min(range(len(fine)), key=beside.__getitem__)
    return fine[best] if beside[best] ** 2 < SURE * alone * min(others, default=alone) else None
