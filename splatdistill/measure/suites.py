"""Fixed lists of prompts, and the runs of a list that are still missing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TextIO

import torch

from splatdistill.config.load import load, resolve
from splatdistill.config.schema import Config
from splatdistill.errors import Diverged, UserError
from splatdistill.folder import CONFIG, LOG, RESULT
from splatdistill.priors import words as grammar
from splatdistill.priors.loading import ASSETS
from splatdistill.training import run
from splatdistill.training.inputs import check_words, slug
from splatdistill.training.progress import Lines, Watcher, interruptible


def objects() -> list[str]:
    """Return one prompt for every object of the shipped teacher, cycling through the colors."""
    names, colors = list(grammar.OBJECTS), list(grammar.COLORS)
    picked = [
        (names[i * 7 % len(names)], colors[(i * 5 + i // len(names)) % len(colors)])
        for i in range(len(names))
    ]
    return [grammar.describe((thing,), (color,)) for thing, color in picked]


def compositions(count: int = 30) -> list[str]:
    """Return prompts of one object on top of another, each in a color of its own."""
    names, colors = list(grammar.THINGS), list(grammar.COLORS)
    below = ("cube", "cylinder", "sphere")
    pairs = [
        ((names[i * 11 % 29], below[i % 3]), (colors[i * 5 % 12], colors[(i * 7 + 3) % 12]))
        for i in range(count)
    ]
    return [grammar.describe(*pair) for pair in pairs]


PUBLISHED = {  # suites of papers: the files that hold their prompts, each with its source in its first line
    "sdi43": ("sdi43",),
    "t3bench": ("t3bench-single", "t3bench-surroundings", "t3bench-multi"),
    "t3bench-single": ("t3bench-single",),
    "t3bench-surroundings": ("t3bench-surroundings",),
    "t3bench-multi": ("t3bench-multi",),
}


def published(name: str) -> list[str]:
    """Return the prompts of a paper's suite, in its order."""
    texts = [(ASSETS / "suites" / f"{part}.txt").read_text("utf-8") for part in PUBLISHED[name]]
    return [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]


SUITES = {
    **{name: partial(published, name) for name in PUBLISHED},
    "objects": objects,
    "compositions": compositions,
    "dreamfusion": lambda: [  # in the style of its gallery; for teachers with an open vocabulary
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
    """Return 153 different texts, as many as DreamFusion ranks against: 116 of one object, 37 of two."""
    names, colors = list(grammar.THINGS), list(grammar.COLORS)
    pairs = [(name, colors[(5 * i + 7 * k) % 12]) for k in range(4) for i, name in enumerate(names)]
    return [grammar.describe((thing,), (color,)) for thing, color in pairs] + compositions(37)


@dataclass(frozen=True)
class RunSpec:
    """A run to be made: its folder, its configuration, and whether words may be unknown to its teacher."""

    folder: Path
    config: Config
    allow_unknown: bool = False


def make_runs(
    prompts: Sequence[str],
    out: Path,
    methods: Sequence[str],
    priors: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    jobs: int | None = 1,
    allow_unknown: bool = False,
) -> list[Path]:
    """Make the missing runs of a list and return the folders of all; see `make`.

    allow_unknown: a teacher with a vocabulary of its own takes the nearest words, and of a prompt without any
    it makes what it will. Raises UserError for invalid settings, words, methods and priors before the first
    run is made.
    """
    specs: list[RunSpec] = []
    for prior, method in product(priors, methods):
        these = []
        for prompt, seed in product(prompts, seeds):
            flags = {"prompt": prompt, "prior": {"name": prior}, "method": method, "seed": seed}
            folder = out / f"{slug(prior)}-{method}" / f"{slug(prompt)}-{seed}"
            these.append(RunSpec(folder, resolve(flags, None, overrides), allow_unknown))
            check_words(these[-1].config, allow_unknown)
        if missing := [one for one in these if not (one.folder / RESULT).exists()]:
            run.prepare(missing[0].config, missing[0].folder)  # checks everything and writes nothing
        specs += these
    return make(specs, jobs)


def tell(line: str) -> None:
    """Print a line beside the progress."""
    print(line, file=sys.stderr, flush=True)


def make(specs: Sequence[RunSpec], jobs: int | None = 1, note: Callable[[str], None] = tell) -> list[Path]:
    """Make the missing runs in parallel; an unfinished one is continued.

    The output of a run goes to log.txt in its folder; one that fails is reported and left out. The number of
    threads affects the order of sums, so runs with the same `jobs` repeat to the byte, and others nearly so.

    Args:
        specs: all runs.
        jobs: number of processes, which share the cores. 1 makes the runs in this process. None is one for
            each core, but a single one where there is a GPU, which one run fills.
        note: called with a line for each run that failed.

    Returns:
        The folders of the finished runs, in order.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    missing = [one for one in specs if not (one.folder / RESULT).exists()]
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
            failures = list(pool.map(make_one, missing))
        finally:
            pool.shutdown(cancel_futures=True)
    else:
        failures = [make_one(one) for one in missing]
    for one, failure in zip(missing, failures, strict=True):
        if failure:
            note(f"{one.folder}: {failure}")
    return [one.folder for one in specs if (one.folder / RESULT).exists()]


def make_one(spec: RunSpec) -> str:
    """Make or continue a run; return why it failed, or an empty text.

    Raises KeyboardInterrupt when it was interrupted; its state is saved then.
    """
    folder = spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / CONFIG).exists()
    with open(folder / LOG, "a", encoding="utf-8") as log:
        try:
            config = load(folder / CONFIG) if begun else spec.config
            unknown = {"allow_unknown": spec.allow_unknown}
            result = run.make_run(config, folder, resume=begun, watch=partial(logged, log), **unknown)
        except (UserError, Diverged) as error:
            print(f"error: {error}", file=log)
            return str(error)
    if not result.finished:
        raise KeyboardInterrupt
    return ""


@contextmanager
def logged(log: TextIO, job: run.Job) -> Iterator[Watcher]:
    """Write a run's progress to a file, and let signals stop it."""
    with interruptible() as interrupted:
        watcher = Lines(job.config.steps, job.state.step, log)
        watcher.should_stop = interrupted
        yield watcher
