"""What a run shows of itself: a contact sheet, a turntable, and one line of metrics a step."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.cameras import Cameras, turntable
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.formats.ply import read_ply
from splatdistill.rendering import render

WHITE = (1.0, 1.0, 1.0)


@torch.no_grad()
def render_views(gaussians: ParameterDict, cameras: Cameras, background: Sequence[float] = WHITE) -> Tensor:
    """Images [V, H, W, 3] uint8 on the CPU, rendered one view at a time to bound the memory.

    background: a colour in [0, 1].
    """
    colour = torch.tensor(background, dtype=torch.float32)
    images = [render(gaussians, camera, colour).rgb[0].clamp(0, 1).mul(255).round() for camera in cameras]
    return torch.stack(images).to("cpu", torch.uint8)


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
    """Write a PNG of `views` views all around, `columns` in a row, the front at the top left.

    size in pixels of one view, angles in degrees, distance in world units. Raises UserError when the file
    cannot be written.
    """
    cameras = turntable(views, elevation_deg, distance, fov_deg, size)
    images = render_views(gaussians, cameras, background)  # [views, size, size, 3]
    rows = math.ceil(views / columns)
    sheet = (torch.tensor(background) * 255).round().to(torch.uint8).repeat(rows * size, columns * size, 1)
    for i, image in enumerate(images):
        top, left = i // columns * size, i % columns * size
        sheet[top : top + size, left : left + size] = image
    with atomic_write(path) as file:
        Image.fromarray(sheet.numpy()).save(file, format="PNG")


def turntable_webp(
    gaussians: ParameterDict,
    path: str | Path,
    frames: int = 60,
    size: int = 256,
    background: Sequence[float] = WHITE,
    *,
    elevation_deg: float = 15.0,
    distance: float = 3.2,
    fov_deg: float = 40.0,
    seconds: float = 4.0,
) -> None:
    """Write an animated WebP that turns once around the object in `seconds` and loops.

    Units as in `contact_sheet`. Raises UserError when the file cannot be written.
    """
    cameras = turntable(frames, elevation_deg, distance, fov_deg, size)
    first, *others = [
        Image.fromarray(image.numpy()) for image in render_views(gaussians, cameras, background)
    ]
    with atomic_write(path) as file:
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=round(1000 * seconds / frames),
            loop=0,
            quality=85,
            method=2,  # half the time of the default for a few per cent of size
        )


def write_report(
    gaussians: ParameterDict,
    directory: str | Path,
    *,
    size: int = 256,
    frames: int = 60,
    elevation_deg: float = 15.0,
    distance: float = 3.2,
    fov_deg: float = 40.0,
    background: Sequence[float] = WHITE,
) -> None:
    """Write preview.png (8 views) and turntable.webp of a scene into a folder; options as above."""
    camera: dict[str, Any] = {"elevation_deg": elevation_deg, "distance": distance, "fov_deg": fov_deg}
    contact_sheet(gaussians, Path(directory) / "preview.png", 8, size, background, **camera)
    turntable_webp(gaussians, Path(directory) / "turntable.webp", frames, size, background, **camera)


def runs_sheet(splats: Sequence[Path], size: int = 96, columns: int = 4) -> Image.Image:
    """Four views of each splat file beside each other, so many splats in a row; size in pixels of a view."""
    rows = []
    for splat in splats:
        views = render_views(read_ply(splat)[0], turntable(4, 15.0, 3.0, 40.0, size))
        rows.append(torch.cat(list(views), 1))  # [size, 4 size, 3]
    rows += [torch.full_like(rows[0], 255)] * (-len(rows) % columns)
    lines = [torch.cat(rows[k : k + columns], 1) for k in range(0, len(rows), columns)]
    return Image.fromarray(torch.cat(lines, 0).numpy())


class MetricsWriter:
    """Appends one JSON object a line to a file: a line is on its way to the disk when `write` returns.

    Opening keeps the lines of steps before resume_step and drops the others, with a torn last one: a resumed
    run repeats those steps; 0 starts the file anew. Raises UserError when the file cannot be written.
    """

    def __init__(self, path: str | Path, resume_step: int = 0) -> None:
        path = Path(path)
        kept = _lines_before(path, resume_step) if resume_step > 0 and path.exists() else []
        with atomic_write(path) as file:
            file.writelines(kept)
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - open for the whole run, see close()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another output folder") from error

    def write(self, step: int, **values: float | int | str | None) -> None:
        """Append the values of a step; numbers that are not finite, which JSON lacks, become null."""
        record: dict[str, Any] = {"step": step}
        for name, value in values.items():
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines_before(path: Path, step: int) -> list[bytes]:
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", step) < step:
            kept.append(line)
    return kept
