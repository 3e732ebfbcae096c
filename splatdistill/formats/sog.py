"""PlayCanvas' .sog, version 2: a zip of lossless WebP pictures, one pixel a Gaussian, and meta.json.

Centers in 16 bits of sign(x) log(1 + |x|); quaternions as three bytes and the index of the largest component;
log scales and colors as bytes that index a codebook; opacities in bytes; the higher SH bands as an index
into a palette of at most 65,536 rows, whose entries index a codebook again. -Y is up, as in INRIA's scenes.
"""

import io
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.nn import ParameterDict

from splatdistill import __version__
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.compressed_ply import morton_order
from splatdistill.formats.packing import (
    MAX_RESULT_BYTES,
    Note,
    allocate,
    from_smallest_three,
    logit,
    opened,
    pieces,
    quantize,
    result_bytes,
    smallest_three,
    to_splats,
    warn,
)
from splatdistill.formats.palette import palette
from splatdistill.scene.gaussians import from_arrays

CODES = 256  # entries of a codebook
PALETTE_BITS = 16
PALETTE_COLUMNS = 64  # palette rows beside each other in a picture
QUAT_TAG = 252  # plus the index of the largest component
MAX_META_BYTES = 1 << 22
SPARE_PIXELS = 1 << 16  # that a picture may have beyond twice those that are used
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of the members: equal scenes give equal bytes


def write_sog(path: str | Path, gaussians: ParameterDict, comments: dict[str, str] | None = None) -> int:
    """Write a scene in Morton order and return how many Gaussians `storable` left out.

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
    color_codes, colors = codebook(splats.sh0)
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
            "codebook": _short(colors),
            "files": [add("sh0", np.column_stack([color_codes, quantize(splats.opacities, 255)]))],
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
    """Round numbers to the digits that a float32 holds."""
    return [float(f"{value:.8g}") for value in values]


def codebook(values: np.ndarray, iterations: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Quantize values to byte indices into 256 numbers close to them; k-means in one dimension.

    It starts from an even grid, so that rare large values are kept, and moves each number to the mean of the
    values nearest to it.
    """
    flat = values.reshape(-1).astype(np.float64)
    centers = np.linspace(flat.min(), flat.max(), CODES)
    for _ in range(iterations):
        codes = np.searchsorted((centers[1:] + centers[:-1]) / 2, flat)
        members = np.bincount(codes, minlength=CODES)
        means = np.bincount(codes, flat, CODES) / np.maximum(members, 1)
        centers = np.sort(np.where(members > 0, means, centers))
    codes = np.searchsorted((centers[1:] + centers[:-1]) / 2, flat)
    return codes.reshape(values.shape).astype(np.uint8), centers


def read_sog(path: str | Path, note: Note = warn) -> tuple[ParameterDict, dict[str, str]]:
    """Read a scene of version 2, and the comments in meta.json; note is not called, as nothing is dropped.

    Memory: that of the result, at most 4 GiB, and four bytes a Gaussian for each of up to seven images.

    Raises:
        UserError: a damaged file, or images much larger than their Gaussians need.
    """
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            meta = _Meta(archive, path)
            count, degree = meta.count, meta.degree
            if (needed := result_bytes(count, degree)) > MAX_RESULT_BYTES:
                raise UserError(
                    f"{path} claims {count} Gaussians, which take {needed / 2**30:.1f} GiB; expected at most "
                    f"{MAX_RESULT_BYTES >> 30}"
                )
            decoders = [_decode_means, _decode_rotations, _decode_scales, _decode_colors]
            decoders += [_decode_harmonics] if degree else []
            arrays: dict[str, np.ndarray] = {}
            for decoder in decoders:
                decode = decoder(meta)
                arrays = arrays or allocate(count, degree)  # not before a picture was as large as it claims
                for piece in pieces(count):
                    for name, values in decode(piece).items():
                        arrays[name][piece] = values.reshape(arrays[name][piece].shape)
            return from_arrays(**arrays), meta.comments
    except UserError:
        raise
    except BROKEN_ZIP as error:
        raise UserError(
            f"{path} is no whole .sog ({' '.join(str(error).split())[:120]}); copy it again"
        ) from error


