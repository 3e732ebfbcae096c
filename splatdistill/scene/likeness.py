"""Likeness of things that were seen from all around: silhouettes and colors at the best turn, and flaws.

Views are those of a turntable, evenly around. Each thing is framed first: size and place do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 0.88  # of a framed view that the thing takes up
COVERED = 0.5  # of alpha
WHITE = 0.06  # how far from white a picture shows something
CUTS = tuple(i / 12 for i in range(1, 12))  # where a pair is divided, as a share of it
SIDE, CELLS = 32, 8  # of a silhouette, and of the colors
APART = 0.05  # least distance of a thing's front and back for a second front to be seen
USUAL: tuple[str, ...] = (
    "iou",
    "color_distance",
    "loose",
    "holes",
)  # what the models of a noun have with one another
BEHIND = 120.0  # degrees of azimuth beyond which a front is a second front


def coverage(rgb: Tensor) -> Tensor:
    """Return the coverage [V, 1, S, S], 0 or 1, of pictures [V, 3, S, S] in [0, 1] on white."""
    return ((1 - rgb).amax(1, keepdim=True) > WHITE).float()


def framed(rgb: Tensor, alpha: Tensor, side: int) -> Tensor:
    """Cut the views of one thing so that it fills them, on white.

    The cut is one square for all views, about the axis of the turntable, so that what turns stays the same
    size.

    Args:
        rgb: views [V, 3, S, S] in [0, 1] on white.
        alpha: coverage [V, 1, S, S].
        side: pixels of what is returned.

    Returns:
        Views [V, 3, side, side]; white ones where nothing is there.
    """
    size = rgb.shape[-1]
    there = (alpha > 0.1).any(0)[0]  # [S, S]
    rows, columns = there.any(1).nonzero().flatten(), there.any(0).nonzero().flatten()
    if not len(rows):
        return torch.ones(len(rgb), rgb.shape[1], side, side, dtype=rgb.dtype)
    center_x, center_y = (size - 1) / 2, float(rows[0] + rows[-1]) / 2
    half_x = max(float(columns[-1]) - center_x, center_x - float(columns[0]))
    half = (max(half_x, float(rows[-1] - rows[0]) / 2) + 1) / FILL
    scale, up = 2 * half / size, (2 * center_y - size + 1) / size
    move = rgb.new_tensor([[scale, 0, 0], [0, scale, up]]).expand(len(rgb), -1, -1)
    places = F.affine_grid(move, [len(rgb), rgb.shape[1], side, side], align_corners=False)
    if half * 2 > side:  # shrunk: average first
        factor = side / (2 * half)
        rgb = F.interpolate(rgb, scale_factor=factor, mode="bilinear", antialias=True)
    return 1 - F.grid_sample(1 - rgb, places, align_corners=False).clamp(0, 1)


def boxed(rgb: Tensor, alpha: Tensor, side: int) -> Tensor:
    """Return views [V, 3, side, side], each cut about what is there, which need not be in the middle."""
    cut = []
    for picture, cover in zip(rgb, alpha, strict=True):
        there, size = cover[0] > 0.1, picture.shape[-1]
        rows, columns = there.any(1).nonzero().flatten(), there.any(0).nonzero().flatten()
        if not len(rows):
            cut.append(torch.ones(3, side, side))
            continue
        ends = [int(x) for x in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)]
        scale = max(ends[1] - ends[0], ends[3] - ends[2]) / FILL / size
        move = [[scale, 0, (ends[2] + ends[3]) / size - 1], [0, scale, (ends[0] + ends[1]) / size - 1]]
        places = F.affine_grid(torch.tensor(move)[None], [1, 3, side, side], align_corners=False)
        cut.append(1 - F.grid_sample(1 - picture[None], places, align_corners=False)[0].clamp(0, 1))
    return torch.stack(cut)


def pieces(rgb: Tensor, alpha: Tensor, stacked: bool, side: int) -> Iterator[Tensor]:
    """Yield views of the parts of a pair, divided at CUTS: above and below, or left and right.

    Things side by side are seen apart from the front and from the back, where they have changed sides: the
    views that are within 30 degrees of either.
    """
    count = len(rgb)
    if not stacked:
        near = range(-(count // 12), count // 12 + 1)
        ends = [[(middle + k) % count for k in near] for middle in (0, count // 2)]
        rgb, alpha = (torch.cat([x[ends[0]], x[ends[1]].flip(-1)]).mT for x in (rgb, alpha))
    rows = (alpha > 0.1).any(0)[0].any(1).nonzero().flatten()
    for share_above in CUTS if len(rows) else ():
        above = torch.zeros_like(alpha)
        above[:, :, : round(float(rows[0] + share_above * (rows[-1] + 1 - rows[0])))] = 1
        for part in (above, 1 - above):
            views, cover = 1 - (1 - rgb) * part, alpha * part
            if not stacked:
                halves = (x.mT.chunk(2) for x in (views, cover))
                views, cover = (torch.cat([front, back.flip(-1)]) for front, back in halves)
            yield boxed(views, cover, side)


@dataclass(frozen=True)
class Look:
    """How a thing looks: silhouettes [V, SIDE, SIDE] bool, colors [V, 3, CELLS, CELLS] on white."""

    shapes: Tensor
    colors: Tensor

    @classmethod
    def of(cls, rgb: Tensor, alpha: Tensor) -> Look:
        """Look at views [V, 3, S, S] on white with coverage [V, 1, S, S]."""
        shapes = 1 - framed(1 - alpha, alpha, SIDE)[:, 0]
        colors = F.adaptive_avg_pool2d(framed(rgb, alpha, 4 * CELLS), CELLS)
        return cls(shapes > COVERED, colors)


@dataclass(frozen=True)
class Match:
    """How alike two looks are: mean IoU of silhouettes, mean distance of colors, at the turn in views."""

    iou: float
    color_distance: float
    turn: int


def match(a: Look, b: Look) -> Match:
    """Compare two looks at the turn of `b` at which their silhouettes, and then colors, agree best."""
    best = Match(-1.0, 1.0, 0)
    for turn in range(len(a.shapes)):
        shapes, colors = b.shapes.roll(turn, 0), b.colors.roll(turn, 0)
        both, either = (a.shapes & shapes).sum((1, 2)), (a.shapes | shapes).sum((1, 2))
        iou = float((both / either.clamp(min=1)).mean())
        found = Match(iou, float(color_distance(a.colors, colors).mean()), turn)
        if found.iou - found.color_distance > best.iou - best.color_distance:
            best = found
    return best


def color_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean difference [V] of colors [V, 3, h, w] over the cells where either is not white."""
    there = (torch.minimum(a, b) < 0.97).any(1)  # [V, h, w]
    apart = (a - b).abs().mean(1) * there
    return apart.sum((1, 2)) / there.sum((1, 2)).clamp(min=1)


