"""The objects the shipped teacher knows: each is built from a few solids around the z axis, facing +X.

A builder adds n variants of its object to `s`; `c` [n, 3] is the color that the caption names. Sizes are
arbitrary: scenes are scaled afterwards. Parts such as eyes, wheels and trunks have fixed colors.
"""

from __future__ import annotations

import numpy as np

from splatdistill.teaching.solids import Solids

BLACK, WHITE, DARK = np.array([0.06, 0.06, 0.07]), np.array([0.95, 0.95, 0.95]), np.array([0.16, 0.17, 0.20])
CREAM, TAN, BROWN = np.array([0.93, 0.87, 0.72]), np.array([0.84, 0.62, 0.34]), np.array([0.42, 0.25, 0.12])
ORANGE, YELLOW, RED = np.array([0.96, 0.50, 0.08]), np.array([0.98, 0.86, 0.20]), np.array([0.82, 0.10, 0.10])
GLASS, STEEL = np.array([0.45, 0.70, 0.88]), np.array([0.62, 0.63, 0.66])


def _pair(add, x, y, z, *rest, **options):
    """Add the same solid on both sides of the body, at +y and -y."""
    add((x, y, z), *rest, **options)
    add((x, -y, z), *rest, **options)


def snowman(s: Solids, c: np.ndarray) -> None:
    """Build three balls, a carrot nose, eyes, buttons and stick arms."""
    low, mid, top = s.uniform(0.46, 0.54), s.uniform(0.34, 0.40), s.uniform(0.24, 0.29)
    z1 = low + 0.75 * (low + mid)
    z2 = z1 + 0.75 * (mid + top)
    s.ball((0, 0, low), low, c)
    s.ball((0, 0, z1), mid, c)
    s.ball((0, 0, z2), top, c)
    s.frustum((top + 0.10, 0, z2), (0.07, 0.07, 0.16), ORANGE, top=0.0, turn=(0, 90, 0))
    _pair(s.ball, 0.86 * top, 0.38 * top, z2 + 0.40 * top, 0.055, BLACK)
    for k in (-0.4, 0.1, 0.55):
        s.ball((mid * np.sqrt(1 - k * k), 0, z1 + k * mid), 0.05, BLACK)
    s.frustum((0, mid + 0.18, z1 + 0.15), (0.035, 0.035, 0.27), BROWN, turn=(-60, 0, 0))
    s.frustum((0, -mid - 0.18, z1 + 0.15), (0.035, 0.035, 0.27), BROWN, turn=(60, 0, 0))


def mushroom(s: Solids, c: np.ndarray) -> None:
    """Build a spotted cap on a cream stem."""
    stem, cap, tall = s.uniform(0.17, 0.25), s.uniform(0.55, 0.68), s.uniform(0.42, 0.58)
    s.frustum((0, 0, tall / 2), (stem * 1.25, stem * 1.25, tall / 2 + 0.02), CREAM, top=0.8)
    s.ellipsoid((0, 0, tall), (cap, cap, cap * 0.8), c, clip=0.0)
    for azimuth, up, size in (
        (20, 35, 0.11),
        (95, 30, 0.12),
        (165, 40, 0.10),
        (235, 28, 0.12),
        (305, 38, 0.11),
        (0, 80, 0.12),
    ):
        a, u = np.radians(azimuth), np.radians(up)
        x, y, z = cap * np.cos(u) * np.cos(a), cap * np.cos(u) * np.sin(a), tall + 0.8 * cap * np.sin(u)
        s.ellipsoid((x, y, z), (size, size, size * 0.8), WHITE)


def pine_tree(s: Solids, c: np.ndarray) -> None:
    """Build three tiers of green on a trunk."""
    wide = s.uniform(0.52, 0.64)
    s.frustum((0, 0, 0.15), (0.11, 0.11, 0.17), BROWN)
    for level, share in enumerate((1.0, 0.78, 0.55)):
        s.frustum(
            (0, 0, 0.58 + 0.40 * level),
            (wide * share, wide * share, 0.32),
            c * (0.9 + 0.07 * level),
            top=0.12,
        )


