"""Pictures of one thing, from files: where the thing is, and from where it was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.scene.cameras import Cameras

TOLERANCE = 10.0  # of 255: how far a plain background strays from the colour of its border
LONGEST = 4096  # pixels a side that are read


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture of a thing: rgb [3, H, W] in [0, 1], its alpha [1, H, W], and its camera (one)."""

    rgb: Tensor
    alpha: Tensor
    camera: Cameras

    def before(self, background: Tensor) -> Tensor:
        """The pictures [V, 3, H, W] of the thing before backgrounds [V, 3]."""
        behind = background[:, :, None, None].to(self.rgb)
        return self.alpha * self.rgb + (1.0 - self.alpha) * behind

    def resized(self, size: int) -> Reference:
        """The same picture with `size` pixels a side."""
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
        rgba = torch.cat([self.rgb, self.alpha]).permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
        with atomic_write(path) as file:
            Image.fromarray(rgba).save(file, "PNG")

    def to(self, device: torch.device | str) -> Reference:
        """The same on another device."""
        return Reference(self.rgb.to(device), self.alpha.to(device), self.camera.to(device))


def read_picture(path: Path) -> tuple[Tensor, Tensor]:
    """The rgb [3, S, S] in [0, 1] and the alpha [1, S, S] of a picture file, made square by clear margins.

    Without an alpha channel of its own, the plain background that touches the border is taken away. Raises
    UserError for what is not a picture, is too large, or shows nothing.
    """
    try:
        with Image.open(path) as opened:
            if max(opened.size) > LONGEST:
                raise UserError(f"{path}: {opened.size[0]}x{opened.size[1]} pixels; at most {LONGEST} a side")
            transparent = opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"cannot read the picture {path}: {reason}; expected a PNG, JPEG or WebP") from error
    if not transparent or picture.getchannel("A").getextrema()[0] == 255:
        picture = without_background(picture)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 4)
    rgba = pixels.permute(2, 0, 1).float() / 255.0
    covered = rgba[3].mean().item()
    if not 0.002 < covered < 0.98:
        shows = "nothing" if covered < 0.5 else "no background"
        raise UserError(
            f"{path} shows {shows} that could be told apart; expected one thing on a transparent or plain "
            "background, with a margin"
        )
    return rgba[:3], rgba[3:]


def without_background(picture: Image.Image) -> Image.Image:
    """The picture without what joins the border in the border's most frequent colour."""
    rgb = picture.convert("RGB")
    width, height = rgb.size
    border = [(x, y) for x in range(width) for y in (0, height - 1)]
    border += [(x, y) for y in range(height) for x in (0, width - 1)]
    colours = [rgb.getpixel(place) for place in border]
    plain: Any = max(set(colours), key=colours.count)
    marked = Image.new("RGB", (width + 2, height + 2), plain)  # a frame, so that one fill reaches all around
    marked.paste(rgb, (1, 1))
    key = next(c for c in ((255, 0, 255), (0, 255, 0), (1, 2, 3)) if _distance(c, plain) > 3 * TOLERANCE)
    ImageDraw.floodfill(marked, (0, 0), key, thresh=3 * TOLERANCE)
    outside = torch.frombuffer(bytearray(marked.tobytes()), dtype=torch.uint8).view(height + 2, width + 2, 3)
    alpha = (outside != torch.tensor(key, dtype=torch.uint8)).any(-1)[1:-1, 1:-1]
    result = rgb.convert("RGBA")
    result.putalpha(Image.fromarray((alpha * 255).byte().numpy()))
    return result


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """What ImageDraw.floodfill compares with its threshold."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
