"""Fill the disk at every operation of every verb that writes, and see that it says so and loses nothing.

`PYTHONPATH=tests python benchmarks/disk_full.py [--jobs NAME ...]` writes benchmarks/results/disk_full.json.

The jobs are those of kills.py. The k-th time, the disk is full from the k-th operation on that needs room:
that write is cut in half, and every later one fails. The command must end with status 2 and one line that
says to make room; then there is room again, and it is finished as after a kill, with the same bytes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from file_faults import FULL, NEVER, Ended, contents, preload, run_verb
from kills import Job, Tally, campaign, differing, done, filled, held, next_words, recorded

ADVICE = "make room on the disk"


def fill_all(job: Job, folder: Path, every: int = 1) -> Tally:
    """Fill the disk at every so many-th operation of a job, make room, finish it, and compare."""
    expected, _ = done(job, folder / "whole")
    tally = Tally()
    for moment in range(0, NEVER, every):
        out = folder / str(moment)
        if job.before is not None:
            shutil.copytree(job.before, out)
        ended = run_verb(filled(job.words, out), out, FULL, moment)
        if ended.status == 0 and ended.operations <= moment:
            shutil.rmtree(out)
            break
        tally.faults += 1
        where = f"full from operation {moment}"
        if wrong := complaint(ended):
            tally.untold.append(f"{where}: {wrong}")
        if not held(job, out, expected):
            tally.lost.append(f"{where}: neither the old {job.result} nor the new one is there")
        last = run_verb(next_words(job, out, expected, moment), out)
        if last.status != 0:
            tally.lost.append(f"{where}: {last.text[-300:]}")
        elif wrong := differing(contents(out), expected):
            tally.different.append(f"{where}: {wrong}")
        shutil.rmtree(out)
    return tally


def complaint(ended: Ended) -> str:
    """Return what is wrong with how a command met a full disk; empty for nothing."""
    lines = [line for line in ended.text.splitlines() if line.startswith("error:")]
    if ended.status == 2 and len(lines) == 1 and ADVICE in lines[0] and "Traceback" not in ended.text:
        return ""
    return f"status {ended.status}, {ended.text[-300:]!r}"


def main() -> None:
    """Print a line a job and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prior", help="the teacher; default a tiny random one")
    parser.add_argument("--jobs", nargs="+", metavar="NAME", help="default all")
    parser.add_argument("--every", type=int, default=1, help="at every so many-th operation")
    parser.add_argument("--dry", action="store_true", help="write no result")
    args = parser.parse_args()
    preload()
    torch.set_num_threads(1)
    filled_up = campaign(args.prior, args.jobs, args.every, fill_all)
    sys.exit(not recorded(filled_up, None if args.dry else "disk_full", args.every, some=bool(args.jobs)))


if __name__ == "__main__":
    main()