def rocket(s: Solids, c: np.ndarray) -> None:
    """Build a hull with a pointed nose, four fins and a window in front."""
    r, tall = s.uniform(0.22, 0.28), s.uniform(0.5, 0.62)
    s.frustum((0, 0, tall + 0.2), (r, r, tall), c)
    s.frustum((0, 0, 2 * tall + 0.42), (r, r, 0.24), c * 0.5, top=0.05)
    s.frustum((0, 0, 0.12), (r * 0.8, r * 0.8, 0.1), DARK, top=0.8)
    for azimuth in (45, 135, 225, 315):
        a = np.radians(azimuth)
        x, y = (r + 0.08) * np.cos(a), (r + 0.08) * np.sin(a)
        s.prism((x, y, 0.36), (0.22, 0.035, 0.26), c * 0.5, turn=(0, 0, azimuth))
    s.ellipsoid((r, 0, 1.5 * tall + 0.15), (0.05, 0.11, 0.11), GLASS)


def table(s: Solids, c: np.ndarray) -> None:
    """Build a top on four legs."""
    x, y, tall = s.uniform(0.45, 0.6), s.uniform(0.6, 0.8), s.uniform(0.6, 0.8)
    s.box((0, 0, tall), (x, y, 0.06), c)
    for side in (-1, 1):
        _pair(s.box, side * (x - 0.1), y - 0.1, tall / 2, (0.065, 0.065, tall / 2), c * 0.75)


def chair(s: Solids, c: np.ndarray) -> None:
    """Build a seat on four legs, its back at -X."""
    w, seat, back = s.uniform(0.34, 0.42), s.uniform(0.48, 0.58), s.uniform(0.36, 0.46)
    s.box((0, 0, seat), (w, w, 0.06), c)
    s.box((-w + 0.05, 0, seat + back), (0.055, w, back), c)
    for side in (-1, 1):
        _pair(s.box, side * (w - 0.07), w - 0.07, seat / 2, (0.06, 0.06, seat / 2), c * 0.7)


def house(s: Solids, c: np.ndarray) -> None:
    """Build walls, a gable roof, a chimney; the door is in front."""
    x, y, tall, roof = (
        s.uniform(0.42, 0.52),
        s.uniform(0.52, 0.62),
        s.uniform(0.32, 0.40),
        s.uniform(0.24, 0.34),
    )
    s.box((0, 0, tall), (x, y, tall), c)
    s.prism((0, 0, 2 * tall + roof), (y + 0.1, x + 0.1, roof), c * 0.5, turn=(0, 0, 90))
    s.box((-0.2, -0.25, 2 * tall + 1.5 * roof), (0.08, 0.08, 0.28), c * 0.4)
    s.box((x, 0, 0.24), (0.03, 0.12, 0.24), BROWN)
    _pair(s.box, x, 0.34, 0.40, (0.03, 0.11, 0.11), GLASS)
    s.box((0, y, 0.42), (0.14, 0.03, 0.12), GLASS)
    s.box((0, -y, 0.42), (0.14, 0.03, 0.12), GLASS)


def car(s: Solids, c: np.ndarray) -> None:
    """Build a body with a cabin toward the back and wheels; yellow lights in front, red ones behind."""
    long, wide, low = s.uniform(0.80, 0.95), s.uniform(0.38, 0.44), s.uniform(0.17, 0.21)
    s.box((0, 0, 0.2 + low), (long, wide, low), c)
    z = 0.2 + 2 * low + 0.17
    s.box((-0.25, 0, z), (0.42, wide * 0.88, 0.17), c)
    s.box((-0.25, 0, z), (0.35, wide * 0.91, 0.12), DARK)
    s.box((-0.25, 0, z), (0.44, wide * 0.78, 0.12), DARK)
    for x in (-0.52, 0.52):
        for side in (-1, 1):
            s.frustum((x, side * wide, 0.2), (0.2, 0.2, 0.07), BLACK, turn=(90, 0, 0))
            s.frustum((x, side * (wide + 0.05), 0.2), (0.09, 0.09, 0.04), STEEL, turn=(90, 0, 0))
    _pair(s.ellipsoid, long, wide * 0.6, 0.24 + low, (0.06, 0.12, 0.11), YELLOW)
    _pair(s.box, -long, wide * 0.7, 0.24 + low, (0.03, 0.1, 0.1), RED)


