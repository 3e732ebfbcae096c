"""Gaussian splats in binary glTF by Khronos' KHR_gaussian_splatting, as ratified in 2026; all in float32.

Points with ROTATION (xyzw), SCALE (standard deviations), OPACITY and SH_DEGREE_l_COEF_n attributes; COLOR_0
is what viewers without the extension show. +Y is up and the front looks toward +Z.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.gltf import (
    POINTS,
    Binary,
    Primitive,
    fractions,
    open_binary,
    srgb_to_linear,
    write_primitive,
)
from splatdistill.formats.packing import Note, allocate, pieces, quantize, to_splats, warn
from splatdistill.scene.gaussians import NAMES, from_arrays, sh0_to_rgb
from splatdistill.scene.orientation import rotate_

EXTENSION = "KHR_gaussian_splatting"
MAX_BYTES = (1 << 32) - 1  # that the container can count
MAX_NODES = 10_000  # that are visited
LARGEST_ALPHA = 1 - 2**-24  # below 1 in float32


def write_glb(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene in its order and return how many Gaussians `storable` left out.

    comments go to asset.extras. Raises UserError when nothing is left, when the file would be larger than the
    4 GiB that the format allows, or when it cannot be written.
    """
    splats, dropped = to_splats(gaussians)
    colors = np.column_stack([srgb_to_linear(sh0_to_rgb(splats.sh0).clip(0, 1)), splats.opacities])
    attributes = {
        "POSITION": splats.means,
        "COLOR_0": quantize(colors, 65535).astype("u2"),
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


def read_glb(path: str | Path, note: Note = warn) -> tuple[ParameterDict, dict[str, str]]:
    """Read the Gaussians of all nodes of a scene, and the comments in asset.extras.

    Node transforms may translate, rotate and scale uniformly. Other meshes are skipped. note is called when
    the colors are linear light, which are kept as they are. Memory: that of the result and little more.

    Raises:
        UserError: not a whole and uncompressed .glb with KHR_gaussian_splatting.
    """
    binary = open_binary(path)
    parts = [
        (primitive, matrix) for primitive, matrix in primitives(binary) if EXTENSION in _extensions(primitive)
    ]
    if not parts:
        raise UserError(f"{path} holds no Gaussian splats (no {EXTENSION}); a mesh is none")
    scenes = [_moved(_decoded(binary, primitive, note), matrix, path) for primitive, matrix in parts]
    extras = binary.document.get("asset")
    extras = extras.get("extras") if isinstance(extras, dict) else None
    comments = {k: v for k, v in extras.items() if isinstance(v, str)} if isinstance(extras, dict) else {}
    return scenes[0] if len(scenes) == 1 else _joined(scenes), comments


def _extensions(primitive: dict[str, Any]) -> dict[str, Any]:
    found = primitive.get("extensions")
    return found if isinstance(found, dict) else {}


def primitives(binary: Binary) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Return the primitives of the scene's nodes with their matrices [4, 4] (float64); raises UserError."""
    document = binary.document
    scene = binary.item("scenes", document.get("scene", 0)) if document.get("scenes") else {}
    roots = scene.get("nodes") or list(range(len(document.get("nodes") or [])))
    waiting = [(node, torch.eye(4, dtype=torch.float64)) for node in roots] if isinstance(roots, list) else []
    visited = 0
    while waiting:
        index, outer = waiting.pop()
        if (visited := visited + 1) > MAX_NODES:
            raise UserError(f"{binary.path} has more than {MAX_NODES} nodes, or some that hold themselves")
        node = binary.item("nodes", index)
        matrix = outer @ _matrix(node, binary.path)
        children = node.get("children")
        waiting += [(child, matrix) for child in children] if isinstance(children, list) else []
        if "mesh" in node:
            primitives = binary.item("meshes", node["mesh"]).get("primitives")
            found = primitives if isinstance(primitives, list) else []
            yield from ((primitive, matrix) for primitive in found if isinstance(primitive, dict))


def _matrix(node: dict[str, Any], path: str | Path) -> Tensor:
    """Return the matrix [4, 4] (float64) of a node; raises UserError for an invalid one."""

    def numbers(name: str, default: list[float]) -> Tensor:
        given = node.get(name, default)
        sound = isinstance(given, list) and len(given) == len(default)
        if not sound or not all(type(number) in (int, float) and abs(number) < 1e30 for number in given):
            raise UserError(f"{path} has a node whose {name} is no list of {len(default)} numbers")
        return torch.tensor(given, dtype=torch.float64)

    if "matrix" in node:
        return numbers("matrix", [0.0] * 16).reshape(4, 4).T
    matrix = torch.eye(4, dtype=torch.float64)
    x, y, z, w = torch.nn.functional.normalize(numbers("rotation", [0.0, 0.0, 0.0, 1.0]), dim=0).tolist()
    turn = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] = torch.tensor(turn, dtype=torch.float64) * numbers("scale", [1.0, 1.0, 1.0])
    matrix[:3, 3] = numbers("translation", [0.0, 0.0, 0.0])
    return matrix


