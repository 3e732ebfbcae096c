"""The CPU rasterizer of 3D Gaussians: custom ops `project` and `rasterize_tiles`, composed by `rasterize`.

Same results as `gsplat.rasterization(render_mode="RGB+ED", rasterize_mode="classic", packed=False)`.
Two ops, so that the image-plane means `means2d` are a node of the graph between them: densification reads
their gradient. The kernels take float32 on the CPU; anything else goes to the reference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from splatdistill.ops import native
from splatdistill.reference import raster as reference
from splatdistill.reference.raster import GSPLAT, Limits

FLOAT = torch.float32


def rasterize(
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
    limits: Limits = GSPLAT,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Render Gaussians: rgb [V,H,W,3], alpha and expected depth [V,H,W,1], means2d and radii [V,N,2].

    means [N,3], quats [N,4] wxyz of any length, scales [N,3] and opacities [N] activated, sh [N,K,3] of which
    (sh_degree+1)^2 coefficients are used, viewmats [V,4,4] world to camera, Ks [V,3,3], backgrounds [V,3] or
    None for black. Depth in world units, means2d and radii (int32) in pixels; both are zero where a Gaussian
    is culled, as is one that is not finite. Differentiable in means, quats, scales, opacities, sh and
    backgrounds, and in means2d as an intermediate (`retain_grad`). ValueError for a wrong shape.
    Source: "3D Gaussian Splatting" (2308.04079), with gsplat's thresholds.
    """
    scene = (means, quats, scales, opacities, sh, viewmats, Ks)
    if not native.available() or means.dtype != FLOAT or means.device.type != "cpu":
        return reference.rasterize(*scene, width, height, backgrounds, sh_degree, limits)
    means2d, conics, depths, colors, radii = project(*scene, width, height, sh_degree, limits)
    rgb, alpha, depth, _ = rasterize_tiles(
        means2d, conics, colors, opacities, depths, radii, backgrounds, width, height
    )
    return rgb, alpha, depth, means2d, radii


def _kernels():
    """Return the extension; raises a plain error when it is missing, as the ops below need it."""
    kernels = native.kernels()
    if kernels is None:
        raise RuntimeError("splatdistill._C was not built: call splatdistill.ops.rasterize, which falls back")
    return kernels


@torch.library.custom_op("splatdistill::project", mutates_args=())
def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    sh_degree: int,
    limits: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Project and shade: means2d [V,N,2], conics [V,N,3], depths [V,N], colors [V,N,3], radii [V,N,2].

    Conics are inverse 2D covariances (xx, xy, yy) in pixels; colors are max(SH + 0.5, 0); radii are int32.
    `limits` holds the values of `Limits`.
    """
    inputs = [x.contiguous() for x in (means, quats, scales, opacities, sh, viewmats, Ks)]
    kernels = _kernels()
    scene = kernels.RasterScene(*inputs, width, height, sh_degree, *limits)
    outputs = _project_fake(*inputs)
    kernels.raster_project(scene, *outputs)
    return outputs


@project.register_fake
def _project_fake(means, quats, scales, opacities, sh, viewmats, Ks, *settings):
    views, count = viewmats.shape[0], means.shape[0]
    return (
        means.new_empty(views, count, 2),
        means.new_empty(views, count, 3),
        means.new_empty(views, count),
        means.new_empty(views, count, 3),
        means.new_empty(views, count, 2, dtype=torch.int32),
    )


@torch.library.custom_op("splatdistill::project_backward", mutates_args=())
def project_backward(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    size: Sequence[int],
    sh_degree: int,
    eps2d: float,
    radii: Tensor,
    cotangents: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients (means [N,3], quats [N,4], scales [N,3], sh [N,K,3]) from those of the outputs.

    size: (width, height); radii: as `project` returned them; cotangents: of means2d, conics, depths, colors.
    """
    inputs = [x.contiguous() for x in (means, quats, scales, opacities, sh, viewmats, Ks)]
    kernels = _kernels()
    scene = kernels.RasterScene(*inputs, *size, sh_degree, 0.0, 0.0, 0.0, eps2d)
    outputs = _project_backward_fake(*inputs)
    kernels.raster_project_backward(scene, radii, *(x.contiguous() for x in cotangents), *outputs)
    return outputs


@project_backward.register_fake
def _project_backward_fake(means, quats, scales, opacities, sh, *rest):
    v_means, v_quats, v_scales, v_sh = (x.new_empty(x.shape) for x in (means, quats, scales, sh))
    return v_means, v_quats, v_scales, v_sh


