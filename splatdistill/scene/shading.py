"""Lighting of rendered Gaussians, from normals of the depth image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.ops import send
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.rendering import Render

ALBEDO = 0.8
AMBIENT = 0.42
LAMP = 0.42
HEADLIGHT = 0.28
TOWARD_LAMP = (0.40, 0.35, 0.85)  # in the world: above, to the front left; raycast.cpp has the same numbers


def normals(depth: Tensor, cameras: Cameras) -> Tensor:
    """Return unit normals [V, H, W, 3] in the world, toward the camera, from a depth image [V, H, W, 1]."""
    height, width = depth.shape[1:3]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device) + 0.5,
        torch.arange(width, device=depth.device) + 0.5,
        indexing="ij",
    )
    K = cameras.Ks.to(depth)[:, :, :, None, None]  # [V, 3, 3, 1, 1]
    across, along = (x - K[:, 0, 2]) / K[:, 0, 0], (y - K[:, 1, 2]) / K[:, 1, 1]
    points = torch.stack([across, along, torch.ones_like(across)], -1) * depth  # in the camera
    right, down = slope(points, 2), slope(points, 1)
    facing = F.normalize(torch.cross(down, right, dim=-1), dim=-1)
    return torch.einsum("vij,vhwj->vhwi", cameras.camtoworlds.to(depth)[:, :3, :3], facing)


def slope(points: Tensor, axis: int) -> Tensor:
    """Return one-sided differences of points [V, H, W, 3] along an axis, toward the nearer depth."""
    steps = points.diff(dim=axis)
    first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, steps.shape[axis] - 1, 1)
    before, after = torch.cat([first, steps], axis), torch.cat([steps, last], axis)
    return torch.where(before[..., 2:].abs() < after[..., 2:].abs(), before, after)


def light(render: Render, cameras: Cameras) -> Tensor:
    """Return the brightness from lamp, headlight and ambient light: [V, H, W, 1] in [0, 1.05]."""
    n = normals(render.depth, cameras)
    toward_lamp = F.normalize(send(torch.tensor(TOWARD_LAMP), n), dim=0)
    toward_eye = F.normalize(cameras.positions.to(n), dim=-1)[:, None, None]
    sum_of = AMBIENT + LAMP * (n @ toward_lamp).clamp(min=0.0) + HEADLIGHT * (n * toward_eye).sum(-1).abs()
    return sum_of.clamp(max=1.05)[..., None]


def textureless(render: Render, cameras: Cameras, background: Tensor | float = 1.0) -> Tensor:
    """Shade the object in one light gray: [V, H, W, 3], as DreamFusion shows geometry.

    background: a gray value, or colors [V, 3]. Source: 2209.14988, section 3.2; the lights are those of the
    shipped teacher's training scenes.
    """
    shaded = (ALBEDO * light(render, cameras)).expand(-1, -1, -1, 3)
    return render.alpha * shaded + (1.0 - render.alpha) * spread(background)


def lambertian(render: Render, cameras: Cameras, background: Tensor) -> Tensor:
    """Shade the object in its own colors: [V, H, W, 3], in front of backgrounds [V, 3]."""
    behind = (1.0 - render.alpha) * spread(background)
    return (render.rgb - behind) * light(render, cameras) + behind


def spread(background: Tensor | float) -> Tensor | float:
    """Reshape a color for each view [V, 3] to [V, 1, 1, 3]; a number is returned unchanged."""
    return background[:, None, None] if isinstance(background, Tensor) else background


@dataclass(frozen=True)
class Shading:
    """DreamFusion's lighting of training views (2209.14988, section 3.2).

    After the share `start` of the run, a view is shaded in its colors with probability `lambertian` and
    without them with probability `textureless`. Raises ValueError for probabilities below 0 or with a sum
    above 1.
    """

    start: float = 0.2
    lambertian: float = 0.0
    textureless: float = 0.0

    def __post_init__(self) -> None:
        if min(self.lambertian, self.textureless) < 0.0 or self.lambertian + self.textureless > 1.0:
            raise ValueError("shading: expected lambertian and textureless from 0, together at most 1")


def shade(
    render: Render,
    cameras: Cameras,
    background: Tensor,
    shading: Shading,
    progress: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the images [V, H, W, 3] of a step, each shaded or not, at random.

    No random number is drawn when no view can be shaded.

    Args:
        render: the views as rendered.
        cameras: their cameras.
        background: the colors [V, 3] that they were rendered on.
        shading: probabilities.
        progress: share of the run that is done.
        generator: source of the random numbers.
    """
    if progress < shading.start or shading.lambertian + shading.textureless == 0.0:
        return render.rgb
    kind = send(torch.rand(len(cameras), generator=generator), render.rgb)[:, None, None, None]
    background, cameras = send(background, render.rgb), cameras.to(render.rgb.device)
    lit, plain = lambertian(render, cameras, background), textureless(render, cameras, background)
    pictures = torch.where(kind < shading.lambertian + shading.textureless, plain, render.rgb)
    return torch.where(kind < shading.lambertian, lit, pictures)
