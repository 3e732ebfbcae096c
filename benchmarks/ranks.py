"""One scene over two processes on this machine: that they hold the same Gaussians, and that no kill loses it.

`same`: every kind of run, 50 steps over two processes; the states that they end with, bit for bit, and their
first gradients beside those of one process with the same views.
`kills`: a run over two processes, of which either dies by SIGKILL at a random moment; it is continued, and
its files are compared with those of a run that nobody touched.
`speed`: seconds a step, and what of it is spent where, over one and two processes.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import write_result
from file_faults import MEMORY_DISK, contents, finished

from splatdistill.config.schema import Config, PriorConfig
from splatdistill.folder import CHECKPOINTS
from splatdistill.priors.base import Prior
from splatdistill.training import checkpoint, loop, parallel, run
from splatdistill.training.inputs import teacher_of
from splatdistill.training.parallel import Alone, Ranks, joined
from splatdistill.training.progress import NullWatcher
from splatdistill.training.run import fit, prepare

SMALL = (
    *("views.size=16", "views.count=4", "gaussians.count=50", "gaussians.final_opacity=0.01"),
    *("report.size=16", "report.frames=2", "checkpoint_every=5"),
)
GROWTH = ("densification.start=1", "densification.every=4", "densification.stop=100000")
GROWTH += ("densification.grow_grad2d=1e-9", "densification.cap_max=300")
KINDS = {
    "default": ("method=sdi", "inversion.steps=2", "densification.kind=default", *GROWTH),
    "mcmc": ("method=sds", "densification.kind=mcmc", *GROWTH),
    "vsd": ("method=vsd", "densification.kind=default", *GROWTH),
}


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # as of `os.waitstatus_to_exitcode`
    text: str  # standard output and error
    returned: Any  # None where it raised


def side_by_side(
    work: Callable[[], Any], size: int = 2, meanwhile: Callable[[list[int]], None] = lambda processes: None
) -> list[Ended]:
    """Call `work` in `size` forked processes with the variables that torchrun sets; return how each ended.

    Args:
        work: returns tensors and plain values, which are those of `Ended`.
        size: number of processes, which speak over 127.0.0.1 only.
        meanwhile: called with the processes' ids.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        text, returned = os.memfd_create("text"), os.memfd_create("returned")
        process = os.fork()
        if process == 0:
            status = 70
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {
                    "WORLD_SIZE": str(size),
                    "LOCAL_WORLD_SIZE": str(size),
                    "MASTER_PORT": str(port),
                }
                for stream in (1, 2):
                    os.dup2(text, stream)
                sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
                torch.set_num_threads(1)  # the threads of the parent are not here
                with open(returned, "wb", closefd=False) as file:
                    torch.save(work(), file)
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        started.append((process, text, returned))
    meanwhile([process for process, *_ in started])
    return [ended(*one) for one in started]


