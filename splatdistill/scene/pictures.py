"""Input photographs of one object: reading, background removal, and the camera that took them.

A file is opened as one of FORMATS only, whatever its name says: some of Pillow's other readers start a
program.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.scene.cameras import Cameras

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
LARGEST = 2**26  # pixels of a file: a photograph has 12 to 50 million
LONGEST = 1024  # pixels a side that are kept; no teacher reads more
TOLERANCE = 30.0  # largest deviation of a plain background from its color, summed, of 3 * 255
EDGE = 0.75  # smallest share of the edge that must be background for its removal
CLEAR = 250  # of 255: an alpha channel that is never below it is ignored
SEEN = (0.002, 0.98)  # range of the share of the picture that the object covers
WHITE = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "F": 1.0}  # white level by mode
UPRIGHT = {  # transform to upright of each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference picture of an object: rgb [3, H, W] in [0, 1], alpha [1, H, W], and its single camera."""

    rgb: Tensor
    alpha: Tensor
    camera: Cameras

    def before(self, background: Tensor) -> Tensor:
        """Composite the object onto backgrounds [V, 3]: pictures [V, 3, H, W]."""
        behind = background[:, :, None, None].to(self.rgb)
        return self.alpha * self.rgb + (1.0 - self.alpha) * behind

    def resized(self, size: int) -> Reference:
        """Return the same picture with `size` pixels a side."""
        if self.rgb.shape[-1] == size:
            return self
        shrink = self.rgb.shape[-1] > size
        alpha = F.interpolate(self.alpha[None], (size, size), mode="bilinear", antialias=shrink)[0]
        weighted = F.interpolate(
            (self.rgb * self.alpha)[None], (size, size), mode="bilinear", antialias=shrink
        )
        return Reference(weighted[0] / alpha.clamp(min=1e-4), alpha, self.camera.resized(size, size))

    def save(self, path: Path) -> None:
        """Write an RGBA file from which `read_picture` reads the same."""
        rgba = to_uint8(torch.cat([self.rgb, self.alpha]).permute(1, 2, 0)).cpu().numpy()
        with atomic_write(path) as file:
            Image.fromarray(rgba).save(file, "PNG")

    def to(self, device: torch.device | str) -> Reference:
        """Return the same picture on another device."""
        return Reference(self.rgb.to(device), self.alpha.to(device), self.camera.to(device))


def to_uint8(values: Tensor) -> Tensor:
    """Convert values in [0, 1] to uint8, rounded; values outside are clipped."""
    return values.clamp(0, 1).mul(255).round().to(torch.uint8)


def read_picture(path: Path) -> tuple[Tensor, Tensor]:
    """Read rgb [3, S, S] in [0, 1] and alpha [1, S, S] from a picture file, padded to a square.

    Without an alpha channel, the plain background connected to the edge is removed. Larger pictures are
    shrunk to LONGEST pixels a side first.

    Raises:
        UserError: not a picture, too large, no plain background, or nothing in it.
    """
    picture = open_picture(path)
    rgba = np.asarray(picture)
    if rgba[..., 3].min() >= CLEAR:
        rgba = np.asarray(without_background(picture, path))
    covered = rgba[..., 3].mean() / 255.0  # before padding
    if not SEEN[0] < covered < SEEN[1]:
        shows = "nothing" if covered < 0.5 else "no background"
        raise UserError(
            f"{path} shows {shows} that could be told apart; expected one thing on a transparent or plain "
            "background, with a margin"
        )
    side = max(picture.size)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - picture.height) // 2, (side - picture.width) // 2
    square[top : top + picture.height, left : left + picture.width] = rgba
    pixels = torch.from_numpy(square).permute(2, 0, 1).float() / 255.0
    return pixels[:3], pixels[3:]