def evenly_bright(colors: Tensor) -> Tensor:
    """Return colors [V, 3, h, w], those that are not white scaled to a mean of a half in each view."""
    there = (colors < 0.97).any(1, keepdim=True).expand_as(colors)
    mean = (colors * there).sum((1, 2, 3), keepdim=True) / there.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return torch.where(there, colors * 0.5 / mean.clamp(min=0.05), colors)


def second_front(seen: Look, true: Look, turn: int = 0) -> bool | None:
    """Return whether most back views look more like the true front than like the true back.

    None where the true thing's front and back look alike. `turn` is the true thing's, in views. How bright a
    view is as a whole does not count: a lamp makes a front and a back of what has none.
    """
    colors, own = evenly_bright(true.colors.roll(turn, 0)), evenly_bright(seen.colors)
    count = len(colors)
    step = 360.0 / count
    behind = [v for v in range(count) if min(v, count - v) * step > BEHIND]
    opposite = [(v + count // 2) % count for v in behind]  # the front view that stands where a back one does
    if not behind or float(color_distance(colors[behind], colors[opposite]).mean()) < APART:
        return None
    as_front = color_distance(own[behind], colors[opposite])
    as_back = color_distance(own[behind], colors[behind])
    return bool((as_front < as_back).float().mean() > 0.5)


def loose_share(shapes: Tensor) -> float:
    """Return the share of silhouettes [V, h, w] that is apart from the largest piece, on average."""
    return float(torch.stack([_loose(shape) for shape in shapes]).mean())


def _loose(shape: Tensor) -> Tensor:
    left, largest = shape.clone(), 0
    while left.any():
        seed = torch.zeros_like(left)
        seed.view(-1)[int(left.flatten().float().argmax())] = True
        piece = spread(seed, left)
        largest = max(largest, int(piece.sum()))
        left &= ~piece
    return torch.tensor(1.0 - largest / max(int(shape.sum()), 1) if shape.any() else 0.0)


def hole_share(shapes: Tensor) -> float:
    """Return the area that silhouettes [V, h, w] enclose, as a share of theirs, on average."""
    outside = torch.ones_like(shapes)
    outside[:, 1:-1, 1:-1] = False
    open_air = spread(outside & ~shapes, ~shapes)
    holes = (~shapes & ~open_air).sum((1, 2)) / shapes.sum((1, 2)).clamp(min=1)
    return float(holes.mean())


def spread(seed: Tensor, free: Tensor) -> Tensor:
    """Return what can be reached from `seed` through `free`, both [..., h, w] bool, step by step."""
    reached = seed & free
    while True:
        flat = reached.float().unflatten(0, (-1, 1)) if reached.ndim == 3 else reached.float()[None, None]
        grown = torch.maximum(F.max_pool2d(flat, (3, 1), 1, (1, 0)), F.max_pool2d(flat, (1, 3), 1, (0, 1)))
        new = (grown.view_as(reached) > 0) & free
        if torch.equal(new, reached):
            return reached
        reached = new
