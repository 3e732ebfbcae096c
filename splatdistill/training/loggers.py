"""TensorBoard, Weights & Biases and intermediate images, as watchers of a run.

Both services implement one small protocol; an error in one is reported once, and the run continues.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from splatdistill.errors import UserError
from splatdistill.folder import TENSORBOARD, VALIDATION
from splatdistill.training.progress import Metrics, NullWatcher

if TYPE_CHECKING:
    import numpy as np
    from torch.nn import ParameterDict

    from splatdistill.config.schema import Config, ReportConfig
    from splatdistill.training.progress import RunResult

MOMENTS = 10  # number of times in a run at which images are kept


class Logger(Protocol):
    """The destination of a run's metrics and images."""

    def numbers(self, step: int, values: Metrics) -> None:
        """Log the metrics of a step."""
        ...

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Log an image [H, W, 3] uint8 of the scene after a step."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, module: Any, config: Config, out: Path) -> None:
        self._writer = module.SummaryWriter(str(out / TENSORBOARD))
        self._writer.add_text("prompt", config.prompt)

    def numbers(self, step: int, values: Metrics) -> None:
        """Log the metrics of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Log an image."""
        self._writer.add_image("validation", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


class WandB:
    """A run of the project "splatdistill"; wandb's own settings decide the rest (WANDB_MODE=offline)."""

    def __init__(self, module: Any, config: Config, out: Path) -> None:
        from splatdistill.config.load import plain

        self._module = module
        self._run = module.init(project="splatdistill", name=out.name, dir=str(out), config=plain(config))

    def numbers(self, step: int, values: Metrics) -> None:
        """Log the metrics of a step."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Log an image."""
        self._run.log({"validation": self._module.Image(pixels)}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


MakeLogger = Callable[["Config", Path], Logger]
LOGGERS: dict[str, tuple[str, Callable[[Any, Config, Path], Logger]]] = {  # package and class of each logger
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
}


def find_logger(name: str) -> MakeLogger:
    """Return the logger class of a name; raises UserError when its package is not installed."""
    module, make = LOGGERS[name]
    try:
        found = import_module(module)
    except ImportError as error:
        raise UserError(
            f"--log {name} needs the package {name} ({error}): pip install 'splatdistill[{name}]'"
        ) from error
    return lambda config, out: make(found, config, out)


class Logged(NullWatcher):
    """Passes a run's numbers, and pictures of its scene on the way, to a logger and to files.

    Args:
        scene: the Gaussians as they are now.
        config: of the run.
        out: its folder; pictures go to validation/step-N.png in it.
        views: how many, evenly around, of each picture; 0 for no pictures.
        make: makes the logger; None for none.
        tell: prints one line.
    """

    def __init__(
        self,
        scene: Callable[[], ParameterDict],
        config: Config,
        out: Path,
        views: int,
        make: MakeLogger | None,
        tell: Callable[[str], None],
    ) -> None:
        self._scene, self._config, self._out, self._views, self._tell = scene, config, out, views, tell
        self._logger: Logger | None = None
        if make is not None:
            self._guard(lambda: setattr(self, "_logger", make(config, out)))

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Log the metrics, and a picture when another tenth of the run is done."""
        steps = self._config.steps
        if self._logger is not None:
            logger = self._logger
            self._guard(lambda: logger.numbers(step, metrics))
        if self._views and step * MOMENTS // steps > (step - 1) * MOMENTS // steps:
            pixels = picture(self._scene(), self._views, self._config.report)
            write_picture(pixels, self._out / VALIDATION / f"step-{step:08d}.png")
            if self._logger is not None:
                logger = self._logger
                self._guard(lambda: logger.picture(step, pixels))

    def on_result(self, result: RunResult) -> None:
        """Close the logger."""
        if self._logger is not None:
            self._guard(self._logger.close)

    def _guard(self, job: Callable[[], object]) -> None:
        """Call a logger's package; after an error the run goes on without it."""
        try:
            job()
        except Exception as error:  # no error here may end the run
            self._logger = None
            line = " ".join(str(error).split())[:150]
            self._tell(f"no more logging: {type(error).__name__}: {line}; the run goes on")


def picture(gaussians: ParameterDict, views: int, look: ReportConfig) -> np.ndarray:
    """Render `views` views of a scene, evenly around, side by side: [H, views * H, 3] uint8."""
    import torch

    from splatdistill.media.sheets import render_views
    from splatdistill.scene.cameras import turntable

    cameras = turntable(views, look.elevation_deg, look.distance, look.fov_deg, look.size)
    return torch.cat(list(render_views(gaussians, cameras, look.background)), 1).numpy()


def write_picture(pixels: np.ndarray, path: Path) -> None:
    """Write a PNG; raises UserError when it cannot be written."""
    from PIL import Image

    from splatdistill.files import atomic_write

    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")
