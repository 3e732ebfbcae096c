"""Rotation of whole scenes between our world frame and frames with another axis up.

A frame is named by its up axis. "z" is our world (front toward +X); "y" is glTF's and OpenGL's (front
toward +Z); "-y" is COLMAP's and 3D Gaussian Splatting's (front toward -Z). The last two are the axes of the
camera that looks at the front, so that all three show the object upright and from the front.
"""

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.reference.raster import sh_basis
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import from_tensors, sh_degree_of

UPS = ("y", "z", "-y")
ROWS = 1 << 14  # Gaussians in one piece, which is computed in float64


def world_to(up: str) -> Tensor:
    """Return the rotation [3, 3] (float64) from our world into the frame with `up`, one of UPS."""
    if up == "z":
        return torch.eye(3, dtype=torch.float64)
    camera = orbit(0.0, 0.0, 1.0, 40.0, 1, 1).viewmats[0, :3, :3].double()  # right, down, forward
    return camera if up == "-y" else torch.diag(torch.tensor([1.0, -1.0, -1.0]).double()) @ camera


def rotation_between(source: str, target: str) -> Tensor:
    """Return the rotation [3, 3] (float64) from the frame with `source` up to the one with `target` up."""
    return world_to(target) @ world_to(source).T


def reorient(gaussians: ParameterDict, source: str, target: str) -> ParameterDict:
    """Rotate a scene from the frame with `source` up to the one with `target` up; no copy if they agree."""
    if source == target:
        return gaussians
    turned = from_tensors(**gaussians)
    rotate_(turned, rotation_between(source, target))
    return turned


@torch.no_grad()
def rotate_(gaussians: ParameterDict, rotation: Tensor) -> None:
    """Rotate a scene in place around the origin by R [3, 3]: centers, axes and view-dependent colors.

    A camera rotated along with the scene sees the same image. Exact up to rounding to float32.
    """
    R = rotation.to(gaussians["means"].device, torch.float64)
    quaternion = _left_product(_quaternion(rotation.double())).to(R)
    bands = [_sh_rotation(rotation.double(), band).to(R) for band in range(1, sh_degree_of(gaussians) + 1)]
    values = (gaussians["means"], gaussians["quats"], gaussians["shN"])
    for means, quats, higher in zip(*(tensor.split(ROWS) for tensor in values)):
        means.copy_(means.double() @ R.T)
        quats.copy_(quats.double() @ quaternion.T)
        for band, matrix in enumerate(bands, 1):
            coefficients = higher[:, band * band - 1 : (band + 1) ** 2 - 1]  # [N, 2 band + 1, 3]
            coefficients.copy_(matrix @ coefficients.double())


def _sh_rotation(R: Tensor, band: int) -> Tensor:
    """Return the matrix [2l + 1, 2l + 1] that rotates the coefficients of one spherical-harmonic band l.

    The rotated function has at direction d the value of the original one at R^T d. Both are in the span of
    the band, so their values at a handful of directions determine the matrix, up to rounding.
    """
    directions = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    old, new = (sh_basis(d, band)[:, band * band :] for d in (directions @ R, directions))
    return torch.linalg.lstsq(new, old).solution


def _quaternion(R: Tensor) -> Tensor:
    """Return the unit quaternion wxyz [4] of a rotation matrix, as an eigenvector (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = R.tolist()
    K = [
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e],
    ]
    q = torch.linalg.eigh(torch.tensor(K, dtype=torch.float64)).eigenvectors[:, -1]
    return -q if q[0] < 0 else q


def _left_product(q: Tensor) -> Tensor:
    """Return the matrix [4, 4] that multiplies a quaternion wxyz from the left by q [4] (Hamilton)."""
    w, x, y, z = q.tolist()
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return torch.tensor(rows, dtype=torch.float64)
