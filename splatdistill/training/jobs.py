"""Many runs: what a worker does with one, or several that share their teacher's batches; and a whole list.

Where the workers are is the business of `executors`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import torch

from splatdistill.config.load import load
from splatdistill.config.schema import Config, PriorConfig
from splatdistill.errors import Diverged, UserError
from splatdistill.folder import CONFIG, LOG, RESULT
from splatdistill.training import run
from splatdistill.training.inputs import pick_device, teacher_of
from splatdistill.training.progress import Lines, Watcher, interruptible

if TYPE_CHECKING:
    from splatdistill.priors.base import Prior

Stop = Callable[[], bool]


@dataclass(frozen=True)
class RunSpec:
    """A run to be made: its folder and its configuration."""

    folder: Path
    config: Config

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.folder / RESULT).exists()


Task = Sequence[RunSpec]  # one run, or several that share their teacher's batches


class Executor(Protocol):
    """Where tasks are done; see `executors`."""

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[str] | None]]:
        """Do tasks in any order; yield a number with None when one begins, and its failures when it ends.

        They are a line for each run of the task, empty for one that is finished. Raises KeyboardInterrupt
        when it was interrupted; what was begun is saved then.
        """
        ...


def make_all(
    specs: Sequence[RunSpec],
    executor: Executor,
    *,
    scenes: int = 1,
    retries: int = 0,
    tell: Callable[[RunSpec, str | None], None] = lambda spec, failure: None,
) -> dict[Path, str]:
    """Make the missing runs of a list, each once; return why the others failed, by folder.

    Args:
        specs: all runs, in folders of their own. Finished ones are left alone, unfinished ones continued.
        executor: where.
        scenes: runs that share their teacher's batches.
        retries: how often those that failed are tried again, after the rest.
        tell: called with a run that begins and None, and when it ends with its failure, "" for none.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    failures: dict[Path, str] = {}
    left = [spec for spec in specs if not spec.finished]
    for _ in range(retries + 1):
        tasks = [left[i : i + scenes] for i in range(0, len(left), scenes)]
        for number, lines in executor.each(tasks):
            for spec, failure in zip(tasks[number], lines or [None] * scenes):
                tell(spec, failure)
                if failure is not None:
                    failures[spec.folder] = failure
        failures = {folder: line for folder, line in failures.items() if line}
        left = [spec for spec in left if not spec.finished]
        if not left:
            break
    return failures


def make_one(
    spec: RunSpec, device: str | None = None, teacher: Prior | None = None, stop: Stop | None = None
) -> str:
    """Make or continue a run, with its output in log.txt; return why it failed, or an empty text.

    Args:
        spec: the run.
        device: as in `make_run`.
        teacher: by default the one that is warm, or loaded now.
        stop: tells between two steps whether to; by default signals do.

    Raises:
        KeyboardInterrupt: it was interrupted; its state is saved.
    """
    folder = spec.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if spec.finished:  # by a worker that was lost before it could say so
            return ""
        begun = (folder / CONFIG).exists()
        with open(folder / LOG, "a", encoding="utf-8") as log:
            try:
                config = load(folder / CONFIG) if begun else spec.config
                warm = teacher or warm_teacher(config.prior, device)
                watch = partial(logged, log, stop)
                result = run.make_run(
                    config, folder, device=device, resume=begun, allow_unknown=True, watch=watch, teacher=warm
                )
            except (UserError, Diverged) as error:
                print(f"error: {error}", file=log)
                return str(error)
            except RuntimeError as error:  # such as a GPU without memory: the other runs go on
                traceback.print_exc(file=log)
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    if not result.finished:
        raise KeyboardInterrupt
    return ""


@lru_cache(maxsize=1)
def warm_teacher(prior: PriorConfig, device: str | None) -> Prior:
    """Load a teacher, and keep it until another is asked for."""
    return teacher_of(Config(prior=prior), pick_device(device))


@contextmanager
def logged(log: TextIO, stop: Stop | None, job: run.Job) -> Iterator[Watcher]:
    """Write a run's progress to a file, and let signals stop it, or `stop`."""
    watcher = Lines(job.config.steps, job.state.step, log)
    if stop is not None:
        watcher.should_stop = stop
        yield watcher
        return
    with interruptible() as interrupted:
        watcher.should_stop = interrupted
        yield watcher


def threads_of(jobs: int, cores: int) -> int:
    """Return the threads of each of so many processes that share the cores."""
    return max(cores // jobs, 1)


def gpus() -> int:
    """Return the number of GPUs of this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
