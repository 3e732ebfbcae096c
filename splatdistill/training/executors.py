"""Where many runs are made: in this process, in others on this machine, in Ray's actors, or in a Slurm array.

Each keeps its teacher loaded from one run to the next. A worker that is lost, such as by SIGKILL or for lack
of memory, is replaced; its run counts as failed, and continues from its last checkpoint when it is tried
again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from splatdistill.errors import UserError
from splatdistill.training.jobs import Task, gpus, make_one, threads_of
from splatdistill.training.scenes import make_together

LOST = "its process was lost, such as by a kill or for lack of memory; it goes on when it is tried again"
POLL = 2.0  # seconds between looks at the state of a Slurm array
START = "spawn"  # of processes; a fork would share the threads of this one
RAY_HERE = {  # variables for a cluster that is started here, which Ray reads when it is first imported
    "RAY_agent_register_timeout_ms": "600000",  # its 15 s are not enough on a busy machine
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_enable_worker_prestart": "0",  # of as many idle processes as cores
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # there Ray speaks on loopback only; here as well
}
RAY_STORE = 100 << 20  # bytes of shared memory; only settings and lines of text pass through it


class Here:
    """This process, one task after another."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[str] | None]]:
        """Do tasks in order; see `jobs.Executor`."""
        for number, task in enumerate(tasks):
            yield number, None
            yield number, work(task, self.device)


class Crew:
    """Workers that take one task at a time; a subclass says what a worker is.

    Args:
        size: how many.
        device: of all; None for a GPU each where there are some.
    """

    def __init__(self, size: int, device: str | None = None) -> None:
        self.size, self.device = size, device

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[str] | None]]:
        """Do tasks in any order; see `jobs.Executor`."""
        waiting = deque(range(len(tasks)))
        places = list(range(min(self.size, len(tasks))))  # without a task
        workers: dict[int, Any] = {}
        busy: dict[int, int] = {}  # place -> task
        try:
            while waiting or busy:
                while waiting and places:
                    place, number = places.pop(), waiting.popleft()
                    if place not in workers:
                        workers[place] = self.start(place)
                    busy[place] = number
                    yield number, None
                    self.give(workers[place], tasks[number])
                for place, failures in self.ended({place: workers[place] for place in busy}):
                    number = busy.pop(place)
                    places.append(place)
                    if failures is None:
                        self.stop([workers.pop(place)])
                    yield number, [LOST] * len(tasks[number]) if failures is None else failures
        finally:
            self.stop(list(workers.values()))

    def start(self, place: int) -> Any:
        """Return a new worker, the place-th."""
        raise NotImplementedError

    def give(self, worker: Any, task: Task) -> None:
        """Let an idle worker begin a task."""
        raise NotImplementedError

    def ended(self, workers: dict[int, Any]) -> list[tuple[int, list[str] | None]]:
        """Wait until a worker has ended its task; return which have, and what came of it, None if lost."""
        raise NotImplementedError

    def stop(self, workers: list[Any]) -> None:
        """End workers; a run that one is in the middle of is saved, or continues from its last checkpoint."""
        raise NotImplementedError


class Processes(Crew):
    """Processes on this machine, that share its cores, or have a GPU each."""

    def start(self, place: int) -> tuple[BaseProcess, Connection]:
        """Start a process."""
        context = multiprocessing.get_context(START)
        ours, theirs = context.Pipe()
        given = (theirs, device_of(self.device, place), threads_of(self.size, os.cpu_count() or 1))
        process = context.Process(target=serve, args=given, daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def give(self, worker: Any, task: Task) -> None:
        """Send a task; a worker that is gone is found by `ended`."""
        with suppress(OSError):
            worker[1].send(task)

    def ended(self, workers: dict[int, Any]) -> list[tuple[int, list[str] | None]]:
        """Wait for answers, or for the ends of processes."""
        places = {connection: place for place, (_, connection) in workers.items()}
        found: list[tuple[int, list[str] | None]] = []
        for connection in wait(list(places)):
            try:
                found.append((places[connection], connection.recv()))  # pyright: ignore
            except (EOFError, OSError):
                found.append((places[connection], None))  # pyright: ignore
        return found

    def stop(self, workers: list[Any]) -> None:
        """Ask processes to save their run and end, and wait for them."""
        for process, connection in workers:
            connection.close()
            process.terminate()
        for process, _ in workers:
            process.join()


def serve(connection: Connection, device: str | None, threads: int) -> None:
    """Do the tasks that come, until none can come any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; whoever gave the tasks sends another
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            task = connection.recv()
            connection.send(work(task, device))


def device_of(name: str | None, place: int) -> str | None:
    """Return the device of the place-th worker on a machine."""
    return f"cuda:{place % gpus()}" if name in (None, "cuda") and gpus() else name


class RayActors(Crew):
    """Actors of Ray, on a cluster that is there, or on one that is started here and speaks on loopback only.

    Args:
        size: how many.
        device: as in `Crew`; a cluster's GPUs are Ray's to give out.
        address: of the cluster, or None.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, size: int, device: str | None = None, address: str | None = None) -> None:
        super().__init__(size, device)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before ray reads it: nothing is sent home
        for name, value in RAY_HERE.items() if address is None else ():
            os.environ.setdefault(name, value)
        try:
            import ray  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise UserError("Ray is not installed: pip install 'splatdistill[cluster]'") from None
        self.ray, self.address = ray, address
        self.threads = threads_of(size, os.cpu_count() or 1) if address is None else 0
        self.asked: dict[Any, Any] = {}  # actor -> its task's result

    def start(self, place: int) -> Any:
        """Start an actor, and the cluster before the first."""
        ray, where = self.ray, {"address": self.address}
        if self.address is None:
            where = {"address": "local", "num_cpus": self.size, "object_store_memory": RAY_STORE}
            where["include_dashboard"] = False
        if not ray.is_initialized():
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        gpu = bool(ray.cluster_resources().get("GPU")) and self.device != "cpu"
        actor = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=0)(Actor)
        return actor.remote(self.device, self.threads)

    def give(self, worker: Any, task: Task) -> None:
        """Send a task."""
        self.asked[worker] = worker.work.remote(list(task))

    def ended(self, workers: dict[int, Any]) -> list[tuple[int, list[str] | None]]:
        """Wait for results."""
        places = {self.asked[worker]: place for place, worker in workers.items()}
        ready, _ = self.ray.wait(list(places), num_returns=1)
        return [(places[result], self.result(result)) for result in ready]

    def result(self, result: Any) -> list[str] | None:
        """Return what a task came to; None where its actor is lost."""
        try:
            return self.ray.get(result)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.TaskCancelledError):
            return None

    def stop(self, workers: list[Any]) -> None:
        """End actors."""
        for worker in workers:
            self.asked.pop(worker, None)
            self.ray.kill(worker)