def robot(s: Solids, c: np.ndarray) -> None:
    """Build boxes with an antenna; eyes, mouth and panel in front."""
    body, head = s.uniform(0.30, 0.38), s.uniform(0.22, 0.28)
    s.box((0, 0, 0.9), (0.22, body, 0.34), c)
    z = 1.28 + head * 0.8
    s.box((0, 0, z), (0.2, head, head * 0.8), c)
    _pair(s.ellipsoid, 0.2, head * 0.45, z + 0.03, (0.05, 0.07, 0.07), YELLOW)
    s.box((0.2, 0, z - head * 0.45), (0.02, head * 0.5, 0.03), DARK)
    s.box((0.22, 0, 0.95), (0.02, body * 0.6, 0.13), DARK)
    s.frustum((0, 0, z + head * 0.8 + 0.1), (0.025, 0.025, 0.12), DARK)
    s.ball((0, 0, z + head * 0.8 + 0.24), 0.06, RED)
    _pair(s.box, 0, body + 0.11, 0.92, (0.09, 0.08, 0.30), c * 0.65)
    _pair(s.box, 0, body * 0.5, 0.28, (0.12, 0.11, 0.28), c * 0.65)


def duck(s: Solids, c: np.ndarray) -> None:
    """Build a floating duck with a beak, wings and a tail."""
    long, wide, head = s.uniform(0.55, 0.65), s.uniform(0.38, 0.44), s.uniform(0.26, 0.31)
    s.ellipsoid((0, 0, 0.4), (long, wide, 0.38), c)
    s.ball((0.38, 0, 0.92), head, c)
    s.ellipsoid((0.38 + head + 0.08, 0, 0.88), (0.17, 0.13, 0.05), ORANGE)
    _pair(s.ball, 0.38 + head * 0.75, head * 0.5, 1.02, 0.055, BLACK)
    _pair(s.ellipsoid, -0.05, wide - 0.03, 0.45, (0.32, 0.08, 0.19), c * 0.82)
    s.frustum((-long - 0.02, 0, 0.58), (0.16, 0.2, 0.16), c, top=0.1, turn=(0, -50, 0))


def dog(s: Solids, c: np.ndarray) -> None:
    """Build four legs, a snout, hanging ears and a tail."""
    long, head = s.uniform(0.46, 0.56), s.uniform(0.23, 0.28)
    s.ellipsoid((0, 0, 0.62), (long, 0.24, 0.25), c)
    x, z = long + 0.08, 1.0
    s.ball((x, 0, z), head, c)
    s.ellipsoid((x + head, 0, z - 0.07), (0.17, 0.11, 0.10), c * 0.8 + 0.15)
    s.ball((x + head + 0.16, 0, z - 0.03), 0.06, BLACK)
    _pair(s.ball, x + head * 0.8, head * 0.5, z + 0.09, 0.045, BLACK)
    _pair(s.ellipsoid, x - 0.05, head + 0.01, z + 0.02, (0.10, 0.05, 0.20), c * 0.5)
    for px in (-long * 0.62, long * 0.62):
        _pair(s.frustum, px, 0.14, 0.24, (0.085, 0.085, 0.26), c * 0.9)
    s.frustum((-long - 0.1, 0, 0.83), (0.06, 0.06, 0.22), c * 0.7, top=0.5, turn=(0, -40, 0))


def teddy_bear(s: Solids, c: np.ndarray) -> None:
    """Build a sitting bear with round ears, a light snout, belly and soles."""
    body, head = s.uniform(0.36, 0.42), s.uniform(0.30, 0.35)
    light = c * 0.45 + 0.5
    s.ellipsoid((0, 0, 0.45), (body * 0.85, body, 0.44), c)
    z = 0.85 + head
    s.ball((0.02, 0, z), head, c)
    _pair(s.ellipsoid, 0, head * 0.78, z + head * 0.75, (0.07, 0.13, 0.13), c * 0.8)
    s.ellipsoid((head * 0.9, 0, z - 0.09), (0.12, 0.15, 0.12), light)
    s.ball((head * 0.9 + 0.12, 0, z - 0.04), 0.055, BLACK)
    _pair(s.ball, head * 0.88, head * 0.42, z + 0.10, 0.05, BLACK)
    s.ellipsoid((body * 0.62, 0, 0.45), (0.13, body * 0.6, 0.27), light)
    _pair(s.ellipsoid, 0.12, body + 0.06, 0.58, (0.13, 0.12, 0.26), c * 0.9)
    _pair(s.ellipsoid, 0.35, body * 0.72, 0.16, (0.30, 0.15, 0.15), c * 0.9)
    _pair(s.ellipsoid, 0.64, body * 0.72, 0.18, (0.04, 0.10, 0.10), light)


