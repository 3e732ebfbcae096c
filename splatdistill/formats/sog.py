"""PlayCanvas' .sog, version 2: a zip of lossless WebP pictures, one pixel a Gaussian, and meta.json.

Centres in 16 bits of sign(x) log(1 + |x|); quaternions as three bytes and the index of the largest component;
log scales and colours as bytes that index a codebook; opacities in bytes; the higher SH bands as an index
into a palette of at most 65,536 rows, whose entries index a codebook again. -Y is up, as in INRIA's scenes.
"""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.nn import ParameterDict

from splatdistill import __version__
from splatdistill.files import atomic_write
from splatdistill.formats.compressed_ply import morton_order
from splatdistill.formats.packing import quantize, smallest_three, to_splats

CODES = 256  # entries of a codebook
PALETTE_BITS = 16
PALETTE_COLUMNS = 64  # palette rows beside each other in a picture
QUAT_TAG = 252  # plus the index of the largest component
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of the members: equal scenes give equal bytes


def write_sog(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene in Morton order and return how many Gaussians were left out because they are not finite.

    comments go to meta.json. Raises UserError when nothing is left or the file cannot be written.
    """
    splats, dropped = to_splats(gaussians)
    splats = splats.select(morton_order(splats.means))
    count, coefficients = splats.shN.shape[:2]
    side = math.ceil(math.sqrt(count))
    pictures: dict[str, np.ndarray] = {}

    def add(name: str, columns: np.ndarray, width: int = side) -> str:
        pixels = np.full((-(-len(columns) // width) * width, 4), 255, np.uint8)
        pixels[: len(columns), : columns.shape[1]] = columns
        pictures[f"{name}.webp"] = pixels.reshape(-1, width, 4)
        return f"{name}.webp"

    bent = np.sign(splats.means) * np.log1p(np.abs(splats.means).astype(np.float64))
    low, high = bent.min(0), bent.max(0)
    steps = quantize((bent - low) / np.where(high > low, high - low, 1.0), 65535)
    largest, others = smallest_three(splats.quats.astype(np.float64))
    rotations = np.column_stack([quantize(others * math.sqrt(0.5) + 0.5, 255), QUAT_TAG + largest])
    scale_codes, scales = codebook(splats.log_scales)
    colour_codes, colours = codebook(splats.sh0)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"splatdistill {__version__}", **({"extras": comments} if comments else {})},
        "count": count,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": [add("means_l", steps & 255), add("means_u", steps >> 8)],
        },
        "scales": {"codebook": _short(scales), "files": [add("scales", scale_codes)]},
        "quats": {"files": [add("quats", rotations)]},
        "sh0": {
            "codebook": _short(colours),
            "files": [add("sh0", np.column_stack([colour_codes, quantize(splats.opacities, 255)]))],
        },
    }
    if coefficients:
        labels, rows = palette(splats.shN.reshape(count, -1), PALETTE_BITS)
        codes, values = codebook(rows)
        meta["shN"] = {
            "count": len(rows),
            "bands": math.isqrt(coefficients),
            "codebook": _short(values),
            "files": [
                add("shN_centroids", codes.reshape(-1, 3), PALETTE_COLUMNS * coefficients),
                add("shN_labels", np.column_stack([labels & 255, labels >> 8, np.zeros_like(labels)])),
            ],
        }
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("meta.json", EPOCH), json.dumps(meta, allow_nan=False))
        for name, pixels in pictures.items():
            packed = io.BytesIO()
            Image.fromarray(pixels).save(packed, "WEBP", lossless=True, exact=True)
            archive.writestr(zipfile.ZipInfo(name, EPOCH), packed.getvalue())
    return dropped


def _short(values: np.ndarray) -> list[float]:
    """Numbers with the digits that a float32 holds."""
    return [float(f"{value:.8g}") for value in values]


def codebook(values: np.ndarray, iterations: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, shaped as the values, that index 256 numbers close to them; k-means in one dimension.

    It starts from an even grid, so that rare large values are kept, and moves each number to the mean of what
    is nearest to it.
    """
    flat = values.reshape(-1).astype(np.float64)
    centres = np.linspace(flat.min(), flat.max(), CODES)
    for _ in range(iterations):
        codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat)
        members = np.bincount(codes, minlength=CODES)
        means = np.bincount(codes, flat, CODES) / np.maximum(members, 1)
        centres = np.sort(np.where(members > 0, means, centres))
    codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat)
    return codes.reshape(values.shape).astype(np.uint8), centres


def palette(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] into at most 2^bits rows close to those given [N, D]; exact where that many are enough.

    Median cut: groups of equal size are split `bits` times where they are widest; a group becomes its mean.
    """
    distinct, labels = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= 1 << bits:
        return labels.reshape(-1), distinct
    groups = np.resize(
        np.arange(len(rows)), (1, -(-len(rows) >> bits) << bits)
    )  # some rows twice, to come out even
    for _ in range(bits):
        members = rows[groups]  # [G, M, D]
        widest = members.var(1).argmax(1)  # [G]
        order = np.take_along_axis(members, widest[:, None, None], 2)[:, :, 0].argsort(1)
        groups = np.take_along_axis(groups, order, 1).reshape(2 * len(groups), -1)
    labels = np.empty(len(rows), np.int64)
    labels[groups] = np.arange(len(groups))[:, None]
    return labels, rows[groups].mean(1)
