"""Triangle meshes in memory, from asset files and procedural solids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from splatdistill.formats.gltf import srgb_to_linear
from splatdistill.priors.album import fit
from splatdistill.teaching.solids import KINDS, Solids

TEXTURE = 128  # pixels a side of every texture
ROUND = 28  # edges of a circle in a tessellated solid


@dataclass(frozen=True)
class Mesh:
    """Triangles without an index: every three rows are one.

    positions, normals [n, 3], +Z up and front toward +X; colors [n, 4] linear RGBA; uvs [n, 2]; layers [n]
    the texture of each vertex or -1; textures [L, 128, 128, 4] uint8 sRGB.
    """

    positions: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    uvs: np.ndarray
    layers: np.ndarray
    textures: np.ndarray

    def moved(self, matrix: np.ndarray, offset: np.ndarray | float = 0.0) -> Mesh:
        """Return the mesh with p -> matrix @ p + offset; matrix [3, 3] is invertible, offset [3]."""
        normals = self.normals @ np.linalg.inv(matrix).astype(np.float32)
        positions = self.positions @ matrix.T.astype(np.float32) + np.float32(offset)
        return replace(self, positions=positions, normals=normals)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper corner, [3] each."""
        return self.positions.min(0), self.positions.max(0)

    def grounded(self, scale: np.ndarray | float = 1.0) -> Mesh:
        """Return the mesh centered on z = 0, with longest side `scale` (a number, or [3] for each axis)."""
        low, high = self.bounds
        matrix = np.eye(3) * scale / max(float((high - low).max()), 1e-9)
        base = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        return self.moved(matrix, -matrix @ base)

    def fitted(self, half: float) -> Mesh:
        """Return the mesh centered, with longest half side `half` and half diagonal at most 1.25 `half`."""
        low, high = self.bounds
        scale = fit((high - low) / 2, half)
        return self.moved(np.eye(3) * scale, -(low + high) / 2 * scale)


def joined(meshes: list[Mesh]) -> Mesh:
    """Concatenate several meshes."""
    first = np.cumsum([0] + [len(mesh.textures) for mesh in meshes])
    layers = [np.where(m.layers < 0, -1, m.layers + k) for m, k in zip(meshes, first, strict=False)]
    return Mesh(
        positions=np.concatenate([m.positions for m in meshes]),
        normals=np.concatenate([m.normals for m in meshes]),
        colors=np.concatenate([m.colors for m in meshes]),
        uvs=np.concatenate([m.uvs for m in meshes]),
        layers=np.concatenate(layers).astype(np.float32),
        textures=np.concatenate([m.textures for m in meshes]),
    )


def plain(positions: np.ndarray, color: np.ndarray, normals: np.ndarray | None = None) -> Mesh:
    """Make a mesh of triangles [n, 3] of linear RGBA colors [4] or [n, 4]; flat without normals."""
    positions = positions.astype(np.float32)
    if normals is None:
        normals = face_normals(positions)
    return Mesh(
        positions,
        normals.astype(np.float32),
        np.broadcast_to(color, (len(positions), 4)).astype(np.float32),
        np.zeros((len(positions), 2), np.float32),
        np.full(len(positions), -1, np.float32),
        np.zeros((0, TEXTURE, TEXTURE, 4), np.uint8),
    )


def face_normals(positions: np.ndarray) -> np.ndarray:
    """Return the unit normal of each triangle at its three vertices, [n, 3]."""
    corners = positions.reshape(-1, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return normals.repeat(3, 0)


def _grid(point, rows: int, columns: int) -> np.ndarray:
    """Return triangles [n, 3] of a surface: point(u, v) -> [..., 3] for u and v in [0, 1]."""
    u, v = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    p = point(u, v)
    a, b, c, d = p[:-1, :-1], p[1:, :-1], p[1:, 1:], p[:-1, 1:]
    return np.stack([a, b, c, a, c, d], 2).reshape(-1, 3)


def _around(v: np.ndarray, radius: np.ndarray, z: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z + 0 * v], -1)


def unit_solid(kind: int, parameter: float) -> np.ndarray:
    """Return triangles [n, 3] of one solid in its own frame, as the ray caster defines it."""
    half = ROUND // 2
    if kind == KINDS["ellipsoid"]:
        low = np.arcsin(max(-1.0, parameter))
        parts = [
            _grid(
                lambda u, v: _around(
                    v, np.cos(low + u * (np.pi / 2 - low)), np.sin(low + u * (np.pi / 2 - low))
                ),
                half,
                ROUND,
            )
        ]
        if parameter > -1:
            parts.append(_grid(lambda u, v: _around(v, u * np.cos(low), np.sin(low) + 0 * u), 1, ROUND))
        return np.concatenate(parts)
    if kind == KINDS["frustum"]:
        radii = np.array([0.0, 1.0, parameter, 0.0])
        heights = np.array([-1.0, -1.0, 1.0, 1.0])

        def profile(u, v):
            k = (u * 3 + 1e-9).astype(int).clip(0, 3)
            return _around(v, radii[k], heights[k])

        return _grid(profile, 3, ROUND)
    if kind == KINDS["torus"]:
        return _grid(
            lambda u, v: _around(v, 1 + parameter * np.cos(2 * np.pi * u), parameter * np.sin(2 * np.pi * u)),
            half,
            ROUND,
        )
    corners = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    if kind == KINDS["prism"]:
        corners[1::2, 0] = 0.0  # the upper edges meet in a ridge along y
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners[[i for a, b, c, d in quads for i in (a, b, c, a, c, d)]]


def of_solids(solids: Solids, variant: int = 0) -> Mesh:
    """Return one variant of a batch of solids; its colors are taken as sRGB."""
    meshes = []
    for i, kind in enumerate(solids.kinds):
        axes, color = solids.axes[i][variant], srgb_to_linear(solids.colors[i][variant])
        local = unit_solid(kind, float(solids.parameters[i][variant]))
        mesh = plain(local @ axes.T + solids.centers[i][variant], np.append(color, 1.0))
        if kind in (KINDS["ellipsoid"], KINDS["torus"]):
            mesh = replace(mesh, normals=_smoothed(mesh))
        meshes.append(mesh)
    return joined(meshes)


def _smoothed(mesh: Mesh) -> np.ndarray:
    """Return normals averaged over coinciding corners, [n, 3]."""
    extent = max(float(np.ptp(mesh.positions, axis=0).max()), 1e-9)
    keys = np.round(mesh.positions / extent * 1e4).astype(np.int64)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    total = np.zeros((inverse.max() + 1, 3))
    np.add.at(total, inverse.ravel(), mesh.normals)
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return total[inverse.ravel()].astype(np.float32)
