"""Still images of splats: contact sheets, filmstrips and comparisons."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.config.schema import ReportConfig
from splatdistill.files import atomic_write
from splatdistill.formats.ply import read_ply
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, turntable
from splatdistill.scene.pictures import to_uint8
from splatdistill.scene.rendering import render

WHITE = (1.0, 1.0, 1.0)
LABEL = 22  # height in pixels of a label


def render_views(gaussians: ParameterDict, cameras: Cameras, background: Sequence[float] = WHITE) -> Tensor:
    """Render images [V, H, W, 3] uint8 on the CPU, one view at a time to bound the memory.

    background: a color in [0, 1].
    """
    color = torch.tensor(background, dtype=torch.float32)
    with torch.no_grad():
        images = [to_uint8(render(gaussians, camera, color).rgb[0]) for camera in cameras]
    return torch.stack(images).cpu()


def contact_sheet(
    gaussians: ParameterDict,
    path: str | Path,
    views: int = 8,
    size: int = 256,
    background: Sequence[float] = WHITE,
    *,
    columns: int = 4,
    elevation_deg: float = 15.0,
    distance: float = 3.2,
    fov_deg: float = 40.0,
) -> None:
    """Write a PNG of a turntable, the front view at the top left.

    Args:
        gaussians: the scene.
        path: output file.
        views: number of views.
        size: width and height of a view in pixels.
        background: color in [0, 1].
        columns: views in a row.
        elevation_deg: of the cameras.
        distance: of the cameras, in world units.
        fov_deg: of the cameras.

    Raises:
        UserError: the file cannot be written.
    """
    cameras = turntable(views, elevation_deg, distance, fov_deg, size)
    images = render_views(gaussians, cameras, background)  # [views, size, size, 3]
    rows = math.ceil(views / columns)
    sheet = to_uint8(torch.tensor(background)).repeat(rows * size, columns * size, 1)
    for i, image in enumerate(images):
        top, left = i // columns * size, i % columns * size
        sheet[top : top + size, left : left + size] = image
    with atomic_write(path) as file:
        Image.fromarray(sheet.numpy()).save(file, format="PNG")


def filmstrip(scenes: Sequence[tuple[str, ParameterDict]], path: str | Path, look: ReportConfig) -> None:
    """Write a PNG of labeled scenes in one row from the same camera, at half the report's size.

    Raises UserError when the file cannot be written.
    """
    size = max(look.size // 2, 1)
    camera = turntable(1, look.elevation_deg, look.distance, look.fov_deg, size)
    pictures = [render_views(scene, camera, look.background)[0].numpy() for _, scene in scenes]
    strip = Image.new("RGB", (size * len(scenes), size + LABEL), "white")
    strip.paste(Image.fromarray(np.concatenate(pictures, 1)), (0, 0))
    pen = ImageDraw.Draw(strip)
    for i, (name, _) in enumerate(scenes):
        pen.text(((i + 0.5) * size, size + LABEL / 2), name, fill=(90, 90, 90), anchor="mm", font_size=12)
    with atomic_write(path) as file:
        strip.save(file, format="PNG")


def compare(before: ParameterDict, after: ParameterDict, path: Path, look: ReportConfig) -> None:
    """Write a PNG of four views of a splat, above the same views of its edited version.

    Raises UserError when the file cannot be written.
    """
    cameras = turntable(4, look.elevation_deg, look.distance, look.fov_deg, look.size)
    pictures = [render_views(scene, cameras, look.background) for scene in (before, after)]
    with atomic_write(path) as file:
        grid([list(row) for row in pictures]).save(file, format="PNG")


def runs_sheet(splats: Sequence[Path], size: int = 96, columns: int = 4) -> Image.Image:
    """Return an image of four views of each splat file.

    Args:
        splats: files to read.
        size: width and height of a view in pixels.
        columns: splats in a row.
    """
    cameras = turntable(4, *EVALUATION_VIEW, size)
    strips = [torch.cat(list(render_views(read_ply(splat)[0], cameras)), 1) for splat in splats]
    strips += [torch.full_like(strips[0], 255)] * (-len(strips) % columns)
    return grid([strips[k : k + columns] for k in range(0, len(strips), columns)])


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Join rows of images [H, W, 3] uint8 into one."""
    return Image.fromarray(torch.cat([torch.cat(list(row), 1) for row in rows], 0).numpy())