def mug(s: Solids, c: np.ndarray) -> None:
    """Build a full cup with its handle at +Y."""
    r, tall = s.uniform(0.36, 0.44), s.uniform(0.42, 0.5)
    s.frustum((0, 0, tall), (r, r, tall), c)
    s.frustum((0, 0, 2 * tall), (r * 0.85, r * 0.85, 0.012), BROWN * 0.6)
    s.torus((0, r, tall), 0.25, 0.26, c * 0.9, turn=(0, 90, 0))


def lamp(s: Solids, c: np.ndarray) -> None:
    """Build a table lamp: foot, pole and shade."""
    r, tall = s.uniform(0.42, 0.52), s.uniform(0.34, 0.46)
    s.frustum((0, 0, 0.05), (0.32, 0.32, 0.05), DARK)
    s.frustum((0, 0, tall + 0.1), (0.055, 0.055, tall), STEEL)
    s.frustum((0, 0, 2 * tall + 0.28), (r, r, 0.28), c, top=0.55)


def cake(s: Solids, c: np.ndarray) -> None:
    """Build two tiers with icing and three candles on a plate."""
    r, tall = s.uniform(0.55, 0.65), s.uniform(0.2, 0.25)
    s.frustum((0, 0, -0.02), (r + 0.18, r + 0.18, 0.03), WHITE * 0.85)
    s.frustum((0, 0, tall), (r, r, tall), c)
    s.frustum((0, 0, 2 * tall), (r + 0.02, r + 0.02, 0.05), CREAM)
    s.frustum((0, 0, 3 * tall), (r * 0.62, r * 0.62, tall * 0.9), c)
    s.frustum((0, 0, 3.9 * tall), (r * 0.64, r * 0.64, 0.04), CREAM)
    for azimuth in (0, 120, 240):
        x, y = 0.22 * np.cos(np.radians(azimuth)), 0.22 * np.sin(np.radians(azimuth))
        s.frustum((x, y, 3.9 * tall + 0.14), (0.035, 0.035, 0.13), WHITE)
        s.ellipsoid((x, y, 3.9 * tall + 0.33), (0.045, 0.045, 0.08), ORANGE)


def castle(s: Solids, c: np.ndarray) -> None:
    """Build walls and four towers; the gate is in front, the keep stands at the back."""
    w, tower = s.uniform(0.46, 0.54), s.uniform(0.5, 0.6)
    s.box((0, 0, 0.32), (w, w, 0.32), c)
    s.box((0.32 - w, 0, 0.75), (0.26, 0.3, 0.35), c * 0.9)
    s.frustum((0.32 - w, 0, 1.28), (0.34, 0.38, 0.18), c * 0.5, top=0.05)
    for x in (-1, 1):
        _pair(s.frustum, x * w, w, tower, (0.17, 0.17, tower), c)
        _pair(s.frustum, x * w, w, 2 * tower + 0.17, (0.23, 0.23, 0.18), c * 0.5, top=0.03)
    s.box((w, 0, 0.25), (0.04, 0.18, 0.25), DARK)


def cactus(s: Solids, c: np.ndarray) -> None:
    """Build a trunk with two arms in a pot."""
    r, left, right = s.uniform(0.16, 0.2), s.uniform(0.55, 0.75), s.uniform(0.75, 0.95)
    s.frustum((0, 0, 0.14), (0.24, 0.24, 0.15), ORANGE * 0.75, top=1.3)
    s.frustum((0, 0, 0.75), (r, r, 0.5), c)
    s.ball((0, 0, 1.25), r, c)
    for side, z in ((1, left), (-1, right)):
        s.frustum((0, side * 0.26, z), (0.10, 0.10, 0.18), c, turn=(90, 0, 0))
        s.ball((0, side * 0.44, z), 0.10, c)
        s.frustum((0, side * 0.44, z + 0.16), (0.10, 0.10, 0.16), c)
        s.ball((0, side * 0.44, z + 0.32), 0.10, c)