def ended(process: int, text: int, returned: int) -> Ended:
    """Wait for a process of `side_by_side`."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with open(text, "rb") as said, open(returned, "rb") as file:
        said.seek(0)
        file.seek(0)
        words, value = said.read().decode(errors="replace"), file.read()
    return Ended(status, words, torch.load(io.BytesIO(value), weights_only=True) if value else None)


def verb(words: Sequence[str]) -> None:
    """Run a verb to its end, and exit with its status."""
    sys.exit(finished(words))


def configured(words: Sequence[str]) -> Config:
    """Return the configuration of a command line."""
    module = importlib.import_module(f"splatdistill.{words[0]}")
    return module.configure(module.parse(words[1:]))


def trained(words: Sequence[str], out: Path, ranks: Alone, prior: Prior | None = None) -> dict[str, Any]:
    """Do the steps of a command line without its files.

    Processes that are found to differ are left so.

    Returns:
        The state after them, the number of Gaussians before them, and the first gradients, as one vector.
    """
    config, gradients = configured(words), []
    norm = loop.gradient_norm

    def noting(gaussians: torch.nn.ParameterDict) -> torch.Tensor:
        if not gradients:
            gradients.extend(p.grad.flatten() for p in gaussians.values() if p.grad is not None)
        return norm(gaussians)

    with tempfile.TemporaryDirectory(dir=out) as folder:
        job = prepare(config, Path(folder), teacher=prior or teacher(config))
        (Path(folder) / CHECKPOINTS).mkdir()
        count = len(job.state.gaussians["means"])
        with patch.object(loop, "gradient_norm", noting), patch.object(Ranks, "keep_same", lambda *_: None):
            fit(job, NullWatcher(), ranks)
    return {"state": job.state.state_dict(), "count": count, "gradients": torch.cat(gradients)}


def teacher(config: Config) -> Prior:
    """Return the teacher of a configuration, loaded once."""
    return warm_teacher(config.prior)


@functools.cache
def warm_teacher(prior: PriorConfig) -> Prior:
    """Load a teacher, once."""
    return teacher_of(Config(prior=prior), torch.device("cpu"))


def trained_together(words: Sequence[str], out: Path, prior: Prior | None = None) -> list[dict[str, Any]]:
    """Do the same over two processes; return what each has in the end."""

    def work() -> dict[str, Any]:
        with joined() as ranks:
            return trained(words, out, ranks, prior)

    prior = prior or teacher(configured(words))  # before the processes are forked
    ends = side_by_side(work)
    if any(one.returned is None for one in ends):
        raise RuntimeError("\n".join(one.text for one in ends))
    return [one.returned for one in ends]


def as_bytes(state: Any) -> bytes:
    """Return a state as bytes; equal ones give the same."""
    buffer = io.BytesIO()
    torch.save(checkpoint._interned(state), buffer)
    return buffer.getvalue()


def commands(folder: Path, prior: str, steps: int) -> dict[str, list[str]]:
    """Return a command line for each kind of run, after making what edits start from."""
    model = ["--prior", prior, "--allow-unknown", *SMALL, f"steps={steps}"]
    kinds = {name: ["train", "--prompt", "a red dog", *model, *settings] for name, settings in KINDS.items()}
    made = folder / "made"
    if finished([*kinds["default"], "steps=3", "--out", str(made)]):
        raise RuntimeError("the run to edit was not made")
    kinds["edit"] = ["edit", "--splat", str(made), "--target-prompt", "a dog", *model, *KINDS["default"][2:]]
    kinds["edit"] += ["guidance.mode=plain"]  # the tiny teacher reads few words, of which views leave none
    masked = ("--mask", "sphere:0,0,0,0.4", "edit.seeds=20", "inversion.steps=2")
    kinds["edit in a mask"] = [*kinds["edit"], *masked]
    kinds["refine"] = ["refine", "--splat", str(made), "--prompt", "a red dog", *model]
    return kinds


def multiview(steps: int) -> list[str]:
    """Return the command line of a run whose teacher denoises four views together, four a process."""
    words = ["train", "--prompt", "a red dog", "--prior", "real", *SMALL]
    return [*words, "views.count=8", f"steps={steps}", "method=sds", "densification.kind=default", *GROWTH]


def same(folder: Path, prior: str, steps: int) -> dict[str, Any]:
    """Compare the processes of every kind of run with each other, and first gradients with one process's.

    The latter are of a method that draws no noise, since otherwise that depends on who draws it.
    """
    rows: dict[str, Any] = {}
    for name, words in (commands(folder, prior, steps) | {"multi-view": multiview(steps)}).items():
        first, second = trained_together(words, folder)
        rows[name] = {
            "steps": steps,
            "gaussians_before": first["count"],
            "gaussians": len(first["state"]["gaussians"]["means"]),
            "moved": bool(first["gradients"].any()),
            "same_bits": as_bytes(first["state"]) == as_bytes(second["state"]),
        }
        print(name, rows[name], flush=True)
    rows["gradients_apart"] = {}
    for name, where in (("tiny", prior), ("real", "real")):
        rows["gradients_apart"][name] = gradients_apart(folder, where)
        print(f"gradients, {name}: {rows['gradients_apart'][name]:.1e} of their norm", flush=True)
    return rows


def gradients_apart(folder: Path, prior: str) -> float:
    """Return how far first gradients of two processes are from one's, as a share of their norm."""
    quiet = ("method=sdi", "inversion.eta=0", "inversion.tau=0", "densification.kind=none", "steps=1")
    quiet += ("prior.dtype=float32", "views.count=8")
    words = ["train", "--prompt", "a red dog", "--prior", prior, "--allow-unknown", *SMALL, *quiet]
    alone = trained(words, folder, Alone())["gradients"]
    shared = trained_together(words, folder)[0]["gradients"]
    return float((alone - shared).norm() / alone.norm())


