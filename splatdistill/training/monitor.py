"""Communication of trainer and viewer: immutable snapshots one way, a few commands the other.

The trainer never waits for the viewer, except when paused; nothing here draws random numbers or changes what
a run computes.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.guidance.core import Distillation
from splatdistill.scene.gaussians import from_tensors
from splatdistill.scene.pictures import to_uint8
from splatdistill.scene.rendering import Render
from splatdistill.training.progress import Metrics, NullWatcher

INTERVAL = 0.5  # shortest time in seconds between snapshots
SPEED_STEPS = 50  # number of steps over which the speed is averaged
POLL = 0.2  # seconds between checks for a signal while paused
GONE = 5.0  # seconds without a page after which a paused run resumes; reloading a page takes less


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An immutable copy of a scene, and the step after which it was taken.

    It is on the CPU: a call to CUDA in the viewer's threads could break a graph that the trainer captures.
    """

    step: int
    gaussians: ParameterDict


@dataclass(frozen=True, eq=False)
class TeacherView:
    """The teacher's evaluation of one view as images [H, W, 3] uint8: view, one-step x0, noise."""

    step: int
    view: np.ndarray
    x0_hat: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Status:
    """The progress of a run: metrics of its last step and mean steps a second (0: unknown)."""

    step: int = 0
    steps: int = 0
    metrics: Metrics | None = None
    speed: float = 0.0
    paused: bool = False
    finished: bool = True


