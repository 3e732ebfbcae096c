"""Progress output of a run and its interruption; the loop knows only the Watcher protocol.

A terminal gets a live line, anything else a plain line every tenth of the run.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from splatdistill.guidance.core import Distillation
    from splatdistill.scene.rendering import Render

Metrics = dict[str, float]
LINE = "t {t:.0f}  loss {loss:.4g}  |g| {gradient_norm:.3g}  {gaussians:.0f} Gaussians"


@dataclass(frozen=True)
class RunResult:
    """The result of a run: a finished one has its files in `out`, a stopped one can be continued."""

    out: Path
    steps: int  # asked for
    step: int  # done
    gaussians: int  # in splat.ply; 0 where there is none
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether all steps were done and splat.ply was written."""
        return self.gaussians > 0


class Watcher(Protocol):
    """An observer of a run; it must not change what the run computes."""

    def on_views(self, view: Render, distillation: Distillation) -> None:
        """Receive the views of a step and the teacher's evaluation of them."""
        ...

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Receive the metrics after a step."""
        ...

    def should_stop(self) -> bool:
        """Return, between two steps, whether to save and stop; may block (the viewer's pause)."""
        ...

    def on_result(self, result: RunResult) -> None:
        """Receive the result: of a whole run its files exist, of a stopped one its state is saved."""
        ...


class NullWatcher:
    """A watcher that does nothing; a base class of others."""

    def on_views(self, view: Render, distillation: Distillation) -> None:
        """Do nothing."""

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Return False."""
        return False

    def on_result(self, result: RunResult) -> None:
        """Do nothing."""


class Steady:
    """A text stream that ignores write errors, such as a closed pipe or a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if possible; return the length of the text."""
        with suppress(OSError, ValueError):  # a run must not end because its output cannot be written
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lines(NullWatcher):
    """Print a plain line every tenth of a run of `steps` that continues after `step`."""

    def __init__(self, steps: int, step: int = 0, stream: TextIO | None = None) -> None:
        self._steps, self._first, self._stream = steps, step, stream
        self._begin = time.perf_counter()

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Print the metrics after every tenth of the run."""
        if step % max(self._steps // 10, 1) and step != self._steps:
            return
        speed = (step - self._first) / (time.perf_counter() - self._begin)
        rest = (self._steps - step) / speed
        line = f"step {step}/{self._steps}  {describe(metrics)}  {speed:.1f} it/s  {rest:.0f} s left\n"
        stream: Any = Steady(self._stream or sys.stderr)
        stream.write(line)
        stream.flush()


class Bar(NullWatcher):
    """Update a line of the terminal, as a task of a `rich` display."""

    def __init__(self, display: Any, steps: int, step: int) -> None:
        self._display, self._first, self._begin = display, step, time.perf_counter()
        self._task = display.add_task("loading", total=steps, completed=step, speed=0.0)

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Update the line."""
        speed = (step - self._first) / (time.perf_counter() - self._begin)
        self._display.update(self._task, completed=step, description=describe(metrics), speed=speed)

    def on_result(self, result: RunResult) -> None:
        """Release the terminal."""
        self._display.stop()


@contextmanager
def progress_for(steps: int, step: int) -> Iterator[Watcher]:
    """Yield the watcher that shows the metrics of a run of `steps` that continues after `step`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    stream: Any = Steady(sys.stderr)
    console = Console(file=stream)
    if not console.is_terminal:
        yield Lines(steps, step)
        return
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(20),
        TextColumn("{task.description}  {task.fields[speed]:.1f} it/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=5) as display:
        yield Bar(display, steps, step)


def describe(metrics: Metrics) -> str:
    """Return the metrics of a step as a line."""
    skipped = f"  {metrics['skipped']:.0f} skipped" if metrics["skipped"] else ""
    return LINE.format(**metrics) + skipped


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT, SIGTERM or SIGHUP was received.

    A second Ctrl-C interrupts at once. A SIGHUP that is ignored, as under nohup, stays so.
    """
    came: list[int] = []

    def remember(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
