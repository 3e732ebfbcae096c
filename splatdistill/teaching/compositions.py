"""Scenes of real models: one alone, one on top of another, two side by side; and their cameras."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from splatdistill.priors.album import GAP, USUAL_SIZE, on_top
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.teaching import phrases
from splatdistill.teaching.assets import Entry
from splatdistill.teaching.meshes import Mesh, joined
from splatdistill.teaching.renderer import Light
from splatdistill.teaching.shelf import Shelf

CAPTIONS = 3  # of each scene, drawn apart
RINGS, RING, FREE = 3, 4, 4  # of each scene: rings of views evenly around, and views from anywhere
VIEWS = RINGS * RING + FREE
CONTRAST = 0.3  # of a background to the mean color before it, at least
KINDS = {"alone": 0.78, "on top of": 0.14, "next to": 0.05, "and": 0.03}
SUPPORTS = (
    "cube", "cylinder", "table", "coffee table", "desk", "crate", "barrel", "stool", "side table",
    "nightstand", "round table", "tree stump", "treasure chest", "dresser", "pedestal", "bed", "car", "truck",
    "bench", "pillow", "plate", "cake", "rock", "book", "log", "sofa", "bookcase", "pallet", "rug",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A mesh within radius 1, its light, its captions and its contents."""

    mesh: Mesh
    light: Light
    captions: tuple[str, ...]
    entries: tuple[Entry, ...]
    colors: tuple[str | None, ...]
    relation: str  # a key of KINDS


def draw_scene(shelf: Shelf, rng: np.random.Generator, kind: str | None = None) -> Scene:
    """Draw one scene; `rng` alone decides it."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    entries = [draw_entry(shelf, rng)]
    if kind == "on top of":
        supports = [noun for noun in SUPPORTS if noun in shelf.by_noun]
        shapes = rng.random() < 0.35
        noun = str(rng.choice(supports[:2] if shapes else supports))
        entries.append(_one(shelf.by_noun[noun], rng))
    elif kind != "alone":
        entries.append(draw_entry(shelf, rng))
    taken = [shelf.take(entry, rng) for entry in entries]
    meshes, colors = [mesh for mesh, _ in taken], tuple(color for _, color in taken)
    size = str(rng.choice(["", *phrases.SIZES], p=[0.88, 0.06, 0.06]))
    if kind == "on top of":
        mesh = stacked(*meshes)
    elif kind == "alone":
        mesh = meshes[0]
    else:
        mesh = beside(*meshes)
    mesh = mesh.fitted(phrases.SIZES.get(size, USUAL_SIZE))
    captions = tuple(caption(entries, colors, size, kind, rng) for _ in range(CAPTIONS))
    return Scene(mesh, draw_light(rng), captions, tuple(entries), colors, kind)


def learned_pairs(nouns: Container[str]) -> dict[str, list[str]]:
    """Return the relations of two things, each with the nouns that are the second one, none for any."""
    supports = [noun for noun in SUPPORTS if noun in nouns]
    return {kind: supports if kind == "on top of" else [] for kind in KINDS if kind != "alone"}


def caption(
    entries: list[Entry], colors: tuple[str | None, ...], size: str, kind: str, rng: np.random.Generator
) -> str:
    """Return one caption of a scene, in canonical words."""
    sizes = [size] + [""] * len(entries)
    names = [phrases.name(e, c, s, rng) for e, c, s in zip(entries, colors, sizes, strict=False)]
    return f" {kind} ".join(names)


def draw_entry(shelf: Shelf, rng: np.random.Generator) -> Entry:
    """Draw a model by noun; nouns with many models are somewhat more frequent."""
    nouns = list(shelf.by_noun)
    weights = np.array([len(shelf.by_noun[noun]) for noun in nouns]) ** 0.4
    return _one(shelf.by_noun[str(rng.choice(nouns, p=weights / weights.sum()))], rng)


def _one(entries: list[Entry], rng: np.random.Generator) -> Entry:
    return entries[int(rng.integers(len(entries)))]


def varied(shelf: Shelf, entry: Entry, rng: np.random.Generator) -> tuple[Mesh, str | None]:
    """Vary a model's proportions and rotate it a little; a noun's only model varies most.

    Rotationally symmetric models are rotated by any angle.
    """
    mesh, color = shelf.take(entry, rng)
    spread = 0.16 if len(shelf.by_noun[entry.noun]) == 1 else 0.08
    scale = rng.uniform(1 - spread, 1 + spread, 3)
    turn = np.radians(rng.uniform(0, 360) if entry.symmetric else rng.uniform(-8, 8))
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return mesh.moved(rotation @ np.diag(scale)).grounded(rng.uniform(0.9, 1.1)), color


def stacked(upper: Mesh, lower: Mesh) -> Mesh:
    """Put the upper mesh on the highest point of the lower one below it; scaled down if it is too wide."""
    below, above = (np.ptp(mesh.positions, axis=0)[:2] for mesh in (lower, upper))
    upper = upper.moved(np.eye(3) * on_top(float(above.max()), float(below.min())))
    reach = 0.3 * float((upper.bounds[1] - upper.bounds[0])[:2].min())
    points = np.array([(0, 0), (reach, 0), (-reach, 0), (0, reach), (0, -reach)])
    return joined([upper.moved(np.eye(3), np.array([0, 0, height_at(lower, points)])), lower])


def height_at(mesh: Mesh, points: np.ndarray) -> float:
    """Return the highest z of a mesh above or below points [k, 2]; its top where there is nothing."""
    a, b, c = mesh.positions.reshape(-1, 3, 3).transpose(1, 0, 2)

    def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    area = cross(b[:, :2] - a[:, :2], c[:, :2] - a[:, :2])  # [t]
    area = np.where(np.abs(area) < 1e-12, np.inf, area)
    best = -np.inf
    for p in points:
        wb = cross(p - a[:, :2], c[:, :2] - a[:, :2]) / area
        wc = cross(b[:, :2] - a[:, :2], p - a[:, :2]) / area
        hit = (wb >= 0) & (wc >= 0) & (wb + wc <= 1) & np.isfinite(area)
        if hit.any():
            best = max(
                best, float((a[:, 2] + wb * (b[:, 2] - a[:, 2]) + wc * (c[:, 2] - a[:, 2]))[hit].max())
            )
    return best if np.isfinite(best) else float(mesh.bounds[1][2])


def beside(first: Mesh, second: Mesh) -> Mesh:
    """Put two meshes side by side: seen from the front, the first one is on the left."""
    halves = [float(np.ptp(mesh.positions[:, 1])) / 2 for mesh in (first, second)]
    left = first.moved(np.eye(3), np.array([0, -halves[0] - GAP, 0]))
    return joined([left, second.moved(np.eye(3), np.array([0, halves[1] + GAP, 0]))])


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a lamp from any direction above, of random strength."""
    return Light(
        float(rng.uniform(0, 360)),
        float(rng.uniform(40, 75)),
        float(rng.uniform(0.3, 0.5)),
        float(rng.uniform(0.4, 0.7)),
        float(rng.uniform(0.05, 0.25)),
    )


