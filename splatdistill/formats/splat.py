"""The .splat of antimatter15's viewer: 32 bytes a Gaussian, no header, no view-dependent color.

x y z and three standard deviations as float32, then red green blue opacity and the quaternion wxyz as bytes
(a component q is stored as 128 q + 128). There is no standard; viewers take -Y for up, as in INRIA's scenes.
"""

import os
from pathlib import Path

import numpy as np
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.packing import Note, allocate, logit, opened, pieces, quantize, to_splats, warn
from splatdistill.scene.gaussians import from_arrays, rgb_to_sh0, sh0_to_rgb

ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def write_dot_splat(
    path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None
) -> int:
    """Write a scene in its order and return how many Gaussians `storable` left out.

    SH bands above 0 and comments have no place in the format; colors outside [0, 1] are clipped.
    Raises UserError when nothing is left or the file cannot be written.
    """
    splats, dropped = to_splats(gaussians)
    rows = np.empty(len(splats.means), ROW)
    rows["mean"] = splats.means
    rows["scale"] = np.exp(splats.log_scales)
    rows["rgba"][:, :3] = quantize(sh0_to_rgb(splats.sh0), 255)
    rows["rgba"][:, 3] = quantize(splats.opacities, 255)
    rows["quat"] = np.clip(np.rint(splats.quats * 128.0 + 128.0), 0, 255)
    with atomic_write(path) as file:
        file.write(rows.tobytes())
    return dropped


def read_dot_splat(path: str | Path, note: Note = warn) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene; the format has no comments. Raises UserError for a file that is not whole rows.

    A scale of 0 gives a log scale of -inf, a negative one NaN. Nothing is left out, so note is not called.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        count, rest = divmod(size, ROW.itemsize)
        if rest or not count:
            raise UserError(f"{path} has {size} bytes; expected a .splat: a multiple of 32, and not empty")
        arrays = allocate(count, 0)
        for piece in pieces(count):
            rows = np.fromfile(file, ROW, piece.stop - piece.start)
            if len(rows) < piece.stop - piece.start:
                raise UserError(f"{path} became shorter while it was read; copy it again")
            arrays["means"][piece] = rows["mean"]
            with np.errstate(divide="ignore", invalid="ignore"):
                arrays["scales"][piece] = np.log(rows["scale"])
            arrays["sh0"][piece, 0] = rgb_to_sh0(rows["rgba"][:, :3] / np.float32(255))
            arrays["opacities"][piece] = logit(rows["rgba"][:, 3] / 255.0)
            quats = (rows["quat"] - np.float32(128)) / 128
            quats[~quats.any(1)] = 1, 0, 0, 0
            arrays["quats"][piece] = quats
    return from_arrays(**arrays), {}