@torch.no_grad()
def _moved(gaussians: ParameterDict, matrix: Tensor, path: str | Path) -> ParameterDict:
    """Transform Gaussians in place by a matrix; raises UserError for one that shears or scales unevenly."""
    if torch.equal(matrix, torch.eye(4, dtype=torch.float64)):
        return gaussians
    linear = matrix[:3, :3]
    scale = torch.det(linear).clamp(min=0) ** (1 / 3)
    turn = linear / scale
    if not (turn.isfinite().all() and (turn @ turn.T - torch.eye(3)).abs().max() < 1e-3):
        raise UserError(
            f"{path} has a node that mirrors or stretches its Gaussians; apply its transform first"
        )
    rotate_(gaussians, turn)
    gaussians["means"].mul_(float(scale)).add_(matrix[:3, 3].float())
    gaussians["scales"].add_(math.log(scale))
    return gaussians


def _decoded(binary: Binary, primitive: dict[str, Any], note: Note) -> ParameterDict:
    """Return the Gaussians of a primitive, untransformed; raises UserError."""
    path, attributes, extension = binary.path, primitive.get("attributes"), _extensions(primitive)[EXTENSION]
    inner = extension.get("extensions") if isinstance(extension, dict) else None
    if inner:
        raise UserError(
            f"{path} is compressed by {str(next(iter(inner)))[:80]}; store it without compression"
        )
    if isinstance(extension, dict) and "lin" in str(extension.get("colorSpace", "")):
        note(f"{path}: the colors are linear light, and are read as if they were displayed")
    if primitive.get("mode", 4) != POINTS or not isinstance(attributes, dict):
        raise UserError(f"{path} has Gaussians that are no points; expected a primitive of mode 0")

    def values(name: str, width: int) -> np.ndarray:
        if name not in attributes:
            raise UserError(f"{path} has no attribute {name}; expected those of {EXTENSION}")
        return binary.values(attributes[name], width)

    prefix = f"{EXTENSION}:"
    degree = max((d for d in range(4) if f"{prefix}SH_DEGREE_{d}_COEF_0" in attributes), default=0)
    names = [f"{prefix}SH_DEGREE_{d}_COEF_{n}" for d in range(degree + 1) for n in range(2 * d + 1)]
    if f"{prefix}SH_DEGREE_4_COEF_0" in attributes:
        note(f"{path}: the SH bands above 3 are left out")
    means, quats = values("POSITION", 3), values(f"{prefix}ROTATION", 4)
    scales, opacities = values(f"{prefix}SCALE", 3), values(f"{prefix}OPACITY", 1)
    harmonics = [values(name, 3) for name in names]
    if {len(rows) for rows in (quats, scales, opacities, *harmonics)} != {len(means)}:
        raise UserError(f"{path} has attributes of different lengths; export or copy it again")
    arrays = allocate(len(means), degree)
    for piece in pieces(len(means)):
        arrays["means"][piece] = fractions(means[piece])
        arrays["quats"][piece] = fractions(quats[piece])[:, [3, 0, 1, 2]]
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha = fractions(opacities[piece])[:, 0].astype(np.float64).clip(1e-12, LARGEST_ALPHA)
            arrays["opacities"][piece] = np.log(alpha / (1 - alpha))
            arrays["scales"][piece] = np.log(fractions(scales[piece]))
        for coefficient, rows in enumerate(harmonics):
            target = arrays["sh0"] if coefficient == 0 else arrays["shN"]
            target[piece, max(coefficient - 1, 0)] = fractions(rows[piece])
    return from_arrays(**arrays)


def _joined(scenes: list[ParameterDict]) -> ParameterDict:
    """Concatenate scenes, at the highest SH degree among them."""
    coefficients = max(scene["shN"].shape[1] for scene in scenes)
    rows = {name: [scene[name].detach().numpy() for scene in scenes] for name in NAMES}
    rows["shN"] = [np.pad(shN, ((0, 0), (0, coefficients - shN.shape[1]), (0, 0))) for shN in rows["shN"]]
    return from_arrays(**{name: np.concatenate(values) for name, values in rows.items()})
