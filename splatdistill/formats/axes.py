"""Axes named by three letters, as in `.spz`: directions of x, y, z among Left/Right, Up/Down, Back/Front.

Half of them are left-handed, as in Unity: the scene is mirrored then, which is exact for Gaussians.
"""

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import sh_degree_of
from splatdistill.scene.orientation import rotate_

DIRECTIONS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "U": (0, 1, 0),
    "D": (0, -1, 0),
    "B": (0, 0, 1),
    "F": (0, 0, -1),
}


def axes_matrix(axes: str) -> Tensor:
    """Return the matrix [3, 3] (float64) from coordinates along these axes to right, up, back (RUB)."""
    return torch.tensor([DIRECTIONS[letter] for letter in axes], dtype=torch.float64).T


@torch.no_grad()
def turn_axes(gaussians: ParameterDict, axes: str) -> None:
    """Convert a scene in place from these axes to right, up, back (RUB)."""
    matrix = axes_matrix(axes)
    if torch.det(matrix) < 0:
        mirror_z(gaussians)
        matrix = matrix @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    rotate_(gaussians, matrix)


@torch.no_grad()
def mirror_z(gaussians: ParameterDict) -> None:
    """Mirror a scene in place at the plane z = 0.

    Of a quaternion, the parts along the plane change sign; of the SH function of degree l and order m, the
    sign is that of (-1)^(l + m).
    """
    gaussians["means"][:, 2].neg_()
    gaussians["quats"][:, 1:3].neg_()
    for degree in range(1, sh_degree_of(gaussians) + 1):
        for order in range(-degree, degree + 1):
            if (degree + order) % 2:
                gaussians["shN"][:, degree * degree - 1 + degree + order].neg_()
