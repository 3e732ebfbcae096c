"""What the shipped teacher can be asked for: words, captions, and the scenes that they describe.

A caption reads "a small red car on top of a blue cube, front view, gray background"; every part but the thing
is optional. Colours, sizes, views and backgrounds are named as below, and no others are known.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import numpy as np

from splatdistill.errors import UserError
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.views import view_word
from splatdistill.teaching.objects import BUILDERS, OBJECTS, PRIMITIVES
from splatdistill.teaching.solids import Solids

COLORS = {
    "red": (0.85, 0.09, 0.09), "orange": (0.97, 0.48, 0.05), "yellow": (0.97, 0.86, 0.12),
    "green": (0.12, 0.60, 0.18), "cyan": (0.12, 0.78, 0.82), "blue": (0.11, 0.25, 0.85),
    "purple": (0.50, 0.16, 0.70), "pink": (0.97, 0.50, 0.72), "brown": (0.45, 0.26, 0.12),
    "white": (0.94, 0.94, 0.94), "gray": (0.50, 0.50, 0.52), "black": (0.10, 0.10, 0.11),
}  # fmt: skip
USUAL_COLOR = {
    "snowman": "white", "mushroom": "red", "pine tree": "green", "rocket": "white", "table": "brown",
    "chair": "brown", "house": "yellow", "car": "red", "robot": "gray", "duck": "yellow", "dog": "brown",
    "teddy bear": "brown", "mug": "blue", "lamp": "yellow", "cake": "pink", "castle": "gray",
    "cactus": "green",
    "donut": "pink", "ice cream cone": "pink", "boat": "brown", "penguin": "black", "umbrella": "purple",
    "lighthouse": "red", "airplane": "white", "sphere": "red", "cube": "blue", "cylinder": "green",
    "cone": "orange", "ring": "yellow",
}  # fmt: skip
SYNONYMS = {
    "sphere": "ball", "cube": "box", "teddy bear": "teddy", "pine tree": "christmas tree", "mug": "cup",
    "airplane": "plane", "boat": "sailboat", "dog": "puppy", "donut": "doughnut",
}  # fmt: skip
SIZES = {"small": 0.52, "big": 0.92}
USUAL_SIZE = 0.78
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)}
TEXTURELESS = 0.8  # grey of things without colours
OPENINGS = ("", "", "", "", "", "", "a photo of ", "a 3d model of ", "a render of ", "a toy ")
FUNCTION_WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "top",
    "and",
    "with",
    "background",
    "view",
    "front",
    "side",
    "back",
    "overhead",
    "photo",
    "3d",
    "model",
    "render",
    "toy",
]
MAX_PROMPT_TOKENS = 16  # of 24: two mark start and end, six are for ", overhead view, white background"
FACING = (  # things whose front is clearly another than their back
    "snowman", "chair", "house", "car", "robot", "duck", "dog", "teddy bear", "castle", "penguin", "airplane",
)  # fmt: skip
SUPPORTS = ("cube", "cylinder", "sphere", "cone", "table", "house", "cake", "castle", "car")
# Where the flat or rounded top of a support lies, as a share of its height above the bottom of its bounds.
SUPPORT_TOP = {"castle": 0.62, "cake": 0.80, "cone": 0.97, "house": 0.97}


@dataclass(frozen=True)
class Batch:
    """Scenes that share one structure: packed solids [n, P, 17], and for each its words."""

    table: np.ndarray
    things: tuple[str, ...]  # one or two names; the first stands on the second
    colors: list[tuple[str | None, ...]]  # n tuples, None where the caption leaves the colour out
    sizes: list[str]  # n, "" where usual

    def repeated(self, times: int) -> Batch:
        """Every scene so many times in turn."""
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
        rng: source of shape jitter, colours and sizes.
        named: share of captions that name a colour (others show the usual one).
        colors: one for each thing instead of drawn ones; from the same draws come the same shapes in any.
    """
    columns = []  # per thing: n colour names or None
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


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(things: tuple[str, ...], colors: tuple[str | None, ...], size: str = "") -> str:
    """Say what a scene holds: ("car", "cube"), ("red", None), "small": "a small red car on top of a cube"."""
    phrases = [" ".join(filter(None, (color, thing))) for color, thing in zip(colors, things, strict=True)]
    phrases[0] = " ".join(filter(None, (size, phrases[0])))
    return " on top of ".join(_article(phrase) for phrase in phrases)


def parse(text: str) -> tuple[tuple[str, ...], tuple[str | None, ...]] | None:
    """The things and colours that `describe` would have said; None for text of another form."""
    names = {name: name for name in BUILDERS} | {short: name for name, short in SYNONYMS.items()}
    things, colors = [], []
    for phrase in text.lower().split(",")[0].split(" on top of "):
        said = [word for word in words(phrase) if word not in ("a", "an", "the", *SIZES)]
        color = said.pop(0) if said and said[0] in COLORS else None
        if " ".join(said) not in names:
            return None
        things.append(names[" ".join(said)])
        colors.append(color)
    return tuple(things), tuple(colors)


def captions(
    batch: Batch, cameras: Cameras, backgrounds: list[str], rng: np.random.Generator, views: float = 0.7
) -> list[str]:
    """Caption n pictures; 6 % are empty and 6 % name the background alone, for classifier-free guidance.

    A share `views` of the others carry the view words. Gray and black backgrounds are always named, white
    ones in half.
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


def words(text: str) -> list[str]:
    """Split text into lower-case words; commas and full stops part them."""
    return re.findall(r"[^\s,.]+", text.lower())


def vocabulary() -> frozenset[str]:
    """Every word that the teacher knows."""
    names = " ".join([*BUILDERS, *SYNONYMS.values(), *COLORS, *SIZES, *BACKGROUNDS])
    return frozenset([*names.split(), *FUNCTION_WORDS])


def word_list() -> str:
    """The vocabulary for people, by kind, one line a kind."""
    lines = {
        "objects": [name + (f" ({SYNONYMS[name]})" if name in SYNONYMS else "") for name in OBJECTS],
        "shapes": [name + (f" ({SYNONYMS[name]})" if name in SYNONYMS else "") for name in PRIMITIVES],
        "colours": list(COLORS),
        "sizes": list(SIZES),
        "two things": ["X on top of Y"],
        "other words": sorted(FUNCTION_WORDS),
    }
    return "\n".join(f"{kind}: {', '.join(values)}" for kind, values in lines.items())


def check_prompt(text: str, allow_unknown: bool = False) -> list[str]:
    """Look for words that the teacher never saw, and for more words than it reads.

    Returns:
        One warning line if there are unknown words and they are allowed, else an empty list.

    Raises:
        UserError: unknown words, not allowed; or a prompt too long to leave room for view and background.
    """
    length = len(re.findall(r"[a-z]+|[^a-z\s]", text.lower()))
    if length > MAX_PROMPT_TOKENS:
        raise UserError(
            f"the prompt has {length} words and signs; the shipped teacher reads at most "
            f"{MAX_PROMPT_TOKENS}: shorten it, or use --prior sd21"
        )
    known = vocabulary()
    unknown = sorted({word for word in words(text) if word not in known})
    if not unknown:
        return []
    hints = []
    for word in unknown:
        near = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
        hints.append(f'"{word}"' + (f" (nearest known: {', '.join(near)})" if near else ""))
    message = f"the shipped teacher does not know {', '.join(hints)}"
    if allow_unknown:
        return [message + "; the result will ignore or misread it"]
    raise UserError(
        message + "; use words that --list-words prints, --prior sd21 for open vocabulary, or --allow-unknown"
    )
