"""Shared parts of the formats: stored values, three-component quaternions, safe reading."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.storable import storable

Note = Callable[[str], None]  # receives a line on what was left out or changed
ROWS = 1 << 14  # Gaussians that an importer decodes at a time: what it needs beside the result stays small
LOG_SCALE_MIN = -87.0  # exp() of it is still a normal float32
MAX_RESULT_BYTES = 4 << 30  # of a scene from a compressed file, which may claim anything
HALF_STEP = 0.25 / 255  # an opacity stored as 0 or 255 stands for the middle of what is rounded to it


class Splats(NamedTuple):
    """Gaussians as files store them: NumPy float32, in a fixed order, all finite."""

    means: np.ndarray  # [N, 3]
    quats: np.ndarray  # [N, 4] wxyz, unit length
    log_scales: np.ndarray  # [N, 3]
    opacities: np.ndarray  # [N] in [0, 1]
    sh0: np.ndarray  # [N, 3]
    shN: np.ndarray  # [N, K - 1, 3]

    def select(self, index: np.ndarray) -> "Splats":
        """Return the chosen Gaussians; index is a mask or an order."""
        return Splats(*(values[index] for values in self))


def to_splats(gaussians: ParameterDict, reach: float = np.inf) -> tuple[Splats, int]:
    """Return the values of a scene, and how many Gaussians `storable` left out.

    A quaternion of length zero becomes the identity. Raises UserError when no Gaussian is left.
    """
    kept, account = storable(gaussians, reach)
    if not account.total:
        raise UserError("none of the 0 Gaussians can be stored; expected a scene that is not empty")
    values = {name: tensor.detach().cpu() for name, tensor in kept.items()}
    quats = values["quats"].double()
    norm = quats.norm(dim=-1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    splats = Splats(
        _array(values["means"]),
        _array(torch.where(norm > 0, quats / norm, identity)),
        _array(values["scales"].clamp(min=LOG_SCALE_MIN)),
        _array(values["opacities"].double().sigmoid()),
        _array(values["sh0"][:, 0]),
        _array(values["shN"]),
    )
    return splats, account.dropped


def _array(values: Tensor) -> np.ndarray:
    return values.float().contiguous().numpy()


def allocate(count: int, sh_degree: int) -> dict[str, np.ndarray]:
    """Allocate arrays for `gaussians.from_arrays`, to be filled by a reader."""
    shapes = {
        "means": (count, 3),
        "scales": (count, 3),
        "quats": (count, 4),
        "opacities": (count,),
        "sh0": (count, 1, 3),
        "shN": (count, (sh_degree + 1) ** 2 - 1, 3),
    }
    return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}


def result_bytes(count: int, sh_degree: int) -> int:
    """Return the size in bytes of what `allocate` returns."""
    return 4 * count * (11 + 3 * (sh_degree + 1) ** 2)


def warn(text: str) -> None:
    """Issue a Python warning; the default for `note`."""
    warnings.warn(text, stacklevel=3)


def pieces(count: int, rows: int = ROWS) -> Iterator[slice]:
    """Yield slices of at most `rows` that cover `count` rows in order."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading; raises UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def quantize(values: np.ndarray, levels: int) -> np.ndarray:
    """Return the integers 0 ... levels nearest to `levels` times values in [0, 1]; others are clipped."""
    return np.rint(np.clip(values, 0, 1) * np.float64(levels)).astype(np.uint32)


def logit(opacities: np.ndarray) -> np.ndarray:
    """Return logits of opacities in [0, 1] that were stored in 8 bits; always finite."""
    clipped = np.clip(opacities, HALF_STEP, 1 - HALF_STEP)
    return np.log(clipped / (1 - clipped))


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index [N] of the largest component of unit quaternions [N, 4], and the other three [N, 3].

    The sign is chosen so that the largest is positive; the others keep their order and lie within +-1 /
    sqrt(2).
    """
    largest = np.abs(quats).argmax(1)
    is_largest = np.arange(4) == largest[:, None]  # [N, 4]
    sign = np.where(quats[is_largest] < 0, -1.0, 1.0)
    return largest, quats[~is_largest].reshape(-1, 3) * sign[:, None]


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return quaternions [N, 4] from the results of `smallest_three`."""
    quats = np.empty((len(others), 4), others.dtype)
    is_largest = np.arange(4) == largest[:, None]
    quats[~is_largest] = others.ravel()
    quats[is_largest] = np.sqrt(np.maximum(0, 1 - (others * others).sum(1)))
    return quats
