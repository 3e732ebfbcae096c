"""Gaussian splats in binary glTF by Khronos' KHR_gaussian_splatting, as ratified in 2026; all in float32.

Points with ROTATION (xyzw), SCALE (standard deviations), OPACITY and SH_DEGREE_l_COEF_n attributes; COLOR_0
is what viewers without the extension show. +Y is up and the front looks toward +Z.
"""

import math
from pathlib import Path

import numpy as np
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.gltf import POINTS, Primitive, srgb_to_linear, write_primitive
from splatdistill.formats.packing import quantize, to_splats
from splatdistill.scene.gaussians import sh0_to_rgb

EXTENSION = "KHR_gaussian_splatting"
MAX_BYTES = (1 << 32) - 1  # that the container can count


def write_glb(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene in its order and return how many Gaussians were left out because they are not finite.

    comments go to asset.extras. Raises UserError when nothing is left, when the file would be larger than the
    4 GiB that the format allows, or when it cannot be written.
    """
    splats, dropped = to_splats(gaussians)
    colours = np.column_stack([srgb_to_linear(sh0_to_rgb(splats.sh0).clip(0, 1)), splats.opacities])
    attributes = {
        "POSITION": splats.means,
        "COLOR_0": quantize(colours, 65535).astype("u2"),
        f"{EXTENSION}:ROTATION": splats.quats[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": np.exp(splats.log_scales),
        f"{EXTENSION}:OPACITY": splats.opacities,
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": splats.sh0,
    }
    for coefficient in range(1, splats.shN.shape[1] + 1):
        degree = math.isqrt(coefficient)
        name = f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{coefficient - degree * degree}"
        attributes[name] = splats.shN[:, coefficient - 1]
    if sum(values.nbytes for values in attributes.values()) > MAX_BYTES - (1 << 20):
        raise UserError(f"{len(splats.means)} Gaussians do not fit a .glb; expected less than 4 GiB")
    kernel = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    kernel |= {"projection": "perspective", "sortingMethod": "cameraDistance"}
    properties = {"extensions": {EXTENSION: kernel}}
    write_primitive(path, Primitive(POINTS, attributes, properties=properties), [EXTENSION], comments)
    return dropped
