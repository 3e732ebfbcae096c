"""Which Gaussians of a scene a box or a stroke on its picture covers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.rendering import render
from splatdistill.viewer.drawing import Pose

ROWS = 240  # of the picture that says what is in front
SLACK = 0.01  # how far behind it a center may be, as a share of its depth, beside its own size
PART = 1 << 22  # distances of centers to a stroke that are in memory at a time


class Shape(Protocol):
    """A part of a picture."""

    def covers(self, points: Tensor, aspect: float) -> Tensor:
        """Return which points [N, 2] of the picture, shares of its width and height, it covers: [N] bool."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle between two corners, in shares of the picture's width and height from its top left."""

    corner: tuple[float, float]
    opposite: tuple[float, float]

    def covers(self, points: Tensor, aspect: float) -> Tensor:
        """Return which points are between the corners."""
        corners = points.new_tensor([self.corner, self.opposite])
        return ((points >= corners.amin(0)) & (points <= corners.amax(0))).all(1)


@dataclass(frozen=True)
class Stroke:
    """A line through points, as in Box, and how far it reaches on both sides in shares of the height."""

    points: tuple[tuple[float, float], ...]
    radius: float

    def covers(self, points: Tensor, aspect: float) -> Tensor:
        """Return which points are within the radius of the line; aspect: width over height."""
        wide = points.new_tensor([aspect, 1.0])
        line = points.new_tensor(self.points) * wide
        start, end = line, torch.cat([line[1:], line[-1:]])
        along = end - start  # [S, 2]; the last one has no length
        length = along.square().sum(1).clamp(min=1e-12)
        found = torch.zeros(len(points), dtype=torch.bool)
        for rows in torch.arange(len(points)).split(max(PART // len(line), 1)):
            apart = points[rows, None] * wide - start  # [n, S, 2]
            share = ((apart * along).sum(2) / length).clamp(0.0, 1.0)
            nearest = (apart - share[:, :, None] * along).square().sum(2).amin(1)
            found[rows] = nearest <= self.radius**2
        return found


@torch.no_grad()
def covered(gaussians: ParameterDict, pose: Pose, shape: Shape, seen_only: bool) -> Tensor:
    """Return which Gaussians have their centers in a part of the picture from a camera: [N] bool.

    seen_only: only those that nothing solid hides.
    """
    cameras = pose.cameras(ROWS)
    view, intrinsics = cameras.viewmats[0].float(), cameras.Ks[0].float()
    there = gaussians["means"].float().cpu() @ view[:3, :3].T + view[:3, 3]
    depth = there[:, 2]
    pixels = (there[:, :2] / depth.clamp(min=1e-6)[:, None]) @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float32)
    found = (depth > 1e-6) & shape.covers(pixels / size, cameras.width / cameras.height)
    if seen_only and bool(found.any()):
        drawn = render(gaussians, cameras)
        x, y = (pixels[:, k].clamp(0, size[k] - 1).nan_to_num(0.0).long() for k in (0, 1))
        front, solid = drawn.depth[0, y, x, 0].cpu(), drawn.alpha[0, y, x, 0].cpu() > 0.5
        own = 2.0 * gaussians["scales"].detach().cpu().amax(1).exp()
        found &= ~solid | (depth <= front * (1.0 + SLACK) + own)
    return found