class Actor:
    """What a Ray actor does."""

    def __init__(self, device: str | None, threads: int) -> None:
        self.device = device
        if threads:
            torch.set_num_threads(threads)

    def pid(self) -> int:
        """Return the id of its process."""
        return os.getpid()

    def work(self, task: Task) -> list[str]:
        """Do a task."""
        return work(task, self.device)


class SlurmArray:
    """An array of Slurm jobs by submitit, each of which does its share of the tasks one after another.

    Slurm's own variables (SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_GPUS, ...) say what a job may use.

    Args:
        size: of the array.
        folder: for submitit's files, which all machines see.
        device: as in `make_run`.
        cluster: submitit's name of one; "local" for processes here.

    Raises:
        UserError: submitit is not installed.
    """

    def __init__(
        self, size: int, folder: Path, device: str | None = None, cluster: str | None = None
    ) -> None:
        try:
            import submitit  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise UserError("submitit is not installed: pip install 'splatdistill[cluster]'") from None
        self.size, self.device = size, device
        self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        if self.executor.cluster == "slurm":
            self.executor.update_parameters(slurm_array_parallelism=size)
        else:
            self.executor.update_parameters(timeout_min=60 * 24)

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[str] | None]]:
        """Submit the array, and look at its files until it has ended; see `jobs.Executor`."""
        shares = [list(range(i, len(tasks), self.size)) for i in range(min(self.size, len(tasks)))]
        with self.executor.batch():
            jobs = [
                self.executor.submit(work_all, [tasks[number] for number in share], self.device)
                for share in shares
            ]
        left = {number: job for share, job in zip(shares, jobs) for number in share}
        for number in left:
            yield number, None
        try:
            while left:
                ended = {number for number, job in left.items() if job.done()}
                for number in list(left):
                    if all(spec.finished for spec in tasks[number]):
                        del left[number]
                        yield number, [""] * len(tasks[number])
                    elif number in ended:
                        failures = told(left.pop(number), shares, number)
                        yield number, failures or [LOST] * len(tasks[number])
                if left:
                    time.sleep(POLL)
        except KeyboardInterrupt:
            for job in set(left.values()):
                job.cancel()
            raise


def told(job: Any, shares: Sequence[Sequence[int]], number: int) -> list[str] | None:
    """Return the failures of a task that a job of an array told; None where the job was lost."""
    if job.exception() is not None:
        return None
    share = next(share for share in shares if number in share)
    return job.result()[share.index(number)]


def work(task: Task, device: str | None = None) -> list[str]:
    """Do a task in this process; return why each of its runs failed, or an empty text.

    The teacher stays loaded for the next task. Raises KeyboardInterrupt when it was interrupted.
    """
    if len(task) == 1:
        return [make_one(task[0], device)]
    return make_together(task, device)


def work_all(tasks: Sequence[Task], device: str | None) -> list[list[str]]:
    """Do tasks one after another; return their failures."""
    return [work(task, device) for task in tasks]


def local(jobs: int | None, device: str | None = None) -> Here | Processes:
    """Return the executor of this machine: one process for each GPU, or else for each core.

    jobs: number of processes; one is this process itself.
    """
    if jobs is None:
        one = device is not None and ":" in device  # a GPU that was named
        jobs = 1 if one else (gpus() if device != "cpu" else 0) or os.cpu_count() or 1
    return Processes(jobs, device) if jobs > 1 else Here(device)
