"""`python -m splatdistill.batch LIST --out DIR`: a run for each prompt of a list, on one machine or on many.

The same command makes only what is missing: a folder with splat.ply is finished, one without goes on from
its last checkpoint. Heavy imports are deferred, so that help and errors answer at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.cli import Parser, add_settings, chosen, folder, note, positive
from splatdistill.console import exit_status
from splatdistill.errors import UserError

if TYPE_CHECKING:
    from splatdistill.training.jobs import Executor, RunSpec

SHOWN = 500  # runs of a page, which holds four views of each
RUNNING = 12  # rows of the table
SCENES = "batch.scenes="


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(
        prog="python -m splatdistill.batch", description="A run for each of many prompts.", allow_abbrev=False
    )
    add = parser.add_argument
    kinds = "a text file with a prompt a line, a .yaml list of prompts or settings, or the name of a suite"
    add("list", metavar="LIST", help=kinds)
    add("--out", type=folder, required=True, metavar="DIR", help="a folder for each run, and batch.html")
    where = "local (default), ray, ray:ADDRESS of a cluster that is there, or slurm, by submitit"
    add("--on", default="local", metavar="WHERE", help=where)
    add("--jobs", type=positive, metavar="N", help="runs side by side; default one a GPU, or one a core")
    part = "every n-th run from the i-th on; auto: as SLURM_ARRAY_TASK_ID or RANK say"
    add("--shard", metavar="I/N", help=part)
    add("--retries", type=int, default=2, metavar="N", help="of runs that failed, after the rest; default 2")
    add("--method", help="sdi (default), sds, dsd, csd, ... : docs/METHODS.md")
    add_settings(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 runs failed, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as by Ctrl-C: what was begun is saved
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    return exit_status(lambda: start(args), "interrupted; the same command goes on from here")


def start(args: argparse.Namespace) -> int:
    """Make what is missing, and a page of all; return the exit status."""
    from splatdistill.files import atomic_write
    from splatdistill.folder import BATCH
    from splatdistill.media.runs_page import runs_page
    from splatdistill.training.jobs import make_all

    index, count = shard(args.shard, os.environ)
    executor = executor_of(args)
    specs, scenes = plan(args)
    specs = specs[index::count]
    with board(specs) as tell:
        failures = make_all(specs, executor, scenes=scenes, retries=max(args.retries, 0), tell=tell)
    for out, failure in failures.items():
        note(f"{out}: {failure}")
    done = {spec.folder: spec.config.prompt or spec.folder.name for spec in specs if spec.finished}
    shown = dict(list(done.items())[:SHOWN])
    name = BATCH if count == 1 else f"{index}-of-{count}-{BATCH}"
    with atomic_write(args.out / name) as file:
        file.write(
            runs_page(Path(args.list).stem, shown, {out.name: why for out, why in failures.items()}).encode()
        )
    note(f"{args.out / name} shows {len(shown)} of {len(done)} finished runs; {len(failures)} failed")
    return 1 if failures else 0


def shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return which part of a list is this process's, and of how many; UserError for what is none."""
    if text is None:
        return 0, 1
    given = text
    if text == "auto":
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        if "SLURM_ARRAY_TASK_ID" in environment:
            place = int(environment["SLURM_ARRAY_TASK_ID"]) - first
            given = f"{place}/{environment.get('SLURM_ARRAY_TASK_COUNT', '')}"
        else:
            given = f"{environment.get('RANK', '')}/{environment.get('WORLD_SIZE', '')}"
    index, _, count = given.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        said = f"the environment says {given}" if text == "auto" else "expected 0/4, 1/4, 2/4 or 3/4"
        raise UserError(f"--shard {text}: {said}; give I/N with I from 0 to N - 1")
    return int(index), int(count)


def plan(args: argparse.Namespace) -> tuple[list[RunSpec], int]:
    """Return the runs of a list, each in a folder of its own, and how many share their teacher's batches.

    Raises UserError for settings, words and folders that cannot work, before anything is made.
    """
    from splatdistill.files import writable_folder
    from splatdistill.measure.suites import keep_settings, listed, specs_of
    from splatdistill.training.jobs import check

    words = [word for word in args.overrides if not word.startswith(SCENES)]
    scenes = [word.removeprefix(SCENES) for word in args.overrides if word.startswith(SCENES)]
    if scenes and not (scenes[-1].isdecimal() and int(scenes[-1])):
        raise UserError(f"{SCENES}{scenes[-1]}: expected a number of runs, 1 or more")
    flags = chosen(args, "method", "steps", "seed")
    out = args.out.absolute()
    specs, base = specs_of(listed(args.list), out, flags, words, allow_unknown=args.allow_unknown)
    missing = [spec for spec in specs if not spec.finished]
    if missing and args.on == "local":  # a cluster has other devices
        check(missing[0], args.device)
    writable_folder(out)
    keep_settings(out, base)
    return specs, int(scenes[-1]) if scenes else 1


def executor_of(args: argparse.Namespace) -> Executor:
    """Return where the runs are made."""
    from splatdistill.training.executors import RayActors, SlurmArray, local

    where, _, address = args.on.partition(":")
    cores = os.cpu_count() or 1
    if where == "ray":
        return RayActors(args.jobs or cores, args.device, address or None)
    if where == "slurm":
        return SlurmArray(args.jobs or 1, args.out.absolute() / "slurm", args.device, address or None)
    if args.on != "local":
        raise UserError(f"--on {args.on}: expected local, ray, ray:ADDRESS or slurm")
    return local(args.jobs, args.device)


@contextmanager
def board(specs: Sequence[RunSpec]) -> Iterator[Any]:
    """Show how far a list is, in the terminal as a live table, elsewhere as a line a run; yields `tell`."""
    from rich.console import Console
    from rich.live import Live

    from splatdistill.training.progress import Steady

    stream: Any = Steady(sys.stderr)
    console = Console(file=stream)
    finished = {spec.folder for spec in specs if spec.finished}
    running: dict[Path, int] = {}
    failed: dict[Path, str] = {}

    def tell(spec: RunSpec, failure: str | None) -> None:
        if failure is None:
            running[spec.folder] = spec.config.steps
            failed.pop(spec.folder, None)
            return
        running.pop(spec.folder, None)
        if failure:
            failed[spec.folder] = failure
        else:
            finished.add(spec.folder)
        if not console.is_terminal:
            what = f"failed: {failure}" if failure else "done"
            note(f"{len(finished)} of {len(specs)} done, {len(failed)} failed; {spec.folder.name} {what}")

    if not console.is_terminal:
        yield tell
        return
    with Live(
        get_renderable=lambda: table(specs, finished, running, failed), console=console, refresh_per_second=1
    ):
        yield tell


def table(
    specs: Sequence[RunSpec], finished: set[Path], running: Mapping[Path, int], failed: Mapping[Path, str]
) -> Any:
    """Return the table of a list that is being made: numbers, and the runs that are going or failed."""
    from rich.table import Table
    from rich.text import Text  # plain: names may hold what would be markup

    from splatdistill.folder import METRICS, last_step

    waiting = len(specs) - len(finished) - len(running) - len(failed)
    title = f"{len(finished)} done, {len(running)} running, {len(failed)} failed, {waiting} waiting"
    result = Table("run", "state", title=Text(title))
    for out, steps in list(running.items())[:RUNNING]:
        result.add_row(Text(out.name), Text(f"step {last_step(out / METRICS)} of {steps}"))
    for out, failure in list(failed.items())[:RUNNING]:
        result.add_row(Text(out.name), Text(failure))
    return result


if __name__ == "__main__":
    sys.exit(main())