def donut(s: Solids, c: np.ndarray) -> None:
    """Build a ring with icing and sprinkles, tilted toward the front."""
    tube = s.uniform(0.42, 0.5)
    turn, up = (0.0, 50.0, 0.0), np.array([np.sin(np.radians(50)), 0, np.cos(np.radians(50))])
    s.torus((0, 0, 0), 0.6, tube, TAN, turn=turn)
    s.torus((0.07 * up[0], 0, 0.07 * up[2]), 0.6, tube * 0.97, c, turn=turn)
    for azimuth in range(0, 360, 45):
        a = np.radians(azimuth)
        local = np.array([0.6 * np.cos(a), 0.6 * np.sin(a)])
        lift = 0.6 * tube + 0.05
        x = local[0] * np.cos(np.radians(50)) + lift * up[0]
        z = -local[0] * np.sin(np.radians(50)) + lift * up[2]
        s.ball((x, local[1], z), 0.05, WHITE if azimuth % 90 else YELLOW)


def ice_cream_cone(s: Solids, c: np.ndarray) -> None:
    """Build a scoop with a cherry on a cone."""
    r, tall = s.uniform(0.34, 0.4), s.uniform(0.46, 0.56)
    s.frustum((0, 0, tall), (r, r, tall), TAN, top=0.04, turn=(180, 0, 0))
    s.torus((0, 0, 2 * tall), r * 0.92, 0.22, c * 0.92)
    s.ball((0, 0, 2 * tall + 0.16), r, c)
    s.ball((0, 0, 2 * tall + 0.16 + r), 0.09, RED)


def boat(s: Solids, c: np.ndarray) -> None:
    """Build a hull with a deck, a mast and a sail."""
    long, sail = s.uniform(0.72, 0.82), s.uniform(0.42, 0.5)
    s.ellipsoid((0, 0, 0.36), (long, 0.3, 0.34), c, turn=(180, 0, 0), clip=0.0)
    s.box((0, 0, 0.38), (long * 0.72, 0.2, 0.03), TAN)
    s.frustum((0, 0, 0.85), (0.035, 0.035, 0.5), BROWN)
    s.prism((-0.02, 0, 0.5 + sail), (0.5, 0.03, sail), WHITE)
    s.prism((0.02, 0, 0.46 + 2 * sail), (0.12, 0.02, 0.06), RED)


def penguin(s: Solids, c: np.ndarray) -> None:
    """Build a standing penguin; belly, eyes, beak and feet in front."""
    body, head = s.uniform(0.36, 0.42), s.uniform(0.25, 0.29)
    s.ellipsoid((0, 0, 0.56), (body, body, 0.52), c)
    s.ellipsoid((body * 0.32, 0, 0.52), (body * 0.78, body * 0.76, 0.42), WHITE)
    z = 1.05 + head * 0.6
    s.ball((0, 0, z), head, c)
    _pair(s.ellipsoid, head * 0.72, head * 0.36, z + 0.03, (0.10, 0.10, 0.11), WHITE)
    _pair(s.ball, head * 0.72 + 0.085, head * 0.36, z + 0.05, 0.045, BLACK)
    s.frustum((head + 0.07, 0, z - 0.06), (0.08, 0.08, 0.13), ORANGE, top=0.0, turn=(0, 90, 0))
    _pair(s.ellipsoid, 0, body + 0.02, 0.6, (0.15, 0.06, 0.33), c * 0.85)
    _pair(s.ellipsoid, 0.18, 0.18, 0.05, (0.2, 0.12, 0.06), ORANGE)


