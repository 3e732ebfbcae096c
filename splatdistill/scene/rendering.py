"""One call to render Gaussians: gsplat on CUDA, the native rasterizer on the CPU, with equal results."""

from dataclasses import dataclass
from typing import Any

import gsplat
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.ops import upload
from splatdistill.ops.raster import rasterize as draw
from splatdistill.reference.raster import Limits
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.gaussians import activated, rgb_to_sh0, sh_degree_of


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
        background = upload([background.float()], device)[0].expand(len(cameras), 3).contiguous()
    degree = sh_degree_of(gaussians) if sh_degree is None else sh_degree
    rasterizer = _rasterize_gsplat if device.type == "cuda" else draw
    rgb, alpha, depth, means2d, radii = rasterizer(
        *activated(gaussians), cameras.viewmats, cameras.Ks, cameras.width, cameras.height, background, degree
    )
    return Render(rgb, alpha, depth, _meta(means2d, radii, cameras.width, cameras.height))


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rasterize Gaussians with the arguments of `gsplat.rasterization`, differentiably, on the CPU or a GPU.

    On CUDA tensors this is gsplat itself; on the CPU the native rasterizer, or its slow twin in torch.

    Args:
        means: [N,3].
        quats: [N,4] wxyz, of any length.
        scales: [N,3], activated.
        opacities: [N], activated.
        colors: spherical harmonics [N,K,3] with sh_degree, else RGB [N,3] of at least 0.
        viewmats: world-to-camera [V,4,4].
        Ks: [V,3,3] in pixels.
        width: of the images, in pixels.
        height: of the images, in pixels.
        sh_degree: the degree to evaluate, or None for RGB.
        backgrounds: [V,3], or None for black.
        options: render_mode ("RGB", "D", "ED", "RGB+D" or "RGB+ED"), near_plane, far_plane, radius_clip and
            eps2d.

    Returns:
        The images [V,H,W,C], C being 3, 1 or 4 by render_mode; alphas [V,H,W,1]; and a dict with means2d
        [V,N,2] (retain_grad works), radii [V,N,2], width, height, n_cameras and gaussian_ids (None).

    Raises:
        ValueError: a wrong shape, or an option that the CPU rasterizer does not have.
    """
    if means.device.type == "cuda":
        return gsplat.rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            sh_degree=sh_degree, backgrounds=backgrounds, packed=False, **options,
        )  # fmt: skip
    mode = options.pop("render_mode", "RGB")
    known = {"near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3}
    if options.keys() - known or mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(
            f"rasterize on the CPU: expected render_mode RGB, D, ED, RGB+D or RGB+ED and options of "
            f"{', '.join(known)}, got render_mode {mode!r} and {', '.join(options) or 'none'}"
        )
    if sh_degree is None:
        if colors.ndim != 2:
            raise ValueError(f"colors: expected RGB [N, 3] without sh_degree, got {list(colors.shape)}")
        colors, sh_degree = rgb_to_sh0(colors)[:, None], 0
    rgb, alpha, depth, means2d, radii = draw(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, backgrounds, sh_degree,
        Limits(*(known | options).values()),
    )  # fmt: skip
    channels = {"RGB": [rgb], "ED": [depth], "D": [depth * alpha]}
    image = torch.cat([part for name in mode.split("+") for part in channels[name]], dim=-1)
    return image, alpha, _meta(means2d, radii, width, height)


def _meta(means2d: Tensor, radii: Tensor, width: int, height: int) -> dict[str, Any]:
    sizes = {"width": width, "height": height, "n_cameras": len(means2d)}
    return {"means2d": means2d, "radii": radii, **sizes, "gaussian_ids": None}


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
