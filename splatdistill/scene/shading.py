"""Lighting of rendered Gaussians: what a thing's shape alone shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.scene.cameras import Cameras
from splatdistill.scene.rendering import Render

ALBEDO = 0.8
AMBIENT, LAMP, HEADLIGHT = 0.42, 0.42, 0.28
TOWARD_LAMP = (0.40, 0.35, 0.85)  # in the world: above, to the front left


def normals(depth: Tensor, cameras: Cameras) -> Tensor:
    """Unit normals [V, H, W, 3] in the world, toward the camera, from differences of depth [V, H, W, 1]."""
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
    """Differences of neighboring points [V, H, W, 3] along an axis: of the two, the one less deep."""
    steps = points.diff(dim=axis)
    first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, steps.shape[axis] - 1, 1)
    before, after = torch.cat([first, steps], axis), torch.cat([steps, last], axis)
    return torch.where(before[..., 2:].abs() < after[..., 2:].abs(), before, after)


def light(render: Render, cameras: Cameras) -> Tensor:
    """How bright a lamp, a headlight and the surroundings make each pixel, [V, H, W, 1] in [0, 1.05]."""
    n = normals(render.depth, cameras)
    toward_lamp = F.normalize(n.new_tensor(TOWARD_LAMP), dim=0)
    toward_eye = F.normalize(cameras.positions.to(n), dim=-1)[:, None, None]
    sum_of = AMBIENT + LAMP * (n @ toward_lamp).clamp(min=0.0) + HEADLIGHT * (n * toward_eye).sum(-1).abs()
    return sum_of.clamp(max=1.05)[..., None]


def textureless(render: Render, cameras: Cameras, background: Tensor | float = 1.0) -> Tensor:
    """The thing in one light gray under the lights, [V, H, W, 3], as DreamFusion judges geometry.

    background: a gray, or colors [V, 3]. Source: 2209.14988, section 3.2; the lights are those of the
    embedded teacher's scenes.
    """
    shaded = (ALBEDO * light(render, cameras)).expand(-1, -1, -1, 3)
    return render.alpha * shaded + (1.0 - render.alpha) * spread(background)


def lambertian(render: Render, cameras: Cameras, background: Tensor) -> Tensor:
    """The thing's own colors under the lights, [V, H, W, 3], before backgrounds [V, 3]."""
    behind = (1.0 - render.alpha) * spread(background)
    return (render.rgb - behind) * light(render, cameras) + behind


def spread(background: Tensor | float) -> Tensor | float:
    """A color for each view [V, 3] as [V, 1, 1, 3]; a number stays one."""
    return background[:, None, None] if isinstance(background, Tensor) else background


@dataclass(frozen=True)
class Shading:
    """DreamFusion's lighting of training views (2209.14988, section 3.2): from the share `start` of the run
    on, a view is lit with probability `lambertian`, and without its colors with `textureless`.

    Raises ValueError for probabilities that do not fit into one.
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
    """The pictures [V, H, W, 3] of a step, each lit or not; draws nothing where no view can be lit.

    progress: the share of the run that is done. background [V, 3].
    """
    if progress < shading.start or shading.lambertian + shading.textureless == 0.0:
        return render.rgb
    kind = torch.rand(len(cameras), generator=generator)[:, None, None, None].to(render.rgb)
    background = background.to(render.rgb)
    lit, plain = lambertian(render, cameras, background), textureless(render, cameras, background)
    pictures = torch.where(kind < shading.lambertian + shading.textureless, plain, render.rgb)
    return torch.where(kind < shading.lambertian, lit, pictures)