class _Meta:
    """The contents of meta.json and the images it names; raises UserError for what is missing."""

    def __init__(self, archive: zipfile.ZipFile, path: str | Path) -> None:
        self.archive, self.path = archive, path
        text = self._member("meta.json", MAX_META_BYTES)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        self.document: dict[str, Any] = document if isinstance(document, dict) else {}
        if self.document.get("version") != 2:
            raise UserError(f"{path} is no .sog of version 2; convert it with PlayCanvas' splat-transform")
        self.count = self._whole(self.document, "count", 1, (1 << 32) - 1)
        shN = self.document.get("shN")
        self.degree = self._whole(shN, "bands", 1, 3) if isinstance(shN, dict) else 0
        self.entries = self._whole(shN, "count", 1, 1 << PALETTE_BITS) if isinstance(shN, dict) else 0
        asset = self.document.get("asset")
        extras = asset.get("extras") if isinstance(asset, dict) else None
        self.comments = (
            {k: v for k, v in extras.items() if isinstance(v, str)} if isinstance(extras, dict) else {}
        )

    def _whole(self, part: dict[str, Any], name: str, low: int, high: int) -> int:
        value = part.get(name)
        if type(value) is not int or not low <= value <= high:
            raise UserError(
                f"{self.path} has {name} {str(value)[:40]}; expected a whole number, {low} to {high}"
            )
        return value

    def numbers(self, part: str, name: str, length: int) -> np.ndarray:
        """Return a list of finite numbers of meta.json; for length 0, up to 256 numbers, padded."""
        values = self._part(part).get(name)
        lengths = range(1, CODES + 1) if not length else (length,)
        if (
            not isinstance(values, list)
            or len(values) not in lengths
            or not all(type(value) in (int, float) and abs(value) < 1e30 for value in values)
        ):
            raise UserError(f"{self.path} has no sound {name} of {part} in meta.json; copy it again")
        return np.resize(np.array(values, np.float64), length or CODES)

    def pixels(self, part: str, index: int, count: int, width: int | None = None) -> np.ndarray:
        """Return an image's pixels [at least count, 4]; raises UserError when it does not have this width."""
        files = self._part(part).get("files")
        if not isinstance(files, list) or len(files) <= index or not isinstance(files[index], str):
            raise UserError(f"{self.path} names no picture of {part} in meta.json; copy it again")
        content = self._member(files[index], 8 * count + (1 << 20))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is checked here
                opened_picture = Image.open(io.BytesIO(content), formats=("WEBP", "PNG"))
            with opened_picture as picture:
                size = picture.width * picture.height
                if not count <= size <= 2 * count + SPARE_PIXELS or width not in (None, picture.width):
                    raise UserError(
                        f"{self.path} has {files[index][:60]} of {picture.width} x {picture.height} pixels, "
                        f"which do not fit {count}; copy it again"
                    )
                return np.asarray(picture.convert("RGBA")).reshape(-1, 4)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.path} has a damaged picture {files[index][:60]!r}; copy it again"
            ) from error

    def _part(self, name: str) -> dict[str, Any]:
        part = self.document.get(name)
        if not isinstance(part, dict):
            raise UserError(f"{self.path} has no {name} in meta.json; copy it again")
        return part

    def _member(self, name: str, most: int) -> bytes:
        try:
            info = self.archive.getinfo(name)
        except KeyError:
            raise UserError(f"{self.path} holds no {name[:60]!r}; expected a .sog of version 2") from None
        if info.file_size > most:
            raise UserError(
                f"{self.path} holds {name[:60]!r} of {info.file_size} bytes; expected at most {most}"
            )
        return self.archive.read(info)


Decoder = Callable[[slice], dict[str, np.ndarray]]  # the values of some Gaussians, by their names


def _decode_means(meta: _Meta) -> Decoder:
    low, high = meta.numbers("means", "mins", 3), meta.numbers("means", "maxs", 3)
    lower, upper = (meta.pixels("means", index, meta.count) for index in (0, 1))

    def decode(piece: slice) -> dict[str, np.ndarray]:
        steps = lower[piece, :3] + 256.0 * upper[piece, :3]
        bent = low + (high - low) * steps / 65535
        with np.errstate(over="ignore"):
            return {"means": (np.sign(bent) * np.expm1(np.abs(bent))).astype(np.float32)}

    return decode


def _decode_rotations(meta: _Meta) -> Decoder:
    pixels = meta.pixels("quats", 0, meta.count)
    if (pixels[: meta.count, 3] < QUAT_TAG).any():
        raise UserError(f"{meta.path} has rotations of an unknown kind; convert it with splat-transform")

    def decode(piece: slice) -> dict[str, np.ndarray]:
        others = (pixels[piece, :3] / 255.0 - 0.5) * math.sqrt(2)
        return {"quats": from_smallest_three(pixels[piece, 3] - QUAT_TAG, others)}

    return decode


def _decode_scales(meta: _Meta) -> Decoder:
    codebook_, pixels = meta.numbers("scales", "codebook", 0), meta.pixels("scales", 0, meta.count)
    return lambda piece: {"scales": codebook_[pixels[piece, :3]]}


def _decode_colors(meta: _Meta) -> Decoder:
    codebook_, pixels = meta.numbers("sh0", "codebook", 0), meta.pixels("sh0", 0, meta.count)
    return lambda piece: {"sh0": codebook_[pixels[piece, :3]], "opacities": logit(pixels[piece, 3] / 255.0)}


def _decode_harmonics(meta: _Meta) -> Decoder:
    coefficients = meta.degree * (meta.degree + 2)
    codebook_, width = meta.numbers("shN", "codebook", 0), PALETTE_COLUMNS * coefficients
    rows = -(-meta.entries // PALETTE_COLUMNS) * PALETTE_COLUMNS
    entries = meta.pixels("shN", 0, rows * coefficients, width)[:, :3]
    entries = entries[: rows * coefficients].reshape(rows, coefficients, 3)
    labels = meta.pixels("shN", 1, meta.count)
    index = labels[: meta.count, 0].astype(np.int64) + 256 * labels[: meta.count, 1].astype(np.int64)
    if index.max() >= rows:
        raise UserError(f"{meta.path} refers to SH rows that it does not have; copy it again")
    return lambda piece: {"shN": codebook_[entries[index[piece]]]}
