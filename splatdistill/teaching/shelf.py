"""The models of scenes: read once, cached on disk, tinted when they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from splatdistill.files import atomic_write
from splatdistill.formats.gltf import linear_to_srgb, srgb_to_linear
from splatdistill.priors.tint import LUMINANCE, alike
from splatdistill.priors.words import COLORS, USUAL_COLOR
from splatdistill.scene.cameras import orbit
from splatdistill.teaching.assets import Entry, load_mesh
from splatdistill.teaching.meshes import Mesh, of_solids
from splatdistill.teaching.objects import BUILDERS, PRIMITIVES
from splatdistill.teaching.renderer import Light, Renderer
from splatdistill.teaching.solids import Solids

PROCEDURAL = "procedural:"  # what the file of an entry begins with that is built rather than read
HOLD_OUT_FROM = 4  # models of a noun, from which on one is kept for measuring
RANKS = 10  # models of a noun that are used at most, the most different first
TINT_SHARE = 0.4  # of the surface that has to have the main color
UNLIT = Light(ambient=1.0, lamp=0.0, head=0.0)


def procedural_entries(nouns: Iterable[str]) -> list[Entry]:
    """Return the procedural objects whose noun the bundle lacks."""
    known = set(nouns)
    broader = dict.fromkeys(PRIMITIVES, ("shape",))
    return [
        Entry(name, PROCEDURAL + name, name, broader.get(name, ()), (), 0.0, name in PRIMITIVES, True, 0)
        for name in BUILDERS
        if name not in known
    ]


def is_held_out(entry: Entry, models: int) -> bool:
    """Return whether an entry is kept out of training; `models` are those of its noun."""
    return models >= HOLD_OUT_FROM and entry.rank == 2


@dataclass(frozen=True)
class Shelf:
    """Entries to choose from, with their meshes kept in `cache`.

    bundle: the folder of assets.json; cache: the folder of cached meshes, one file each; renderer: used to
    find their main colors.
    """

    entries: tuple[Entry, ...]
    bundle: Path
    cache: Path
    renderer: Renderer

    @cached_property
    def by_noun(self) -> dict[str, list[Entry]]:
        """Return the entries of each noun, at most RANKS, in the order of their rank."""
        found: dict[str, list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda e: (e.noun, e.rank)):
            found.setdefault(entry.noun, []).append(entry)
        return {noun: entries[:RANKS] for noun, entries in found.items()}

    def split(self, held_out: bool) -> Shelf:
        """Return the shelf of the held-out models, or of the others."""
        counts = {noun: sum(e.noun == noun for e in self.entries) for noun in self.by_noun}
        kept = tuple(e for e in self.entries if is_held_out(e, counts[e.noun]) == held_out)
        return replace(self, entries=kept)

    def mesh(self, entry: Entry) -> tuple[Mesh, np.ndarray | None]:
        """Return the mesh of a model and its main color, cached."""
        path = self.cache / f"{hashlib.sha1(entry.file.encode()).hexdigest()[:16]}.npz"
        names = [f.name for f in fields(Mesh)]
        if not path.exists():
            mesh = load_mesh(entry, self.bundle)
            main = main_color(mesh, self.renderer) if entry.tintable else None
            arrays = {name: getattr(mesh, name) for name in names}
            self.cache.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez(file, main=np.zeros(0) if main is None else main, **arrays)
        with np.load(path) as arrays:
            main = arrays["main"]
            return Mesh(**{name: arrays[name] for name in names}), main if len(main) else None

    def can_tint(self, entry: Entry) -> bool:
        """Return whether `take` can give a model another color."""
        return entry.tintable and (entry.file.startswith(PROCEDURAL) or self.mesh(entry)[1] is not None)

    def take(self, entry: Entry, rng: np.random.Generator, tint: float = 0.5) -> tuple[Mesh, str | None]:
        """Return a model, recolored with probability `tint` if tintable, and the name of its new color."""
        name = str(rng.choice(list(COLORS))) if entry.tintable and rng.random() < tint else None
        jitter = rng.normal(0, 0.02, 3)
        if entry.file.startswith(PROCEDURAL):
            kind = entry.file.removeprefix(PROCEDURAL)
            name = name or (str(rng.choice(list(COLORS))) if kind in PRIMITIVES else None)
            color = np.clip(COLORS[name or USUAL_COLOR[kind]] + jitter, 0.03, 1.0)
            solids = Solids(1, rng)
            BUILDERS[kind](solids, color[None])
            return of_solids(solids).grounded(), name
        mesh, main = self.mesh(entry)
        if name is None or main is None:
            return mesh, None
        return tinted(mesh, main, np.clip(COLORS[name] + jitter, 0.03, 1.0)), name


def main_color(mesh: Mesh, renderer: Renderer) -> np.ndarray | None:
    """Return the sRGB color [3] of most of a mesh's visible surface.

    None if no color has enough of it, or if the texture that has it is mostly of others, so is not tinted.
    """
    cameras = orbit([20, 110, 200, 290], [15, 35, 15, 35], 3.0, 40.0, renderer.size, renderer.size)
    rgba = renderer.draw(mesh.fitted(0.8), cameras, UNLIT).reshape(-1, 4)
    seen = rgba[rgba[:, 3] == 255, :3] / 255.0
    if len(seen) == 0:
        return None
    bins = (seen * 5).round().astype(int) @ np.array([36, 6, 1])
    main = seen[bins == np.bincount(bins).argmax()].mean(0)
    return main if alike(seen, main).mean() > TINT_SHARE and of_color(mesh, main).any() else None


def surface_colors(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return the sRGB color [t, 3] and the area [t] of each triangle."""
    corners = mesh.positions.reshape(-1, 3, 3)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    linear = mesh.colors[:, :3].reshape(-1, 3, 3).mean(1)
    layers = mesh.layers[::3].astype(int)
    textured = layers >= 0
    if textured.any():
        size = mesh.textures.shape[1]
        place = mesh.uvs.reshape(-1, 3, 2).mean(1)[textured] % 1.0
        column, row = (place * size).astype(int).clip(0, size - 1).T
        linear[textured] *= srgb_to_linear(mesh.textures[layers[textured], row, column, :3] / 255.0)
    return linear_to_srgb(linear), area