class Session(NullWatcher):
    """The thread-safe object between a trainer and its viewer.

    gaussians: the scene of a run, read in the thread of the trainer only; decode: latents [V,C,h,w] to images
    [V,3,H,W] in [0,1]; tell: prints a line in the terminal. `showing` makes the session of a finished scene.
    """

    def __init__(
        self,
        gaussians: Callable[[], ParameterDict],
        decode: Callable[[Tensor], Tensor],
        steps: int,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._gaussians, self._decode, self._clock, self._tell = gaussians, decode, clock, tell
        self._changed = threading.Condition()
        self._status = Status(step, steps, finished=False)
        self._snapshot: Snapshot | None = None
        self._teacher_view: TeacherView | None = None
        self._history: list[tuple[int, float, float]] = []  # step, loss, gradient norm
        self._durations: deque[float] = deque(maxlen=SPEED_STEPS)
        self._watched = self._teacher_views_wanted = self._stopped = False
        self._told = False  # that it is paused
        self._steps_allowed = 0  # while paused
        self._version = 0
        self._last_snapshot = self._last_teacher_view = -math.inf
        self._left: float | None = None  # when the last page left
        self._resumed = clock()

    @classmethod
    def showing(cls, gaussians: ParameterDict, step: int, steps: int) -> "Session":
        """Return the session of a finished scene."""
        session = cls(lambda: gaussians, lambda z: z, steps, step)
        session.finish(gaussians)
        return session

    # ---- called by the trainer ----

    def on_views(self, view: Render, distillation: Distillation) -> None:
        """Keep the teacher's evaluation of the first view of a step, if a client watches."""
        with self._changed:
            now = self._clock()
            if (
                not (self._teacher_views_wanted and self._watched)
                or now < self._last_teacher_view + 2 * INTERVAL
            ):
                return
            self._last_teacher_view = now
        with torch.no_grad():
            x0_hat = self._decode(distillation.x0_hat[:1].detach())[0].permute(1, 2, 0)
            noise = distillation.noise[0, :3].detach().permute(1, 2, 0) / 6 + 0.5  # three deviations fit
            teacher_view = TeacherView(
                self._status.step + 1, to_bytes(view.rgb[0].detach()), to_bytes(x0_hat), to_bytes(noise)
            )
        with self._changed:
            self._teacher_view = teacher_view

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Record the metrics of a step; take a snapshot if a client watches and the last one is old."""
        with self._changed:
            now = self._clock()
            self._durations.append(now - self._resumed)
            spent = sum(self._durations)
            speed = len(self._durations) / spent if spent > 0 else 0.0
            self._status = replace(self._status, step=step, metrics=dict(metrics), speed=speed)
            self._history.append((step, metrics["loss"], metrics["gradient_norm"]))
            wanted = self._watched and now >= self._last_snapshot + INTERVAL
            self._resumed = now
        if wanted:
            self._publish(self._gaussians())

    def should_stop(self, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Return, between two steps, whether to stop; blocks while the run is paused.

        interrupted: polled while blocked; ends it. A paused run resumes when all pages that could resume it
        are gone.
        """
        if self._waits():
            if not self._told:
                step = self._status.step
                self._tell(
                    f"paused in the viewer after step {step}, until resumed there or its page is closed"
                )
            if self._watched:
                self._publish(self._gaussians())  # a paused run shows its last step
        with self._changed:
            while self._waits() and not interrupted():
                self._changed.wait(POLL)
                if self._left is not None and self._clock() > self._left + GONE:
                    self._tell("the last page of the viewer left; the run goes on")
                    self._status = replace(self._status, paused=False)
            self._told = self._status.paused
            self._steps_allowed = max(self._steps_allowed - 1, 0)
            self._resumed = self._clock()
            return self._stopped or interrupted()

    def finish(self, gaussians: ParameterDict) -> None:
        """Publish the final scene; no step follows."""
        with self._changed:
            self._status = replace(self._status, finished=True, paused=False)
        self._publish(gaussians)

    def wait_until_left(self, interrupted: Callable[[], bool]) -> None:
        """Block until no client watches any more, or interrupted() is true."""
        with self._changed:
            while self._watched and not interrupted():
                self._changed.wait(POLL)

    def _waits(self) -> bool:
        return self._status.paused and not self._stopped and not self._steps_allowed

    def _publish(self, gaussians: ParameterDict) -> None:
        copy = from_tensors(**gaussians).requires_grad_(False).cpu()
        with self._changed:
            self._snapshot = Snapshot(self._status.step, copy)
            self._last_snapshot = self._clock()
            self._notify()

    # ---- called by the viewer ----

    def pause(self) -> None:
        """Pause the run before its next step."""
        with self._changed:
            if not self._status.finished:
                self._status = replace(self._status, paused=True)
            self._notify()

    def resume(self) -> None:
        """Resume a paused run."""
        with self._changed:
            self._status = replace(self._status, paused=False)
            self._steps_allowed = 0
            self._notify()

    def single_step(self) -> None:
        """Run one step, then pause."""
        with self._changed:
            if not self._status.finished:
                self._status = replace(self._status, paused=True)
                self._steps_allowed += 1
            self._notify()

    def stop(self) -> None:
        """Ask the run to save and end, as Ctrl-C does."""
        with self._changed:
            self._stopped = True
            self._notify()

    def watch(self, someone: bool, teacher_views: bool = False) -> None:
        """Set whether any client watches, and whether it shows the teacher; else nothing is copied."""
        with self._changed:
            if self._watched != someone:
                self._left = None if someone else self._clock()
            self._watched, self._teacher_views_wanted = someone, teacher_views
            self._notify()

    def wake(self) -> None:
        """End a `wait`."""
        with self._changed:
            self._notify()

    def wait(self, version: int, timeout: float) -> int:
        """Block until something changed since `version`, at most `timeout` seconds; return the version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)
            return self._version

    @property
    def watched(self) -> bool:
        """Whether a client watches."""
        return self._watched

    @property
    def status(self) -> Status:
        """The progress of the run."""
        return self._status

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self._snapshot

    @property
    def teacher_view(self) -> TeacherView | None:
        """The teacher's last evaluation; None before a client watched."""
        return self._teacher_view

    def history(self) -> list[tuple[int, float, float]]:
        """Return (step, loss, gradient norm) of every step since this session began."""
        with self._changed:
            return list(self._history)

    def _notify(self) -> None:
        self._version += 1
        self._changed.notify_all()


def to_bytes(rgb: Tensor) -> np.ndarray:
    """Return pixels [H, W, 3] uint8 on the CPU of colors in [0, 1]; others are clipped."""
    return to_uint8(rgb).cpu().numpy()
