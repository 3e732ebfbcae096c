"""Kill runs at every file operation, and see that nothing is lost: one process a kill, forked.

A run, and one that replaces a finished run, are made again and again; the k-th one dies, as by SIGKILL, just
before its k-th operation on files. Then the same command (or --resume) is given again. What counts as lost: a
finished run that was to be replaced and is nowhere, while the new one has no result; an end without a result;
and an output file with other bytes than those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from common import write_result

from splatdistill.config.load import resolve
from splatdistill.config.schema import Config
from splatdistill.folder import CONFIG, PREVIOUS, RESULT
from splatdistill.training import inputs, run

OPERATIONS = ("fsync", "link", "mkdir", "remove", "rename", "replace", "rmdir", "unlink", "write")
KILLED = 9
SETTINGS = (
    *("steps=4", "views.size=16", "views.count=4", "gaussians.count=50"),
    *("report.size=16", "report.frames=2", "checkpoint_every=2", "gaussians.final_opacity=0.01"),
)
KINDS = {
    "fixed": ("densification.kind=none",),
    "default": ("densification.kind=default", "densification.start=1", "densification.every=2"),
    "mcmc": ("densification.kind=mcmc", "densification.start=1", "densification.every=2"),
    "vsd": ("method=vsd",),
}


@dataclass
class Tally:
    """What came of a campaign."""

    kills: int = 0
    lost: int = 0
    different: int = 0


def dying(moment: int) -> None:
    """Let this process die before its operation number `moment` on files, counted from 0."""
    done = iter(range(10**9))

    def counted(original: Callable) -> Callable:
        def operation(*args, **kwargs):
            if next(done) == moment:
                os._exit(KILLED)
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def forked(job: Callable[[], object], moment: int) -> int:
    """Return the exit status of a process that does a job and dies on the way, or with 0 when it is done."""
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent are not here
            dying(moment)
            job()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def outputs(folder: Path) -> dict[str, bytes]:
    """Return all files of a run's folder, but of the checkpoints the last alone."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    states = [name for name in files if name.endswith(".pt")]
    return {name: path.read_bytes() for name, path in files.items() if name not in states[:-1]}


def kill_all(config: Config, folder: Path, old: Path | None, moments: Iterator[int] | range) -> Tally:
    """Kill a run at the given moments, as far as it has such; with `old` it replaces a copy of that run."""
    tally = Tally()
    run.make_run(config, folder / "whole", device="cpu")
    whole = outputs(folder / "whole")
    for moment in moments:
        out = folder / f"{moment}"
        if old is not None:
            shutil.copytree(old, out)
        status = forked(
            lambda out=out: run.make_run(config, out, device="cpu", overwrite=old is not None), moment
        )
        if status == 0:
            break
        if status != KILLED:
            raise RuntimeError(f"status {status} instead of a kill, see {out}")
        tally.kills += 1
        results = {place.read_bytes() for place in (out / RESULT, out / PREVIOUS / RESULT) if place.exists()}
        if old is not None and not results & {(old / RESULT).read_bytes(), whole[RESULT]}:
            tally.lost += 1
        resume = old is None and (out / CONFIG).exists()
        result = run.make_run(config, out, device="cpu", resume=resume, overwrite=old is not None)
        tally.lost += not result.finished
        tally.different += outputs(out) != whole
        shutil.rmtree(out)
    return tally


def campaign(prior: str, kind: str, folder: Path, moments: range) -> dict[str, Tally]:
    """Kill new runs and runs that replace another, of one kind."""
    config = resolve({"prompt": "a red car", "prior": {"name": prior}}, None, [*SETTINGS, *KINDS[kind]])
    other = resolve({"prompt": "a red dog", "prior": {"name": prior}}, None, [*SETTINGS, *KINDS["fixed"]])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    try:
        teacher = inputs.teacher_of(config, torch.device("cpu"))  # loaded once
        with patch.object(run, "teacher_of", lambda *_: teacher):
            run.make_run(other, folder / "old", device="cpu")
            return {
                "new": kill_all(config, folder / "new", None, moments),
                "replacing": kill_all(config, folder / "replacing", folder / "old", moments),
            }
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Print a line a campaign and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--every", type=int, default=1, help="kill at every so many-th operation")
    args = parser.parse_args()
    figures = {}
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            tallies = campaign(args.prior, kind, Path(folder), range(0, 10**6, args.every))
        for name, tally in tallies.items():
            print(f"{kind:8} {name:10} {tally.kills:4} kills, {tally.lost} lost, {tally.different} different")
            figures[f"{kind}, {name}"] = vars(tally)
    write_result("kills", {"every": args.every, "campaigns": figures})


if __name__ == "__main__":
    main()