def umbrella(s: Solids, c: np.ndarray) -> None:
    """Build an open umbrella with a hooked handle."""
    r, tall = s.uniform(0.62, 0.74), s.uniform(0.5, 0.6)
    s.ellipsoid((0, 0, 2 * tall), (r, r, r * 0.62), c, clip=0.0)
    s.frustum((0, 0, 2 * tall + r * 0.66), (0.03, 0.03, 0.07), DARK)
    s.frustum((0, 0, tall + 0.05), (0.04, 0.04, tall), STEEL)
    s.torus((0, 0.1, 0.06), 0.1, 0.38, BROWN, turn=(0, 90, 0))


def lighthouse(s: Solids, c: np.ndarray) -> None:
    """Build a striped tower with a lantern; the door is in front."""
    r = s.uniform(0.28, 0.34)
    s.frustum((0, 0, 0.06), (r + 0.14, r + 0.14, 0.08), STEEL * 0.8)
    for level in range(4):
        at, color = r * (1 - 0.1 * level), WHITE if level % 2 else c
        s.frustum((0, 0, 0.3 + 0.32 * level), (at, at, 0.16), color, top=0.9)
    s.frustum((0, 0, 1.45), (r * 0.8, r * 0.8, 0.03), DARK)
    s.frustum((0, 0, 1.58), (r * 0.45, r * 0.45, 0.12), YELLOW)
    s.frustum((0, 0, 1.82), (r * 0.66, r * 0.66, 0.13), c, top=0.05)
    s.box((r * 0.95, 0, 0.26), (0.05, 0.08, 0.12), BROWN)


def airplane(s: Solids, c: np.ndarray) -> None:
    """Build a fuselage with wings, engines, a tail, and in front a cockpit and a steel nose."""
    long, span = s.uniform(0.82, 0.95), s.uniform(0.82, 0.98)
    s.ellipsoid((0, 0, 0), (long, 0.19, 0.19), c)
    s.box((0.08, 0, -0.03), (0.2, span, 0.035), c * 0.8)
    s.box((-long * 0.86, 0, 0.06), (0.12, 0.34, 0.03), c * 0.8)
    s.prism((-long * 0.86, 0, 0.24), (0.15, 0.035, 0.2), c * 0.6)
    s.ellipsoid((long * 0.55, 0, 0.10), (0.18, 0.13, 0.12), GLASS * 0.6)
    s.ellipsoid((long * 0.88, 0, 0), (0.17, 0.15, 0.15), STEEL)
    _pair(s.ellipsoid, 0.14, span * 0.45, -0.12, (0.18, 0.08, 0.08), DARK)


def sphere(s: Solids, c: np.ndarray) -> None:
    """Build a ball."""
    s.ball((0, 0, 0), 1.0, c)


def cube(s: Solids, c: np.ndarray) -> None:
    """Build a box with equal edges."""
    s.box((0, 0, 0), (1.0, 1.0, 1.0), c)


def cylinder(s: Solids, c: np.ndarray) -> None:
    """Build an upright cylinder."""
    r = s.uniform(0.6, 0.8)
    s.frustum((0, 0, 0), (r, r, 1.0), c)


def cone(s: Solids, c: np.ndarray) -> None:
    """Build an upright cone."""
    r = s.uniform(0.7, 0.9)
    s.frustum((0, 0, 0), (r, r, 1.0), c, top=0.0)


def ring(s: Solids, c: np.ndarray) -> None:
    """Build a torus, tilted toward the front."""
    s.torus((0, 0, 0), 1.0, s.uniform(0.25, 0.32), c, turn=(0.0, 65.0, 0.0))


OBJECTS = {
    "snowman": snowman, "mushroom": mushroom, "pine tree": pine_tree, "rocket": rocket, "table": table,
    "chair": chair, "house": house, "car": car, "robot": robot, "duck": duck, "dog": dog,
    "teddy bear": teddy_bear,
    "mug": mug, "lamp": lamp, "cake": cake, "castle": castle, "cactus": cactus, "donut": donut,
    "ice cream cone": ice_cream_cone, "boat": boat, "penguin": penguin, "umbrella": umbrella,
    "lighthouse": lighthouse, "airplane": airplane,
}  # fmt: skip
PRIMITIVES = {"sphere": sphere, "cube": cube, "cylinder": cylinder, "cone": cone, "ring": ring}
BUILDERS = OBJECTS | PRIMITIVES