def kills(folder: Path, prior: str, count: int, keep: bool = False) -> dict[str, Any]:
    """Kill either of two processes at random moments; return what came of it, and keep it if asked."""
    words = ["train", "--prompt", "a red dog", "--prior", prior, "--allow-unknown", *SMALL]
    words += ["method=sds", *KINDS["default"][2:], "steps=10", "checkpoint_every=3", "--out"]
    if finished([*words, str(folder / "alone")]):  # imports everything, so that a process costs no start
        raise RuntimeError("the run of one process failed")
    whole, begin = folder / "whole", time.perf_counter()
    if any(one.status for one in side_by_side(lambda: verb([*words, str(whole)]))):
        raise RuntimeError("the undisturbed run failed")
    seconds = time.perf_counter() - begin
    expected, random = contents(whole), np.random.default_rng(0)
    tally: dict[str, Any] = {"kills": 0, "before_it_began": 0, "lost": [], "different": [], "untold": []}
    for case in range(count):
        out, rank, moment = folder / f"killed-{case}", case % 2, float(random.uniform(0.02, 0.98)) * seconds

        def kill(processes: list[int], rank: int = rank, moment: float = moment) -> None:
            time.sleep(moment)
            os.kill(processes[rank], signal.SIGKILL)

        ends = side_by_side(lambda: verb([*words, str(out)]), meanwhile=kill)  # noqa: B023 - it is forked at once
        tally["kills"] += ends[rank].status == -signal.SIGKILL
        told = [line for one in ends for line in one.text.splitlines() if line.startswith("error:")]
        if ends[rank].status == -signal.SIGKILL and (len(told) != 1 or ends[1 - rank].status != 2):
            tally["untold"].append(f"rank {rank} at {moment:.2f} s: {ends[1 - rank].text[-300:]}")
        if (out / CHECKPOINTS).is_dir() and any((out / CHECKPOINTS).iterdir()):
            again = ["train", "--resume", str(out)]
        else:
            again, tally["before_it_began"] = [*words, str(out)], tally["before_it_began"] + 1
        ends = side_by_side(lambda: verb(again))  # noqa: B023
        if any(one.status for one in ends):
            tally["lost"].append(f"rank {rank} at {moment:.2f} s: {ends[0].text[-300:]}")
        elif wrong := [name for name in expected if contents(out).get(name) != expected[name]]:
            tally["different"].append(f"rank {rank} at {moment:.2f} s: {wrong}")
        print(f"rank {rank} killed after {moment:.2f} of {seconds:.2f} s, then {again[1]}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        if keep:
            write_result("ranks_kills", tally | {"seconds_undisturbed": round(seconds, 2)})
    return tally


def speed(folder: Path, prior: str, steps: int) -> dict[str, Any]:
    """Return seconds of processor time of the parts of a step, and its clock time, over 1 and 2 processes."""
    words = ["train", "--prompt", "a red dog", "--prior", prior, "views.count=8", f"steps={steps}"]
    words += ["checkpoint_every=1000", "densification.kind=none"]
    rows = {}
    for size in (1, 2):

        def work() -> dict[str, float]:
            with joined() as ranks:
                return timed(words, folder, ranks)

        ends = side_by_side(work, size)
        if any(one.returned is None for one in ends):
            raise RuntimeError("\n".join(one.text for one in ends))
        rows[str(size)] = ends[0].returned
        print(size, rows[str(size)], flush=True)
    return rows


def timed(words: Sequence[str], out: Path, ranks: Alone) -> dict[str, float]:
    """Do the steps of a command line; return mean seconds a step of each part, but for the first steps."""
    spent: dict[str, list[float]] = {}
    config = configured(words)
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    job = prepare(config, out)

    def timing(name: str, function: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begin = clock()
            result = function(*given, **named)
            spent.setdefault(name, []).append(clock() - begin)
            return result

        return call

    ends: list[tuple[float, float]] = []
    watcher = NullWatcher()
    watcher.on_step = lambda step, metrics: ends.append((time.perf_counter(), time.thread_time()))
    with (
        patch.object(loop, "render", timing("render", loop.render, time.thread_time)),
        patch.object(job.prior, "encode", timing("encode", job.prior.encode, time.thread_time)),
        patch.object(job.prior, "predict", timing("network", job.prior.predict, time.thread_time)),
        patch.object(torch.Tensor, "backward", timing("backward", torch.Tensor.backward, time.thread_time)),
        patch.object(ranks, "add_up_", timing("message", ranks.add_up_, time.perf_counter)),
        patch.object(ranks, "any", timing("stop", ranks.any, time.perf_counter)),
    ):
        fit(job, watcher, ranks)
    steps = len(ends) - 1
    parts = {name: round(sum(values) / (steps + 1), 5) for name, values in spent.items()}
    wall, own = ((ends[-1][i] - ends[0][i]) / steps for i in (0, 1))
    return parts | {
        "processor": round(own, 5),
        "clock": round(wall, 5),
        "gaussians": len(job.state.gaussians["means"]),
    }


def main() -> None:
    """Print a line a case and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("same", "kills", "speed"))
    parser.add_argument("--prior", help="the teacher; default a tiny random one, for speed the shipped one")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--count", type=int, default=20, help="of kills")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as name:
        folder = Path(name)
        if args.part == "speed":
            prior = args.prior or "real"
            found = {prior: speed(folder, prior, args.steps)}
        else:
            prior = args.prior or tiny(folder)
            loaded = teacher(
                configured(["train", "--prompt", "a red dog", "--prior", prior, "--allow-unknown"])
            )
            soon = timedelta(
                seconds=20
            )  # without torchrun nobody ends a process that waits for one that is gone
            with (
                patch.object(run, "teacher_of", lambda *_: loaded),
                patch.object(parallel, "LONGEST_START", soon),
            ):
                if args.part == "kills":
                    kills(folder, prior, args.count, keep=True)
                    return
                found = same(folder, prior, args.steps)
    write_result(f"ranks_{args.part}", found)


def tiny(folder: Path) -> str:
    """Return the folder of a tiny random teacher; tests/ must be importable."""
    from tiny import make_pipeline

    (folder / "teacher").mkdir()
    return str(make_pipeline(folder / "teacher", "AutoencoderTiny"))


if __name__ == "__main__":
    main()
