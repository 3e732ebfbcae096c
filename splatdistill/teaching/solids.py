"""Batches of scenes made of colored solids, and their images.

A batch holds n variants of one kind of object: every call adds one solid to all of them, and any number given
may be a float or an array [n] (a color: [3] or [n, 3]). Lengths are world units, angles degrees, axes those
of the package (+Z up, front toward +X).
"""

from __future__ import annotations

import numpy as np

from splatdistill.errors import UserError
from splatdistill.ops import native
from splatdistill.scene.cameras import Cameras

Number = float | np.ndarray
Triple = tuple[Number, Number, Number]

KINDS = {"ellipsoid": 0, "box": 1, "frustum": 2, "prism": 3, "torus": 4}


class Solids:
    """n variants of a scene under construction.

    Args:
        n: number of variants.
        rng: source of the jitter drawn by `uniform`.
    """

    def __init__(self, n: int, rng: np.random.Generator):
        self.n = n
        self.rng = rng
        self.kinds: list[int] = []
        self.parameters: list[np.ndarray] = []  # each [n]
        self.axes: list[np.ndarray] = []  # each [n, 3, 3], columns are the half axes in world space
        self.centers: list[np.ndarray] = []  # each [n, 3]
        self.colors: list[np.ndarray] = []  # each [n, 3]

    def uniform(self, low: float, high: float) -> np.ndarray:
        """Draw one number per variant, [n]."""
        return self.rng.uniform(low, high, self.n)

    def _add(
        self, kind: str, parameter: Number, center: Triple, size: Triple, color: np.ndarray, turn: Triple
    ) -> None:
        def stack(triple: Triple) -> np.ndarray:
            return np.stack([np.broadcast_to(np.asarray(v, float), (self.n,)) for v in triple], -1)  # [n, 3]

        self.kinds.append(KINDS[kind])
        self.parameters.append(np.broadcast_to(np.asarray(parameter, float), (self.n,)))
        self.axes.append(_rotation(stack(turn)) * stack(size)[:, None, :])
        self.centers.append(stack(center))
        self.colors.append(np.broadcast_to(np.asarray(color, float), (self.n, 3)))

    def ellipsoid(
        self, center: Triple, size: Triple, color: np.ndarray, turn: Triple = (0, 0, 0), clip: Number = -1.0
    ):
        """Add an ellipsoid with half axes `size`; the part below `clip` (-1..1, local z) is cut off."""
        self._add("ellipsoid", clip, center, size, color, turn)

    def ball(self, center: Triple, radius: Number, color: np.ndarray):
        """Add a sphere."""
        self._add("ellipsoid", -1.0, center, (radius, radius, radius), color, (0, 0, 0))

    def box(self, center: Triple, size: Triple, color: np.ndarray, turn: Triple = (0, 0, 0)):
        """Add a box with half edges `size`."""
        self._add("box", 0.0, center, size, color, turn)

    def frustum(
        self, center: Triple, size: Triple, color: np.ndarray, top: Number = 1.0, turn: Triple = (0, 0, 0)
    ):
        """Add a cylinder (top 1) to cone (top 0) with bottom radii size[:2] and half height size[2]."""
        self._add("frustum", top, center, size, color, turn)

    def prism(self, center: Triple, size: Triple, color: np.ndarray, turn: Triple = (0, 0, 0)):
        """Add a gable: a triangle in the xz plane, apex up, extruded along y."""
        self._add("prism", 0.0, center, size, color, turn)

    def torus(self, center: Triple, ring: Number, tube: Number, color: np.ndarray, turn: Triple = (0, 0, 0)):
        """Add a ring around z with radius `ring`; `tube` is its thickness as a share of `ring`."""
        self._add("torus", tube, center, (ring, ring, ring), color, turn)

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return axis-aligned bounds of each variant, lower and upper corner, [n, 3] each."""
        lows, highs = [], []
        for kind, parameter, axes, center in zip(
            self.kinds, self.parameters, self.axes, self.centers, strict=True
        ):
            if kind == KINDS["ellipsoid"]:
                half = np.sqrt((axes**2).sum(-1))
            elif kind == KINDS["torus"]:
                reach = np.stack([1 + parameter, 1 + parameter, parameter], -1)  # [n, 3]
                half = np.sqrt(((axes * reach[:, None, :]) ** 2).sum(-1))
            elif kind == KINDS["frustum"]:
                half = np.sqrt((axes[..., :2] ** 2).sum(-1)) + np.abs(axes[..., 2])
            else:
                half = np.abs(axes).sum(-1)
            low = center - half
            if kind == KINDS["ellipsoid"]:  # an upright dome does not reach below its cut
                upright = (np.abs(axes[:, 2, :2]) < 1e-9).all(-1)
                cut = center[:, 2] + parameter * axes[:, 2, 2]
                low[:, 2] = np.where(upright, cut, low[:, 2])
            lows.append(low)
            highs.append(center + half)
        return np.min(lows, 0), np.max(highs, 0)

    def place(self, scale: Number, offset: np.ndarray) -> None:
        """Scale by `scale` ([n] or a number), then move by `offset` [n, 3]."""
        scale = np.broadcast_to(np.asarray(scale, float), (self.n,))
        self.axes = [a * scale[:, None, None] for a in self.axes]
        self.centers = [c * scale[:, None] + offset for c in self.centers]

    def fit(self, half: Number = 0.8) -> None:
        """Center the bounds on the origin and scale them.

        The longest half edge becomes `half`, but the half diagonal at most 1.25 `half`.
        """
        low, high = self.extent()
        size = (high - low) / 2  # [n, 3]
        scale = np.asarray(half) / np.maximum(size.max(-1), np.linalg.norm(size, axis=-1) / 1.25)
        self.place(scale, -(low + high) / 2 * scale[:, None])

    def extend(self, other: Solids) -> None:
        """Add all solids of `other` (same n) to this batch."""
        for name in ("kinds", "parameters", "axes", "centers", "colors"):
            getattr(self, name).extend(getattr(other, name))

    def packed(self) -> np.ndarray:
        """Return the renderer's table, [n, P, 17] float32: kind, parameter, world-to-local 3x4, color."""
        axes = np.stack(self.axes, 1)  # [n, P, 3, 3]
        centers = np.stack(self.centers, 1)  # [n, P, 3]
        inverse = np.linalg.inv(axes)
        table = np.empty((*centers.shape[:2], 17), np.float32)
        table[..., 0] = self.kinds
        table[..., 1] = np.stack(self.parameters, 1)
        table[..., 2:14] = np.concatenate([inverse, -inverse @ centers[..., None]], -1).reshape(
            *centers.shape[:2], 12
        )
        table[..., 14:] = np.stack(self.colors, 1)
        return table