def draw_background(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a plain color [3] (white, gray, black or any) that contrasts with images [V, S, S, 4]."""
    covered = max(float(rgba[..., 3].sum()), 1.0)
    mean = rgba[..., :3].sum((0, 1, 2), dtype=float) / covered
    color = mean
    for _ in range(8):
        kind = rng.choice(4, p=[0.45, 0.2, 0.15, 0.2])
        color = rng.uniform(0, 1, 3) if kind == 3 else np.full(3, (1.0, 0.5, 0.0)[kind])
        if np.linalg.norm(color - mean) > CONTRAST:
            break
    return color


def draw_cameras(size: int, rng: np.random.Generator) -> Cameras:
    """Draw the views of one scene: RINGS of RING evenly around, then FREE ones from anywhere."""

    def raised() -> float:
        return float(rng.uniform(-10, 45) if rng.random() < 0.88 else rng.uniform(45, 75))

    azimuths, elevations, distances, fovs = [], [], [], []
    for count in (*[RING] * RINGS, *[1] * FREE):
        azimuths += ((rng.uniform(0, 360) + np.arange(count) * 360 / count) % 360).tolist()
        elevations += [raised()] * count
        distances += [rng.uniform(2.8, 3.2)] * count
        fovs += [rng.uniform(40, 45)] * count
    return orbit(azimuths, elevations, distances, fovs, size, size)


def before(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Composite premultiplied images [V, S, S, 4] uint8 on a background [3] in [0, 1]: [V, S, S, 3] uint8."""
    rest = 255 - rgba[..., 3:].astype(np.float32)
    return (rgba[..., :3] + rest * background + 0.5).clip(0, 255).astype(np.uint8)
