"""Fixed lists of prompts, and the runs of a list that are still missing."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from splatdistill.config.load import canonical, dump, parse_yaml, resolve
from splatdistill.config.schema import Config
from splatdistill.console import note
from splatdistill.errors import UserError
from splatdistill.folder import BATCH_SETTINGS
from splatdistill.priors import words as grammar
from splatdistill.priors.loading import ASSETS
from splatdistill.training.checkpoint import differing
from splatdistill.training.executors import local
from splatdistill.training.inputs import check_words, slug
from splatdistill.training.jobs import RunSpec, check, make_all


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
    "objects": grammar.object_prompts,
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


def run_folder(out: Path, prior: str, method: str, prompt: str, seed: int) -> Path:
    """Return the folder of a run in the folder of a list."""
    return out / f"{slug(prior)}-{method}" / f"{slug(prompt)}-{seed}"


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
            folder = run_folder(out, prior, method, prompt, seed)
            these.append(RunSpec(folder, resolve(flags, None, overrides)))
            check_words(these[-1].config, allow_unknown)
        if missing := [one for one in these if not one.finished]:
            check(missing[0])
        specs += these
    return make(specs, jobs)


def listed(name: str) -> list[dict[str, Any]]:
    """Return the runs of a list as settings, each with a prompt: of a suite, a text file or a YAML list.

    Raises UserError for a list that is missing, empty or malformed.
    """
    if name in SUITES:
        return [{"prompt": prompt} for prompt in SUITES[name]()]
    try:
        text = Path(name).read_text("utf-8")
        yaml = Path(name).suffix in (".yaml", ".yml")
        items = parse_yaml(text) if yaml else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        reason = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
        suites = ", ".join(SUITES)
        raise UserError(
            f"cannot read the list {name}: {reason}; give a file, or a suite: {suites}"
        ) from error
    if not isinstance(items, list):
        raise UserError(
            f"{name}: expected a list, of prompts or of settings such as {{prompt: a red dog, seed: 1}}"
        )
    found = [{"prompt": item} if isinstance(item, str) else item for item in items if item]
    if not found or not all(isinstance(item, Mapping) and item.get("prompt") for item in found):
        raise UserError(f"{name}: expected at least one run, and a prompt in each")
    return [dict(item) for item in found]


def specs_of(
    items: Iterable[Mapping[str, Any]],
    out: Path,
    flags: Mapping[str, Any],
    words: Sequence[str],
    *,
    allow_unknown: bool,
) -> tuple[list[RunSpec], Config]:
    """Return the runs of a list, each once, in a folder that its own settings name; and what all share.

    Args:
        items: settings of each, with a prompt.
        out: the folder.
        flags: settings of all, which those of one outweigh.
        words: the same as `key=value`.
        allow_unknown: of words that the teacher does not know.

    Raises:
        UserError: invalid settings or words.
    """
    found: dict[Path, RunSpec] = {}
    base = resolve({"prompt": "-", **flags}, None, words)
    for item in items:
        if item.keys() <= {"prompt", "seed"}:
            config = replace(base, prompt=str(item["prompt"]), seed=int(item.get("seed", base.seed)))
            mark = ""
        else:
            config = resolve(canonical({**flags, **item}, "the list"), None, words)
            others = json.dumps(item, sort_keys=True, default=str).encode()
            mark = "-" + hashlib.blake2s(others, digest_size=4).hexdigest()
        check_words(config, allow_unknown)
        folder = out / f"{slug(config.prompt)}{mark}-{config.seed}"
        found[folder] = RunSpec(folder, config)
    return list(found.values()), base


def keep_settings(out: Path, base: Config) -> None:
    """Write what all runs of a folder share; raises UserError where it holds runs of other settings."""
    path, base = out / BATCH_SETTINGS, replace(base, prompt="", seed=0)
    if path.exists():
        if others := differing(path.read_text("utf-8"), base):
            key, before, now = others[0]
            raise UserError(
                f"{out} has runs with {key} {before!r}, not {now!r}; put it back, or give another --out"
            )
        return
    with tempfile.NamedTemporaryFile(
        "w", dir=out, delete=False, encoding="utf-8"
    ) as file:  # several may write
        file.write(dump(base))
    os.replace(file.name, path)


def make(specs: Sequence[RunSpec], jobs: int | None = 1) -> list[Path]:
    """Make the missing runs on this machine; an unfinished one is continued.

    The output of a run goes to log.txt in its folder; one that fails is reported and left out.

    Args:
        specs: all runs.
        jobs: number of processes, which share the cores; see `executors.local`.

    Returns:
        The folders of the finished runs, in order.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    for folder, failure in make_all(specs, local(jobs)).items():
        note(f"{folder}: {failure}")
    return [one.folder for one in specs if one.finished]
