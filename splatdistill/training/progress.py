"""What a running command shows: a live line in a terminal, a plain line every tenth of the run elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from splatdistill.config.schema import Config

LINE = "t {t:.0f}  loss {loss:.4g}  |g| {gradient_norm:.3g}  {gaussians:.0f} Gaussians"


@contextmanager
def progress_for(config: Config, step: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yield the function that shows the metrics of a step, for a run that continues after `step`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(config.steps, step)
        return
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(20),
        TextColumn("{task.description}  {task.fields[speed]:.1f} it/s"),
        TimeRemainingColumn(),
    )
    begin, first = time.perf_counter(), step
    with Progress(*columns, console=console, refresh_per_second=5) as progress:
        task = progress.add_task("loading", total=config.steps, completed=step, speed=0.0)

        def show(done: int, metrics: dict[str, float]) -> None:
            speed = (done - first) / (time.perf_counter() - begin)
            progress.update(task, completed=done, description=_describe(metrics), speed=speed)

        yield show


def _plain(steps: int, first: int) -> Callable[[int, dict[str, float]], None]:
    begin, every = time.perf_counter(), max(steps // 10, 1)

    def show(done: int, metrics: dict[str, float]) -> None:
        if done % every and done != steps:
            return
        speed = (done - first) / (time.perf_counter() - begin)
        rest = (steps - done) / speed
        print(
            f"step {done}/{steps}  {_describe(metrics)}  {speed:.1f} it/s  {rest:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show


def _describe(metrics: dict[str, float]) -> str:
    skipped = f"  {metrics['skipped']:.0f} skipped" if metrics["skipped"] else ""
    return LINE.format(**metrics) + skipped