def _project_save(ctx, inputs, output):
    *tensors, width, height, sh_degree, limits = inputs
    ctx.settings = ((width, height), sh_degree, limits[3])
    ctx.save_for_backward(*tensors, output[4])
    ctx.mark_non_differentiable(output[4])


def _project_gradient(ctx, v_means2d, v_conics, v_depths, v_colors, _v_radii):
    *tensors, radii = ctx.saved_tensors
    cotangents = [v_means2d, v_conics, v_depths, v_colors]
    v_means, v_quats, v_scales, v_sh = project_backward(*tensors, *ctx.settings, radii, cotangents)
    return v_means, v_quats, v_scales, None, v_sh, *[None] * 6


project.register_autograd(_project_gradient, setup_context=_project_save)


@torch.library.custom_op("splatdistill::rasterize_tiles", mutates_args=())
def rasterize_tiles(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    depths: Tensor,
    radii: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blend what `project` returned: rgb [V,H,W,3], alpha and expected depth [V,H,W,1], state (bytes).

    The state is what the backward pass needs: sorted Gaussians, tile lists, transmittances.
    """
    inputs = [x.contiguous() for x in (means2d, conics, colors, opacities, depths, radii)]
    backgrounds = None if backgrounds is None else backgrounds.contiguous()
    kernels = _kernels()
    picture = kernels.RasterPicture(*inputs, backgrounds, width, height)
    images = _images(depths, width, height)
    memory = kernels.raster_draw(picture, *images)
    return *images, torch.frombuffer(memory, dtype=torch.uint8)


def _images(depths, width, height):
    size = (depths.shape[0], height, width)
    return depths.new_empty(*size, 3), depths.new_empty(*size, 1), depths.new_empty(*size, 1)


@rasterize_tiles.register_fake
def _rasterize_tiles_fake(means2d, conics, colors, opacities, depths, radii, backgrounds, width, height):
    size = torch.library.get_ctx().new_dynamic_size()
    return *_images(depths, width, height), depths.new_empty(size, dtype=torch.uint8)


@torch.library.custom_op("splatdistill::rasterize_tiles_backward", mutates_args=())
def rasterize_tiles_backward(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    depths: Tensor,
    radii: Tensor,
    backgrounds: Tensor | None,
    alpha: Tensor,
    depth: Tensor,
    state: Tensor,
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients (means2d, conics, colors, opacities, depths, backgrounds) from those of the images.

    `alpha` and `depth` [V,H,W,1] and `state` are outputs of `rasterize_tiles`; cotangents: of rgb, alpha and
    depth, None for an image that the loss leaves out.
    """
    inputs = [x.contiguous() for x in (means2d, conics, colors, opacities, depths, radii)]
    backgrounds = None if backgrounds is None else backgrounds.contiguous()
    kernels = _kernels()
    picture = kernels.RasterPicture(*inputs, backgrounds, depth.shape[2], depth.shape[1])
    cotangents = [None if x is None else x.contiguous() for x in cotangents]
    outputs = _rasterize_tiles_backward_fake(means2d, conics, colors, opacities, depths)
    kernels.raster_draw_backward(picture, state, *cotangents, alpha, depth, *outputs)
    return outputs


@rasterize_tiles_backward.register_fake
def _rasterize_tiles_backward_fake(means2d, conics, colors, opacities, depths, *rest):
    v_means2d, v_conics, v_colors, v_opacities, v_depths = (
        x.new_empty(x.shape) for x in (means2d, conics, colors, opacities, depths)
    )
    return v_means2d, v_conics, v_colors, v_opacities, v_depths, depths.new_empty(depths.shape[0], 3)


def _rasterize_tiles_save(ctx, inputs, output):
    *tensors, _width, _height = inputs
    _rgb, alpha, depth, state = output
    ctx.save_for_backward(*tensors, alpha, depth, state)
    ctx.mark_non_differentiable(state)
    ctx.set_materialize_grads(False)  # an image that the loss leaves out costs nothing


def _rasterize_tiles_gradient(ctx, v_rgb, v_alpha, v_depth, _v_state):
    saved = ctx.saved_tensors
    v_means2d, v_conics, v_colors, v_opacities, v_depths, v_backgrounds = rasterize_tiles_backward(
        *saved, [v_rgb, v_alpha, v_depth]
    )
    v_backgrounds = None if saved[6] is None else v_backgrounds
    return v_means2d, v_conics, v_colors, v_opacities, v_depths, None, v_backgrounds, None, None


rasterize_tiles.register_autograd(_rasterize_tiles_gradient, setup_context=_rasterize_tiles_save)