def tinted(mesh: Mesh, main: np.ndarray, color: np.ndarray) -> Mesh:
    """Return the mesh with its main color changed to another, both sRGB [3].

    Shades of the main color keep their relative brightness; a texture that mostly has it is tinted whole.
    """
    layers, near = mesh.layers[::3].astype(int), of_color(mesh, main)
    target, base = srgb_to_linear(color), max(float(srgb_to_linear(main) @ LUMINANCE), 1e-3)
    textures = mesh.textures.copy()
    for layer in np.unique(layers[near & (layers >= 0)]):
        gray = srgb_to_linear(textures[layer, ..., :3] / 255.0) @ LUMINANCE
        shade = (gray / max(float(gray.mean()), 1e-3)).clip(0.25, 1.8)[..., None]
        textures[layer, ..., :3] = (linear_to_srgb(shade * target) * 255).round()
    rows = (near & (layers < 0)).repeat(3)
    shade = (mesh.colors[rows, :3] @ LUMINANCE / base).clip(0.35, 1.5)[:, None]
    painted = mesh.colors.copy()
    painted[rows, :3] = (shade * target).clip(0.0, 1.0)
    painted[(near & (layers >= 0)).repeat(3), :3] = 1.0
    return replace(mesh, colors=painted, textures=textures)


def of_color(mesh: Mesh, main: np.ndarray) -> np.ndarray:
    """Return which triangles [t] are of a color [3]: for a texture all that show it, if most of them are."""
    colors, area = surface_colors(mesh)
    layers = mesh.layers[::3].astype(int)
    near = alike(colors, main)
    for layer in range(len(mesh.textures)):
        inside = layers == layer
        near[inside] = area[inside & near].sum() > 0.6 * area[inside].sum()
    return near
