"""Several runs in one process that share their teacher's batches (`batch.scenes`).

A small network on a small batch is bound by what a call costs, not by arithmetic. So each run goes until it
asks its teacher, and when all have asked, one call answers them. Only one run is going at any time, in a
fixed order, and each has torch's global random numbers to itself: so it is the same run as alone, but for
what the network's kernels round otherwise in a larger batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from splatdistill.priors.base import Conditioning, Prior
from splatdistill.training.jobs import RunSpec, Stop, make_one, warm_teacher
from splatdistill.training.progress import interruptible

Asked = tuple[Tensor, Tensor, Conditioning]


def make_together(specs: Sequence[RunSpec], device: str | None = None) -> list[str]:
    """Make or continue runs of one teacher side by side; return why each failed, or an empty text.

    Raises KeyboardInterrupt when they were interrupted; their states are saved.
    """
    try:
        prior = warm_teacher(specs[0].config.prior, device)
    except Exception:  # each run tells it as its own failure
        return [make_one(spec, device) for spec in specs]
    with interruptible() as interrupted:
        scenes = [Scene(prior, spec, device, interrupted) for spec in specs]
        while live := [scene for scene in scenes if scene.goes_on()]:
            answer(prior, live)
    for scene in scenes:
        if scene.error is not None:
            raise scene.error
    return [scene.failure for scene in scenes]


@dataclass(eq=False)
class Scene:
    """A run in a thread of its own, which waits whenever it asks its teacher."""

    prior: Prior
    spec: RunSpec
    device: str | None
    stop: Stop
    asked: Asked | None = None
    answered: Tensor | Exception | None = None
    failure: str = ""
    error: BaseException | None = None
    random: list[Tensor] = field(default_factory=list)  # states of torch's global generators
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread | None = None

    def goes_on(self) -> bool:
        """Let the run go until it asks its teacher; return False when it has ended instead."""
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        elif not self.thread.is_alive():
            return False
        outside = random_states()
        set_random_states(self.random or outside)
        self.asked = None
        self.go.release()
        self.back.acquire()
        self.random = random_states()
        set_random_states(outside)
        if self.asked is None:
            self.thread.join()
        return self.asked is not None

    def run(self) -> None:
        """Make the run, in its thread."""
        self.go.acquire()
        try:
            teacher: Any = Shared(self.prior, self.predict)
            self.failure = make_one(self.spec, self.device, teacher, self.stop)
        except BaseException as error:
            self.error = error
        finally:
            self.back.release()

    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Ask the teacher, in the run's thread; return its answer, or raise what it raised."""
        self.asked = (z_t, t, cond)
        self.back.release()
        self.go.acquire()
        answered, self.answered = self.answered, None
        assert answered is not None
        if isinstance(answered, Exception):
            raise answered
        return answered


class Shared:
    """A teacher whose `predict` is another; everything else is its own."""

    def __init__(self, prior: Prior, predict: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> None:
        self.prior, self.predict = prior, predict

    def for_run(self, seed: int, models: int) -> Shared:
        """Return this teacher as a run uses it: its own texts, and still the shared batches."""
        return Shared(self.prior.for_run(seed, models), self.predict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)


@torch.no_grad()
def answer(prior: Prior, scenes: Sequence[Scene]) -> None:
    """Answer what runs asked: those that fit together by one call, or by one each if that raises."""
    alike: dict[Any, list[Scene]] = {}
    for scene in scenes:
        assert scene.asked is not None
        alike.setdefault(kind(*scene.asked), []).append(scene)
    waiting = deque(alike.values())
    while waiting:
        those = waiting.popleft()
        try:
            outputs = predictions(prior, [scene.asked for scene in those if scene.asked is not None])
            for scene, output in zip(those, outputs):
                scene.answered = output
        except Exception as error:
            if len(those) == 1:
                those[0].answered = error
            else:  # it is the fault of one of them, or of their number
                waiting.extend([scene] for scene in those)


def predictions(prior: Prior, asked: Sequence[Asked]) -> list[Tensor]:
    """Return the teacher's answers to several questions, by one call."""
    z_t, t = torch.cat([one[0] for one in asked]), torch.cat([one[1] for one in asked])
    outputs = prior.predict(z_t, t, joined([cond for *_, cond in asked]))
    return [part.contiguous() for part in outputs.split([len(one[0]) for one in asked], dim=1)]


def kind(z_t: Tensor, t: Tensor, cond: Conditioning) -> Any:
    """Return what must be equal in two calls of `predict` that become one."""
    shapes = [cond.embeddings.shape[0], *cond.embeddings.shape[2:]]
    shapes += [None if part is None else part.shape[2:] for part in (cond.negatives, cond.extra)]
    active = tuple((cond.weights != 0).any(dim=1).tolist())
    return z_t.shape[1:], z_t.dtype, t.dtype, cond.embeddings.dtype, cond.scale, active, *shapes


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Return the conditioning of several batches as one, without what only methods read."""

    def joint(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values, dim=1)

    embeddings = torch.cat([part.embeddings for part in parts], dim=1)
    negatives, extra = joint("negatives"), joint("extra")
    return replace(parts[0], embeddings=embeddings, negatives=negatives, extra=extra, others=None)


def random_states() -> list[Tensor]:
    """Return the states of torch's global generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def set_random_states(states: Sequence[Tensor]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states[0])
    for i, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, i)
