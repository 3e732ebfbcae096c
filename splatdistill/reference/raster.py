"""The rasterizer in plain torch: the reference of the tests, and the fallback without native kernels.

Every pixel of a tile evaluates every Gaussian whose bounding box touches the tile; any float type and device.
Same thresholds as the kernels: alpha below 1/255 is skipped, alpha is clamped to 0.999, a pixel stops before
its transmittance falls to 1e-4. Source: "3D Gaussian Splatting" (2308.04079).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4
TILE = 32  # pixels along a side; only a matter of memory and speed

SH0 = 0.28209479177387814
SH1 = 0.4886025119029199
SH2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
SH3 = (
    -0.5900435899266435, 2.890611442640554, -0.4570457994644658, 0.3731763325901154,
    -0.4570457994644658, 1.445305721320277, -0.5900435899266435,
)  # fmt: skip


class Limits(NamedTuple):
    """Limits of what is drawn, and the blur of small Gaussians; gsplat's names and defaults."""

    near: float = 0.01  # depth
    far: float = 1e10
    radius_clip: float = 0.0  # pixels: what is no larger is left out
    eps2d: float = 0.3  # square pixels, added to every projected covariance


GSPLAT = Limits()


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
    """Render Gaussians; the slow twin of `splatdistill.ops.rasterize`, with equal arguments and results."""
    scene = (means, quats, scales, opacities, sh, viewmats, Ks)
    means2d, conics, depths, colors, radii = project(*scene, width, height, sh_degree, limits)
    rgb, alpha, depth = rasterize_tiles(
        means2d, conics, colors, opacities, depths, radii, backgrounds, width, height
    )
    return rgb, alpha, depth, means2d, radii


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

    Everything is zero, and gradients are too, where a Gaussian is culled: outside near..far, fainter than
    1/255, no larger than radius_clip, off the image, or not finite. `limits` holds the values of `Limits`.
    """
    near, far, radius_clip, eps2d = limits
    camera = (viewmats, Ks, width, height, sh_degree, eps2d)
    with torch.no_grad():
        projected = _project_all(means, quats, scales, sh, *camera)
        radii = _radii(opacities, *projected, width, height, near, far, radius_clip)
    # a harmless stand-in for what is culled keeps its gradient zero rather than not-a-number
    seen = (radii > 0).all(-1)  # [V,N]
    used = seen.any(0)
    stand_ins = ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    means, quats, scales = (
        torch.where(used[:, None], x, x.new_tensor(y)) for x, y in zip((means, quats, scales), stand_ins)
    )
    sh = torch.where(used[:, None, None], sh, torch.zeros_like(sh))
    projected = _project_all(means, quats, scales, sh, *camera, seen)
    means2d, covars2d, depths, colors = (
        torch.where(seen[..., None], x, torch.zeros_like(x)) for x in projected
    )
    xx, xy, yy = torch.where(seen[..., None], covars2d, covars2d.new_tensor([1.0, 0.0, 1.0])).unbind(-1)
    conics = torch.stack([yy, -xy, xx], dim=-1) / (xx * yy - xy * xy)[..., None] * seen[..., None]
    return means2d, conics, depths[..., 0], colors, radii


def _project_all(means, quats, scales, sh, viewmats, Ks, width, height, sh_degree, eps2d, seen=None):
    """Return means2d [V,N,2], covariances [V,N,3], depths [V,N,1], colors [V,N,3]; unseen ones are filler."""
    means_c = means @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]  # [V,N,3]
    if seen is not None:
        means_c = torch.where(seen[..., None], means_c, means_c.new_tensor([0.0, 0.0, 1.0]))
    means2d, covars2d = _ewa(means_c, quats, scales, viewmats, Ks, width, height, eps2d)
    positions = -(torch.linalg.inv(viewmats[:, :3, :3]) @ viewmats[:, :3, 3:])[..., 0]  # [V,3]
    directions = means - positions[:, None]
    lengths = directions.norm(dim=-1, keepdim=True)
    directions = directions / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    coefficients = sh[:, : (sh_degree + 1) ** 2]
    colors = torch.einsum("vnk,nkc->vnc", sh_basis(directions, sh_degree), coefficients)
    return means2d, covars2d, means_c[..., 2:], torch.clamp_min(colors + 0.5, 0.0)


def _radii(opacities, means2d, covars2d, depths, colors, width, height, near, far, radius_clip) -> Tensor:
    """Return half sizes [V,N,2] int32 of the box in which alpha reaches 1/255; zero for what is culled."""
    xx, xy, yy = covars2d.unbind(-1)
    det = (xx * yy - xy * xy)[..., None]
    # standard deviations until alpha = 1/255, at most 3.33 (2402.00525, section B.2)
    reach = torch.sqrt(2.0 * torch.log((opacities / ALPHA_MIN).clamp_min(1.0))).clamp_max(3.33)
    extent = torch.ceil(reach[:, None] * torch.stack([xx, yy], dim=-1).clamp_min(0.0).sqrt())
    finite = torch.cat([means2d, covars2d, det, colors], dim=-1).isfinite().all(-1) & opacities.isfinite()
    seen = finite & (opacities >= ALPHA_MIN) & (depths[..., 0] >= near) & (depths[..., 0] <= far)
    seen &= (det[..., 0] > 0) & (extent > radius_clip).any(-1)
    seen &= ((means2d + extent > 0) & (means2d - extent < means2d.new_tensor([width, height]))).all(-1)
    return torch.where(seen[..., None], extent.clamp_max(1e9), torch.zeros_like(extent)).int()


def _ewa(means_c, quats, scales, viewmats, Ks, width, height, eps2d):
    """Return pinhole means2d [V,N,2] and blurred covariances (xx, xy, yy) [V,N,3] (2308.04079, eq. 5)."""
    x, y, z = means_c.unbind(-1)  # [V,N]
    focal = Ks[:, None, [0, 1], [0, 1]]  # [V,1,2]
    center = Ks[:, None, [0, 1], [2, 2]]
    size = Ks.new_tensor([width, height])
    margin = 0.15 * size / focal  # the Jacobian is frozen 15 % outside the image
    slopes = torch.stack([x / z, y / z], dim=-1)
    clamped = torch.clamp(slopes, -(center / focal + margin), (size - center) / focal + margin)
    means2d = focal * slopes + center
    diagonal = focal / z[..., None]  # [V,N,2]
    J = torch.cat([torch.diag_embed(diagonal), -(diagonal * clamped)[..., None]], dim=-1)  # [V,N,2,3]
    RS = rotation_matrices(quats) * scales[:, None, :]  # [N,3,3]
    M = J @ viewmats[:, None, :3, :3] @ RS  # [V,N,2,3]
    covars2d = M @ M.mT + eps2d * torch.eye(2, dtype=M.dtype, device=M.device)
    return means2d, torch.stack([covars2d[..., 0, 0], covars2d[..., 0, 1], covars2d[..., 1, 1]], dim=-1)


def rotation_matrices(quats: Tensor) -> Tensor:
    """Return rotation matrices [N,3,3] of quaternions wxyz [N,4] of any length but zero."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Return real spherical harmonics [..., (degree+1)^2] at unit directions [...,3], as in 2308.04079."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [torch.full_like(x, SH0)]
    if degree >= 1:
        basis += [-SH1 * y, SH1 * z, -SH1 * x]
    if degree >= 2:
        basis += [SH2[0] * x * y, SH2[1] * y * z, SH2[2] * (2 * zz - xx - yy)]
        basis += [SH2[3] * x * z, SH2[4] * (xx - yy)]
    if degree >= 3:
        basis += [
            SH3[0] * y * (3 * xx - yy), SH3[1] * x * y * z, SH3[2] * y * (4 * zz - xx - yy),
            SH3[3] * z * (2 * zz - 3 * xx - 3 * yy), SH3[4] * x * (4 * zz - xx - yy),
            SH3[5] * z * (xx - yy), SH3[6] * x * (xx - 3 * yy),
        ]  # fmt: skip
    return torch.stack(basis, dim=-1)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend what `project` returned: rgb [V,H,W,3], alpha [V,H,W,1], expected depth [V,H,W,1]."""
    views = []
    features = torch.cat([colors, depths[..., None]], dim=-1)  # [V,N,4]
    for v in range(means2d.shape[0]):
        near_to_far = torch.argsort(depths[v], stable=True)
        seen = near_to_far[(radii[v, near_to_far] > 0).all(-1)]
        arrays = (means2d[v, seen], conics[v, seen], opacities[seen], features[v, seen], radii[v, seen])
        bands = [
            torch.cat([_blend(*arrays, left, top, width, height) for left in range(0, width, TILE)], dim=1)
            for top in range(0, height, TILE)
        ]
        views.append(torch.cat(bands, dim=0))
    image = torch.stack(views)  # [V,H,W,5]
    rgb, depth, alpha = image.split([3, 1, 1], dim=-1)
    if backgrounds is not None:
        rgb = rgb + (1.0 - alpha) * backgrounds[:, None, None]
    return rgb, alpha, depth / alpha.clamp_min(1e-10)


def _blend(means2d, conics, opacities, features, radii, left, top, width, height) -> Tensor:
    """Return one tile [h,w,5] of color, depth and alpha, from the Gaussians that reach it, near to far."""
    right, bottom = min(left + TILE, width), min(top + TILE, height)
    with torch.no_grad():
        low, high = means2d.new_tensor([left, top]), means2d.new_tensor([right, bottom])
        near = ((means2d + radii >= low) & (means2d - radii <= high)).all(-1)
    means2d, conics, opacities, features = means2d[near], conics[near], opacities[near], features[near]
    columns = torch.arange(left, right, device=means2d.device, dtype=means2d.dtype) + 0.5
    rows = torch.arange(top, bottom, device=means2d.device, dtype=means2d.dtype) + 0.5
    dx = (means2d[:, 0] - columns[:, None])[None]  # [1,w,n]
    dy = (means2d[:, 1] - rows[:, None])[:, None]  # [h,1,n]
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy  # [h,w,n]
    alpha = torch.clamp_max(opacities * torch.exp(-sigma), ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1.0 - alpha, dim=-1)
    open_ = after > TRANSMITTANCE_MIN  # once closed, closed for all that lies behind
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
    weights = torch.where(open_, alpha * before, torch.zeros_like(alpha))
    # 1 - transmittance equals the sum of the weights
    return torch.cat([weights @ features, weights.sum(-1, keepdim=True)], dim=-1)
