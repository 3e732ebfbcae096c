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
        scenes: runs that share their teacher's batches, where they have the same one.
        retries: how often those that failed are tried again, after the rest.
        tell: called with a run that begins and None, and when it ends with its failure, "" for none.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    failures: dict[Path, str] = {}
    left = [spec for spec in specs if not spec.finished]
    for _ in range(retries + 1):
        tasks = tasks_of(left, scenes)
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


def tasks_of(specs: Sequence[RunSpec], most: int) -> list[Task]:
    """Return runs as tasks of at most so many, each of one teacher; those of a teacher follow each other."""
    alike: dict[PriorConfig, list[RunSpec]] = {}
    for spec in specs:
        alike.setdefault(spec.config.prior, []).append(spec)
    return [those[i : i + most] for those in alike.values() for i in range(0, len(those), most)]


def check(spec: RunSpec, device: str | None = None) -> None:
    """Load and check all that a run needs, before the first of many is made; write nothing.

    Raises UserError or Diverged for what may be the same in the others. An unexpected error is passed over:
    the run itself will fail by it when it is made, and tell it.
    """
    try:
        run.prepare(spec.config, spec.folder, device=device)
    except (UserError, Diverged, OSError):
        raise
    except Exception:
        return


def brief(error: Exception) -> str:
    """Return an unexpected error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def make_one(
    spec: RunSpec, device: str | None = None, teacher: Prior | None = None, stop: Stop | None = None
) -> str:
    """Make or continue a run, with its output in log.txt; return why it failed, or an empty text.

    Whatever goes wrong in it is its own failure, and that of no other run.

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
            except OSError:  # told below, with its file
                raise
            except Exception as error:  # a GPU without memory, or a fault of a method: the others go on
                traceback.print_exc(file=log)
                return brief(error)
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
