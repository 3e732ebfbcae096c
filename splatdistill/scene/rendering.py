"""One call to render Gaussians: gsplat on CUDA, the native rasterizer on the CPU, with equal results."""

from dataclasses import dataclass
from typing import Any

import gsplat
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.ops.raster import rasterize
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.gaussians import activated, sh_degree_of


@dataclass(frozen=True, eq=False)
class Render:
    """Images from `render`, and the projection data that densification needs.

    info has gsplat's keys: means2d [V, N, 2] in pixels and in the graph, radii [V, N, 2], width, height,
    n_cameras, gaussian_ids (None: not packed).
    """

    rgb: Tensor  # [V, H, W, 3]
    alpha: Tensor  # [V, H, W, 1]
    depth: Tensor  # [V, H, W, 1] expected depth, 0 where nothing was hit
    info: dict[str, Any]


def render(
    gaussians: ParameterDict,
    cameras: Cameras,
    background: Tensor | None = None,
    sh_degree: int | None = None,
) -> Render:
    """Render a scene from V cameras, differentiably, on the device of the Gaussians.

    Args:
        gaussians: the scene.
        cameras: the views.
        background: [3] or [V, 3] in [0, 1]; None is black.
        sh_degree: the degree to evaluate, at most (and by default) the stored one.
    """
    device = gaussians["means"].device
    cameras = cameras.to(device)
    if background is not None:
        background = background.to(device, torch.float32).expand(len(cameras), 3).contiguous()
    degree = sh_degree_of(gaussians) if sh_degree is None else sh_degree
    draw = _rasterize_gsplat if device.type == "cuda" else rasterize
    rgb, alpha, depth, means2d, radii = draw(
        *activated(gaussians), cameras.viewmats, cameras.Ks, cameras.width, cameras.height, background, degree
    )
    info = {
        "means2d": means2d,
        "radii": radii,
        "width": cameras.width,
        "height": cameras.height,
        "n_cameras": len(cameras),
        "gaussian_ids": None,
    }
    return Render(rgb, alpha, depth, info)


def _rasterize_gsplat(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    backgrounds: Tensor | None,
    sh_degree: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Call gsplat's CUDA rasterizer; arguments, results and shapes as `rasterize`."""
    rgb_depth, alpha, meta = gsplat.rasterization(
        means,
        quats,
        scales,
        opacities,
        sh,
        viewmats,
        Ks,
        width,
        height,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=backgrounds,
        render_mode="RGB+ED",
    )
    return rgb_depth[..., :3], alpha, rgb_depth[..., 3:], meta["means2d"], meta["radii"]
