"""Fixed lists of prompts, and the runs of a list that are still to be made."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from splatdistill import train
from splatdistill.folder import CONFIG, LOG, RESULT
from splatdistill.priors import words as grammar
from splatdistill.training.run import slug


def objects() -> list[str]:
    """Every object of the embedded teacher once, over all colours."""
    names, colors = list(grammar.OBJECTS), list(grammar.COLORS)
    picked = [
        (names[i * 7 % len(names)], colors[(i * 5 + i // len(names)) % len(colors)])
        for i in range(len(names))
    ]
    return [grammar.describe((thing,), (color,)) for thing, color in picked]


def compositions(count: int = 30) -> list[str]:
    """Pairs, one thing on top of another, each in a colour of its own."""
    names, colors = list(grammar.THINGS), list(grammar.COLORS)
    below = ("cube", "cylinder", "sphere")
    pairs = [
        ((names[i * 11 % 29], below[i % 3]), (colors[i * 5 % 12], colors[(i * 7 + 3) % 12]))
        for i in range(count)
    ]
    return [grammar.describe(*pair) for pair in pairs]


SUITES = {
    "objects": objects,
    "compositions": compositions,
    "dreamfusion": lambda: [  # in the manner of its gallery; for teachers that read open text
        "a corgi wearing a beret",
        "a squirrel riding a bicycle",
        "a wooden lighthouse on a rock",
        "a ripe strawberry",
        "a bowl of ramen with an egg",
        "a knitted owl",
        "a blue porcelain teapot",
        "an astronaut on a horse",
        "a stack of pancakes with syrup",
        "a steam locomotive",
        "a pineapple in sunglasses",
        "a tree house with a rope ladder",
    ],
}


def distractors() -> list[str]:
    """153 different descriptions, as many as DreamFusion ranks against: 116 of one thing, 37 of two."""
    names, colors = list(grammar.THINGS), list(grammar.COLORS)
    pairs = [(name, colors[(5 * i + 7 * k) % 12]) for k in range(4) for i, name in enumerate(names)]
    return [grammar.describe((thing,), (color,)) for thing, color in pairs] + compositions(37)


@dataclass(frozen=True)
class Job:
    """One run to be made: its folder, and the words of its command."""

    folder: Path
    verb: Callable[[list[str]], int]
    words: list[str]


def make_runs(
    prompts: Sequence[str],
    out: Path,
    methods: Sequence[str],
    priors: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    jobs: int | None = 1,
) -> list[Path]:
    """The folders of all runs of a list, made where they are not there; see `make`."""
    asked = []
    for prior, method, prompt, seed in product(priors, methods, prompts, seeds):
        folder = out / f"{slug(prior)}-{method}" / f"{slug(prompt)}-{seed}"
        words = ["--prompt", prompt, "--prior", prior, "--method", method, "--seed", str(seed)]
        asked.append(Job(folder, train.main, [*words, "--out", str(folder), *overrides]))
    return make(asked, jobs)


def make(asked: Sequence[Job], jobs: int | None = 1) -> list[Path]:
    """Make the runs that are not there, several side by side; an unfinished one goes on.

    What a run prints goes to log.txt in its folder; one that fails is told and left out. Fewer threads may
    round sums in another way, so runs of one set of jobs repeat to the byte, and others nearly so.

    Args:
        asked: all runs.
        jobs: processes, which share the cores; 1 makes the runs in this process; None: one a core, but one
            where there is a GPU, which a run fills by itself.

    Returns:
        The folders of the runs that are there, in order.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    missing = [job for job in asked if not (job.folder / RESULT).exists()]
    cores = os.cpu_count() or 1
    if jobs is None:
        jobs = 1 if torch.cuda.is_available() else cores
    jobs = min(jobs, len(missing))
    if jobs > 1:
        threads = max(cores // jobs, 1)
        pool = ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
        )
        try:
            statuses = list(pool.map(make_one, missing))
        finally:
            pool.shutdown(cancel_futures=True)
    else:
        statuses = [make_one(job) for job in missing]
    for job, status in zip(missing, statuses, strict=True):
        if status:
            print(f"{job.folder}: failed with status {status}, see log.txt", file=sys.stderr)
    return [job.folder for job in asked if (job.folder / RESULT).exists()]


def make_one(job: Job) -> int:
    """Make or continue a run; return its exit status. Raises KeyboardInterrupt when it was interrupted."""
    job.folder.mkdir(parents=True, exist_ok=True)
    begun = (job.folder / CONFIG).exists()
    with open(job.folder / LOG, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        status = train.main(["--resume", str(job.folder)]) if begun else job.verb(job.words)
    if status == 130:
        raise KeyboardInterrupt
    return status
