"""The images and the report page of a finished run."""

import math
from pathlib import Path
from typing import Any

from torch.nn import ParameterDict

from splatdistill import __version__
from splatdistill.config.load import dump
from splatdistill.config.schema import Config
from splatdistill.files import atomic_write
from splatdistill.folder import (
    FILM,
    FILMSTRIP,
    METRICS,
    PREVIEW,
    REPORT,
    TURNTABLE,
    kept_scenes,
    read_metrics,
    step_of,
)
from splatdistill.formats.ply import read_ply
from splatdistill.media.films import write_mp4, write_webp
from splatdistill.media.page import report_page
from splatdistill.media.sheets import contact_sheet, filmstrip, render_views
from splatdistill.scene.cameras import turntable

SECONDS = 4.0  # of one turn


def write_report(gaussians: ParameterDict, directory: str | Path, config: Config) -> None:
    """Write preview.png, turntable.webp, filmstrip.png and report.html of a result into its folder.

    Also turntable.mp4 where there is an ffmpeg. Raises UserError when a file cannot be written.
    """
    folder, look = Path(directory), config.report
    camera: dict[str, Any] = {
        "elevation_deg": look.elevation_deg,
        "distance": look.distance,
        "fov_deg": look.fov_deg,
    }
    contact_sheet(gaussians, folder / PREVIEW, 8, look.size, look.background, **camera)
    around = turntable(look.frames, size=look.size, **camera)
    frames = list(render_views(gaussians, around, look.background).numpy())
    write_webp(folder / TURNTABLE, frames, SECONDS)
    write_mp4(folder / FILM, frames, look.frames / SECONDS)
    scenes = [(f"step {step_of(path)}", read_ply(path)[0]) for path in kept_scenes(folder)]
    filmstrip([*scenes, ("result", gaussians)], folder / FILMSTRIP, look)
    write_page(gaussians, folder, config)


def write_page(gaussians: ParameterDict, folder: Path, config: Config) -> None:
    """Write report.html from the images in the run's folder; raises UserError when it cannot be written."""
    look = config.report
    page = report_page(
        gaussians,
        title=config.prompt or Path(config.image.path).stem or "splat",
        facts=f"{config.method.name}, {config.steps} steps, seed {config.seed}, prior {config.prior.name}, "
        f"{len(gaussians['means'])} Gaussians, splatdistill {__version__}",
        settings=dump(config),
        records=read_metrics(folder / METRICS),
        turntable=(folder / TURNTABLE).read_bytes(),
        filmstrip=(folder / FILMSTRIP).read_bytes(),
        camera={
            "azimuth": 0.0,
            "elevation": math.radians(look.elevation_deg),
            "distance": look.distance,
            "fov": math.radians(look.fov_deg),
        },
        background=look.background,
    )
    with atomic_write(folder / REPORT) as file:
        file.write(page.encode())
