"""Up axes and front directions of other programs, by name; docs/FOREIGN.md gives the sources.

Axes are those of the program's .ply, .splat and .sog. A .spz or .glb made from such a file by the rules of
these formats is rotated half a turn about X (right, up, back instead of right, down, forward), which is
undone when reading.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.scene.orientation import rotate_, rotation_between

Axis = tuple[int, int, int]
DOWN_Y: Axis = (0, -1, 0)


class Convention(NamedTuple):
    """The up axis and front direction in a program's files."""

    up: Axis
    front: Axis

    def matrix(self) -> Tensor:
        """Return the rotation [3, 3] (float64) from the file to the world frame: up to +Z, front to +X."""
        up, front = (torch.tensor(axis, dtype=torch.float64) for axis in self)
        return torch.stack([front, torch.linalg.cross(up, front), up])


CONVENTIONS = {
    "triposplat": Convention(DOWN_Y, (0, 0, -1)),
    "trellis": Convention(DOWN_Y, (0, 0, -1)),
    "sam3d": Convention((0, 0, 1), (0, -1, 0)),
    "sharp": Convention(DOWN_Y, (0, 0, -1)),
    "inria": Convention(DOWN_Y, (0, 0, -1)),
    "supersplat": Convention(DOWN_Y, (0, 0, 1)),
}


def convention_of(name: str) -> Convention:
    """Return the convention of a name; raises UserError for an unknown one."""
    if name not in CONVENTIONS:
        raise UserError(f"'{name}' is no known program; expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def set_upright(gaussians: ParameterDict, name: str, up: str = "-y") -> None:
    """Rotate a scene in place from a program's axes to the world frame: +Z up, front toward +X.

    up: the up axis of the file's format (`Format.up`); "y" formats are first rotated to the axes of a .ply.
    """
    matrix = convention_of(name).matrix()
    rotate_(gaussians, matrix @ rotation_between("y", "-y") if up == "y" else matrix)
