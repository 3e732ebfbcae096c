"""The .ply of 3D Gaussian Splatting (2308.04079), in the property layout of its authors.

x y z, nx ny nz (zeros), f_dc_0..2, f_rest_* (channel-major), opacity, scale_0..2, rot_0..3 (wxyz): float32,
binary little endian, raw parameters (log scales, logit opacities).
"""

import math
from pathlib import Path

import torch
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.compressed_ply import decode
from splatdistill.formats.packing import allocate, opened
from splatdistill.formats.plyheader import gather, header_bytes, numbered, parse_header
from splatdistill.scene.gaussians import finite_mask, from_arrays


def write_ply(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene and return how many Gaussians were left out because a parameter was not finite.

    comments become header lines `comment key: value` (values in any characters, escaped to printable ASCII).
    The file appears whole or not at all. Raises UserError when it cannot be written.
    """
    keep = finite_mask(gaussians)
    values = {name: tensor.detach()[keep].cpu() for name, tensor in gaussians.items()}
    means = values["means"]
    sh_rest = values["shN"].transpose(1, 2).flatten(1)  # [N, 3 (K - 1)] channel-major
    columns = [means, torch.zeros_like(means), values["sh0"].flatten(1), sh_rest]
    columns += [values["opacities"][:, None], values["scales"], values["quats"]]
    rows = torch.cat(columns, 1).numpy().astype("<f4")
    names = ["x", "y", "z", "nx", "ny", "nz", *numbered("f_dc", 3), *numbered("f_rest", sh_rest.shape[1])]
    names += ["opacity", *numbered("scale", 3), *numbered("rot", 4)]
    header = header_bytes({"vertex": (len(rows), "float", names)}, comments or {})
    with atomic_write(path) as file:
        file.write(header)
        file.write(rows.tobytes())
    return len(keep) - len(rows)


def read_ply(path: str | Path) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene and its header comments of the form `key: value`.

    Takes binary files of either byte order with SH degrees 0 to 3, and ignores properties and elements that
    it does not know; values are kept as they are, finite or not. A compressed .ply is read as well.
    Raises UserError for anything that is not a whole splat .ply. Memory: that of the result and little more.
    """
    with opened(path) as file:
        header = parse_header(file, path)
        vertex = header.element("vertex")
        found = vertex.dtype.names or ()
        if "packed_position" in found:
            return decode(file, header), header.comments
        rest = sum(name.startswith("f_rest_") for name in found)
        groups = {
            "means": ["x", "y", "z"],
            "sh0": numbered("f_dc", 3),
            "shN": numbered("f_rest", rest),
            "opacities": ["opacity"],
            "scales": numbered("scale", 3),
            "quats": numbered("rot", 4),
        }
        missing = [name for names in groups.values() for name in names if name not in found]
        if missing or rest not in (0, 9, 24, 45):
            what = f"no property {missing[0]}" if missing else f"{rest} f_rest properties, not 0, 9, 24 or 45"
            raise UserError(f"{path} has {what}; expected the .ply of a Gaussian splat")
        arrays = allocate(vertex.count, math.isqrt(rest // 3 + 1) - 1)
        for piece, rows in header.read(file, "vertex"):
            for name, names in groups.items():
                columns = gather(rows, names)  # [rows, len(names)]
                if name == "shN":
                    columns = columns.reshape(len(rows), 3, rest // 3).transpose(0, 2, 1)
                arrays[name][piece] = columns.reshape(arrays[name][piece].shape)
    return from_arrays(**arrays), header.comments
