"""Fixed lists of prompts, and the runs of a list that are still to be made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from splatdistill.priors.embedded import grammar
from splatdistill.runs import RESULT, slug
from splatdistill.train import main


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
    names, colors = list(grammar.BUILDERS), list(grammar.COLORS)
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
    names, colors = list(grammar.BUILDERS), list(grammar.COLORS)
    pairs = [(name, colors[(5 * i + 7 * k) % 12]) for k in range(4) for i, name in enumerate(names)]
    return [grammar.describe((thing,), (color,)) for thing, color in pairs] + compositions(37)


def make_runs(
    prompts: Sequence[str],
    out: Path,
    methods: Sequence[str],
    priors: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> Iterator[Path]:
    """Yield the folder of every run, making those that are not there; an unfinished one goes on.

    What a run prints goes to log.txt in its folder. Raises KeyboardInterrupt for a run that was interrupted.
    """
    for prior, method, prompt, seed in product(priors, methods, prompts, seeds):
        folder = out / f"{slug(prior)}-{method}" / f"{slug(prompt)}-{seed}"
        if not (folder / RESULT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            arguments = ["--prompt", prompt, "--prior", prior, "--method", method, "--seed", str(seed)]
            arguments += ["--out", str(folder), *overrides]
            if (folder / "config.yaml").exists():
                arguments = ["--resume", str(folder)]
            with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
                status = main(arguments)
            if status == 130:
                raise KeyboardInterrupt
            if status:
                print(f"{folder}: failed with status {status}, see log.txt", file=sys.stderr)
                continue
        yield folder
