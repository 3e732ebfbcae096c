"""`python -m splatdistill.train --prompt TEXT`: text to a 3D Gaussian splat.

Heavy imports are deferred until the arguments are parsed, so that help and errors answer at once.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from splatdistill.cli import (
    Parser,
    add_axes,
    add_run,
    chosen,
    existing,
    folder,
    make,
    note,
    numbers,
    status_of,
)
from splatdistill.console import exit_status, say
from splatdistill.errors import Diverged, UserError
from splatdistill.folder import CONFIG, RESULT, SEEDS, SWEEP
from splatdistill.training.inputs import edit_settings, name_of
from splatdistill.training.parallel import launched

if TYPE_CHECKING:
    from splatdistill.config.schema import Config

# the options that say what a run is
CHOICES = ("prompt", "image", "init", "negative_prompt", "method", "prior", "lora", "seed", "seeds")
CHOICES += ("sweep", "out", "config")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(
        prog="python -m splatdistill.train", description="Text to a 3D Gaussian splat.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--prompt", help="what to make: 'a red mushroom'")
    picture = "a picture of one thing, transparent or on a plain background"
    add("--image", type=existing, metavar="FILE", help=picture)
    add("--init", metavar="FILE", help="start from a splat, a point cloud (.ply) or a mesh (.glb, .obj)")
    add_axes(parser)
    add("--negative-prompt", help="what to steer away from")
    add("--method", help="sdi (default), sds, dsd, csd, ... : docs/METHODS.md")
    add("--seeds", metavar="0-7", help="a run for each, in DIR/SEED, and DIR/seeds.png; goes on where it was")
    more = "continue a run that was stopped, exactly; with --steps, one that is finished"
    add("--resume", type=folder, metavar="DIR", help=more)
    sweep = "a run for each value, and DIR/sweep.html; several multiply, also with --seeds"
    add("--sweep", action="append", metavar="KEY=V,V", help=sweep)
    add("--list-words", action="store_true", help="print the words that the teacher knows, and exit")
    add_run(parser, "<prompt>-<seed>, or -seeds")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    if args.list_words:
        return exit_status(lambda: list_words(args.prior), "interrupted")
    command = resume if args.resume else several if args.seeds is not None or args.sweep else start
    return exit_status(lambda: command(args), "interrupted; a run that had begun continues with --resume DIR")


def list_words(prior: str | None) -> int:
    """Print the vocabulary of a teacher; return the exit status."""
    from splatdistill.config.presets import DEFAULT
    from splatdistill.priors.loading import words_of

    words = words_of(prior or DEFAULT)
    say(f"{prior} reads any text" if words is None else words.listing())
    return 0


def start(args: argparse.Namespace) -> int:
    """Start a run in a new folder; return the exit status."""
    config = configure(args)
    out = args.out or Path("outputs") / f"{name_of(config)}-{config.seed}"
    return status_of(make(config, out, args))


def several(args: argparse.Namespace) -> int:
    """Make a run for each seed and each combination of a sweep, and one image or page of all.

    Returns:
        The highest exit status of the runs.
    """
    from splatdistill.config.load import load
    from splatdistill.files import atomic_write
    from splatdistill.media.runs_page import runs_page
    from splatdistill.media.sheets import runs_sheet
    from splatdistill.training.jobs import brief

    if launched():
        raise UserError("--seeds and --sweep make runs one after another: use splatdistill.batch for many")
    if args.seed is not None and args.seeds is not None:
        raise UserError("give --seed or --seeds, not both")
    seeds = [None] if args.seeds is None else numbers(args.seeds, "--seeds")
    planned = [  # all are parsed before the first is made
        (words, seed, configure(args, seed, words)) for words in swept(args.sweep or []) for seed in seeds
    ]
    kind, sheet = ("sweep", SWEEP) if args.sweep else ("seeds", SEEDS)
    base = args.out or Path("outputs") / f"{name_of(planned[0][2])}-{kind}"
    status, finished = 0, {}
    for words, seed, config in planned:
        name = " ".join([*words, *([] if seed is None else [f"seed={seed}" if words else str(seed)])])
        out = base / re.sub(r"[^\w.,=\[\]+-]+", "_", name)
        known = not args.overwrite and (out / CONFIG).is_file() and load(out / CONFIG) == config
        if not (known and (out / RESULT).exists()):
            try:
                if not make(config, out, args, resume=known).finished:
                    return 130
            except (UserError, OSError):  # the others would end in the same
                raise
            except Diverged as error:
                note(f"error: {error}")
                status = 1
                continue
            except Exception as error:  # a GPU without memory, or a fault of a method: the others go on
                traceback.print_exc()
                note(f"error: {out}: {brief(error)}")
                status = 1
                continue
        finished[out] = name
    if finished:
        with atomic_write(base / sheet) as file:
            if args.sweep:
                file.write(runs_page(planned[0][2].prompt or name_of(planned[0][2]), finished).encode())
            else:
                runs_sheet([out / RESULT for out in finished], 96, 2).save(file, format="PNG")
        note(f"{base / sheet} shows {len(finished)} runs, four views each")
    return status


def swept(sweeps: Sequence[str]) -> list[list[str]]:
    """Return the settings of each run of a sweep: the product of all KEY=V,V.

    Commas inside brackets do not separate values. Raises UserError for other text.
    """
    choices = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        parts = [part.strip() for part in re.split(r",(?![^\[]*\])", values)]
        if not (key and equals and all(parts)) or len(set(parts)) < len(parts):
            raise UserError(f"--sweep {sweep}: expected KEY=VALUE,VALUE such as guidance.scale=3,5,8")
        choices.append([f"{key}={part}" for part in parts])
    return [list(chosen) for chosen in product(*choices)]


def resume(args: argparse.Namespace) -> int:
    """Continue the run in a folder under its own configuration; return the exit status."""
    given = [f"--{name.replace('_', '-')}" for name in CHOICES if getattr(args, name) is not None]
    given += args.overrides + ["--overwrite"] * args.overwrite
    if given:
        raise UserError(f"--resume continues a run as it was configured; drop {' '.join(given)}")
    if not (args.resume / CONFIG).is_file():
        raise UserError(f"--resume {args.resume}: there is no run (no {CONFIG}); give the folder of a run")
    from splatdistill.config.load import load, merge

    config = load(args.resume / CONFIG)
    if args.steps is not None:
        config = merge(config, {"steps": args.steps}, "--steps")
    return status_of(make(config, args.resume, args, resume=True))


def configure(args: argparse.Namespace, seed: int | None = None, words: Sequence[str] = ()) -> Config:
    """Return the configuration of the command line, with one of several seeds and settings."""
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("the prompt is empty; say what to make, such as --prompt 'a red mushroom'")
    if not (args.prompt or args.image or args.config or args.overrides or words):
        raise UserError("there is no prompt; say what to make, such as --prompt 'a red mushroom'")
    from splatdistill.config.load import resolve

    flags = chosen(args, "prompt", "negative_prompt", "method", "steps", "seed")
    if seed is not None:
        flags["seed"] = seed
    if args.image is not None:
        flags["image"] = {"path": args.image}
    if args.init is not None:
        axes = {"program": args.program, "up": args.from_up}
        flags["edit"] = edit_settings(Path(args.init), "", note, **axes, prompted=False)
    elif args.program or args.from_up:
        raise UserError("--from and --from-up say what is up in the file of --init; give that too")
    config = resolve(flags, args.config, [*args.overrides, *words], "init" if args.init else "")
    if not config.prompt.strip() and not config.image.path:
        raise UserError("there is no prompt; say what to make, such as --prompt 'a red mushroom'")
    return config


if __name__ == "__main__":
    sys.exit(main())