def _rotation(turn_deg: np.ndarray) -> np.ndarray:
    """Return Rz Ry Rx for angles [n, 3] in degrees, [n, 3, 3]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn_deg)).T, np.sin(np.radians(turn_deg)).T
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def raycast(table: np.ndarray, cameras: Cameras, threads: int = 1) -> np.ndarray:
    """Render packed scenes, one camera each.

    Args:
        table: [B, P, 17] as `Solids.packed` makes it; a kind of -1 pads.
        cameras: B square cameras.
        threads: worker threads.

    Returns:
        RGBA pictures [B, S, S, 4] uint8, color premultiplied by coverage.

    Raises:
        UserError: the native extension was not built.
    """
    kernels = native.kernels()
    if kernels is None:
        raise UserError(
            "rendering the procedural scenes needs the native extension, which was not built; install a C++ "
            "compiler and reinstall splatdistill (python -m splatdistill.doctor shows what was found)"
        )
    viewmats, Ks = cameras.viewmats.float().numpy(), cameras.Ks.float().numpy()
    rgba = np.empty((len(table), cameras.width, cameras.width, 4), np.uint8)
    solids = np.ascontiguousarray(table, np.float32)
    kernels.raycast_scenes(solids, np.ascontiguousarray(viewmats), np.ascontiguousarray(Ks), rgba, threads)
    return rgba


def composite(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Composite premultiplied [B, S, S, 4] uint8 on backgrounds [B, 3] in [0, 1]: [B, S, S, 3] uint8."""
    rest = 255.0 - rgba[..., 3:].astype(np.float32)  # [B, S, S, 1]
    return (rgba[..., :3] + rest * background[:, None, None, :] + 0.5).astype(np.uint8)