def open_picture(path: Path) -> Image.Image:
    """Open a picture file as upright RGBA, at most LONGEST pixels a side; of several frames, the first.

    Raises:
        UserError: none of FORMATS, damaged, or more than LARGEST pixels.
    """
    if not path.is_file():
        raise UserError(f"there is no picture {path}; give a PNG, JPEG, WebP, BMP, TIFF or GIF file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on sizes and tags; errors are raised below
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > LARGEST:
                    sides = f"{opened.width}x{opened.height} pixels; at most {LARGEST / 1e6:.0f} million"
                    raise UserError(f"the picture {path} has {sides}: shrink it first")
                opened.draft(None, (LONGEST, LONGEST))  # a JPEG is decoded at half or less where that does
                opened.load()
                picture = to_rgba(opened)
                picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
                return turned_upright(picture, opened)
    except UserError:
        raise
    except Exception as error:  # any exception of a decoder on a damaged file
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"cannot read the picture {path}: {reason}; expected a PNG, JPEG, WebP, BMP, TIFF or GIF"
        ) from error


def to_rgba(picture: Image.Image) -> Image.Image:
    """Convert a loaded picture of any mode to RGBA; raises ValueError when its white level is undefined."""
    mode = "I;16" if picture.mode == "I" and picture.format == "PNG" else picture.mode  # older Pillow's
    if mode == "I" or mode == "F":
        low, high = picture.getextrema()
        if mode == "I" or not 0.0 <= low <= high <= 1.0:  # pyright: ignore[reportOperatorIssue]
            raise ValueError("32-bit values without an agreed white; save it with 8 or 16 bits a channel")
    if mode not in WHITE:
        direct = mode not in ("La", "RGBX")
        return picture.convert("RGBA") if direct else picture.convert("RGB").convert("RGBA")
    values = np.asarray(picture)
    gray = (values.astype(np.float32) * (255.0 / WHITE[mode])).round().astype(np.uint8)
    hidden = values == picture.info.get("transparency", -1)
    alpha = Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255)))
    return Image.merge("RGBA", [*[Image.fromarray(gray)] * 3, alpha])


def turned_upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """Apply the orientation in the file's EXIF data, if it has any."""
    try:
        turn = UPRIGHT.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata of a valid picture
        turn = None
    return picture if turn is None else picture.transpose(turn)


def without_background(picture: Image.Image, path: Path) -> Image.Image:
    """Make transparent what is connected to the edge of an opaque picture and has the edge's color.

    Raises:
        UserError: less than EDGE of its edge is background, so there is no plain one.
    """
    rgb = np.asarray(picture.convert("RGB")).astype(np.int16)  # [H, W, 3]
    edge = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])  # [E, 3]
    colors, counts = np.unique(edge, axis=0, return_counts=True)
    near = np.abs(edge - colors[counts.argmax()]).sum(-1) <= TOLERANCE
    plain = np.median(edge[near], axis=0)  # the median of a noisy background, not its most frequent color
    outside = joined_to_edge(np.abs(rgb - plain).sum(-1) <= TOLERANCE)
    share = np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]]).mean()
    if share < EDGE:
        raise UserError(
            f"{path} has no plain background (one color along {share:.0%} of its edge; expected {EDGE:.0%}): "
            "cut the thing out and save it as a PNG with transparency, or take it before one even color"
        )
    result = picture.copy()
    result.putalpha(Image.fromarray(np.where(outside, np.uint8(0), np.uint8(255))))
    return result


def joined_to_edge(free: np.ndarray) -> np.ndarray:
    """Return the free pixels [H, W] that a 4-connected path of free pixels joins to the edge.

    Runs of free pixels in a row are nodes; runs that touch take the lower number, until none changes.
    """
    free = np.pad(free, 1, constant_values=True)  # a padded frame: its first run, number 0, surrounds all
    starts = free.copy()
    starts[:, 1:] &= ~free[:, :-1]
    run = np.cumsum(starts).reshape(free.shape) - 1
    touching = free[1:] & free[:-1]
    above, below = run[:-1][touching], run[1:][touching]
    lowest = np.arange(starts.sum())
    while True:
        a, b = lowest[above], lowest[below]
        if (a == b).all():
            return (free & (lowest[run] == 0))[1:-1, 1:-1]
        lower = np.minimum(a, b)
        np.minimum.at(lowest, a, lower)
        np.minimum.at(lowest, b, lower)
        lowest = lowest[lowest]
