"""What a run shows of itself: pictures, a page, and one line of metrics a step.

`python -m splatdistill.report RUN` makes them anew for a finished run. Everything heavy is imported where it
is needed, so help and mistakes answer at once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, exit_status, note
from splatdistill.errors import UserError
from splatdistill.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from torch.nn import ParameterDict

    from splatdistill.cameras import Cameras
    from splatdistill.config import Config, ReportConfig

WHITE = (1.0, 1.0, 1.0)
SECONDS = 4.0  # that a turn takes
FILE, COMPARED = "report.html", "before_after.png"
LABEL = 22  # pixels under a picture of the filmstrip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    parser = Parser(
        prog="python -m splatdistill.report",
        description="Make the pictures and the page of a finished run anew.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--version", action="version", version=f"splatdistill {__version__}")
    args = parser.parse_args(arguments)
    return exit_status(lambda: report(args.run), "interrupted; run it again for the rest")


def report(folder: Path) -> int:
    """Read a run and write its report; return the exit status."""
    for name in ("splat.ply", "config.yaml"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no finished run (no {name}); give the folder of one")
    from splatdistill.config import load
    from splatdistill.formats.ply import read_ply

    config = load(folder / "config.yaml")
    write_report(read_ply(folder / "splat.ply")[0], folder, config)
    note(f"{folder / FILE} shows the run; it is one file, to send or to keep")
    return 0


def render_views(gaussians: ParameterDict, cameras: Cameras, background: Sequence[float] = WHITE) -> Tensor:
    """Images [V, H, W, 3] uint8 on the CPU, rendered one view at a time to bound the memory.

    background: a colour in [0, 1].
    """
    import torch

    from splatdistill.rendering import render

    colour = torch.tensor(background, dtype=torch.float32)
    with torch.no_grad():
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
    import torch
    from PIL import Image

    from splatdistill.cameras import turntable

    cameras = turntable(views, elevation_deg, distance, fov_deg, size)
    images = render_views(gaussians, cameras, background)  # [views, size, size, 3]
    rows = math.ceil(views / columns)
    sheet = (torch.tensor(background) * 255).round().to(torch.uint8).repeat(rows * size, columns * size, 1)
    for i, image in enumerate(images):
        top, left = i // columns * size, i % columns * size
        sheet[top : top + size, left : left + size] = image
    with atomic_write(path) as file:
        Image.fromarray(sheet.numpy()).save(file, format="PNG")


def filmstrip(scenes: Sequence[tuple[str, ParameterDict]], path: str | Path, look: ReportConfig) -> None:
    """Write a PNG of scenes, each over its name, in one row from the same camera, half the report's size.

    Raises UserError when the file cannot be written.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from splatdistill.cameras import turntable

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


def write_report(gaussians: ParameterDict, directory: str | Path, config: Config) -> None:
    """Write a result's preview.png, turntable.webp, filmstrip.png and report.html into the folder of its run.

    turntable.mp4 as well, where there is an ffmpeg. Raises UserError when a file cannot be written.
    """
    from splatdistill.cameras import turntable
    from splatdistill.films import write_mp4, write_webp
    from splatdistill.formats.ply import read_ply

    folder, look = Path(directory), config.report
    camera: dict[str, Any] = {
        "elevation_deg": look.elevation_deg,
        "distance": look.distance,
        "fov_deg": look.fov_deg,
    }
    contact_sheet(gaussians, folder / "preview.png", 8, look.size, look.background, **camera)
    around = turntable(look.frames, size=look.size, **camera)
    frames = list(render_views(gaussians, around, look.background).numpy())
    write_webp(folder / "turntable.webp", frames, SECONDS)
    write_mp4(folder / "turntable.mp4", frames, look.frames / SECONDS)
    kept = sorted((folder / "checkpoints").glob("step-*.ply"))
    scenes = [(f"step {int(path.stem.removeprefix('step-'))}", read_ply(path)[0]) for path in kept]
    filmstrip([*scenes, ("result", gaussians)], folder / "filmstrip.png", look)
    write_page(gaussians, folder, config)


def write_page(gaussians: ParameterDict, folder: Path, config: Config) -> None:
    """Write report.html of a run whose pictures are in its folder; raises UserError when it cannot."""
    from splatdistill.config import dump
    from splatdistill.report_html import report_page

    look = config.report
    page = report_page(
        gaussians,
        title=config.prompt or Path(config.image.path).stem or "splat",
        facts=f"{config.method}, {config.steps} steps, seed {config.seed}, prior {config.prior.name}, "
        f"{len(gaussians['means'])} Gaussians, splatdistill {__version__}",
        settings=dump(config),
        records=read_metrics(folder / "metrics.jsonl"),
        turntable=(folder / "turntable.webp").read_bytes(),
        filmstrip=(folder / "filmstrip.png").read_bytes(),
        camera={
            "azimuth": 0.0,
            "elevation": math.radians(look.elevation_deg),
            "distance": look.distance,
            "fov": math.radians(look.fov_deg),
        },
        background=look.background,
    )
    with atomic_write(folder / FILE) as file:
        file.write(page.encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without lines that a crash tore; none where there is no such file."""
    lines = _lines_before(path, sys.maxsize) if path.is_file() else []
    return [json.loads(line) for line in lines]


def compare(before: ParameterDict, after: ParameterDict, path: Path, look: ReportConfig) -> None:
    """Write a PNG of four views of a splat, over the same views of what became of it.

    Raises UserError when the file cannot be written.
    """
    from splatdistill.cameras import turntable

    cameras = turntable(4, look.elevation_deg, look.distance, look.fov_deg, look.size)
    pictures = [render_views(scene, cameras, look.background) for scene in (before, after)]
    with atomic_write(path) as file:
        grid([list(row) for row in pictures]).save(file, format="PNG")


def runs_sheet(splats: Sequence[Path], size: int = 96, columns: int = 4) -> Image.Image:
    """Four views of each splat file beside each other, so many splats in a row; size in pixels of a view."""
    import torch

    from splatdistill.cameras import turntable
    from splatdistill.formats.ply import read_ply

    cameras = turntable(4, 15.0, 3.0, 40.0, size)
    strips = [torch.cat(list(render_views(read_ply(splat)[0], cameras)), 1) for splat in splats]
    strips += [torch.full_like(strips[0], 255)] * (-len(strips) % columns)
    return grid([strips[k : k + columns] for k in range(0, len(strips), columns)])


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of pictures [H, W, 3] uint8 as one."""
    import torch
    from PIL import Image

    return Image.fromarray(torch.cat([torch.cat(list(row), 1) for row in rows], 0).numpy())


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

    def __enter__(self) -> MetricsWriter:
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


if __name__ == "__main__":
    sys.exit(main())
