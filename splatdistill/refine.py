"""`python -m splatdistill.refine --splat FILE --prompt TEXT`: make a splat better without making another.

A run like any other that starts from the splat at low levels of noise, held to what it looks like: what the
teacher would draw slightly otherwise stays, and what is far from anything it would draw is repaired.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splatdistill.cli import change, chosen, existing, parse_change, run_change, start_of
from splatdistill.errors import UserError
from splatdistill.training.changes import noise_levels, refine_config

if TYPE_CHECKING:
    from splatdistill.config.schema import Config


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    return parse_change("refine", "<prompt>", options, arguments)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this verb has."""
    add = parser.add_argument
    add("--prompt", help="what it shows; default the run's own prompt")
    picture = "a picture of it; image.* says from where, image.rgb how it counts"
    add("--image", type=existing, metavar="FILE", help=picture)
    cameras = "pictures of it with cameras: a transforms.json as nerfstudio writes it"
    add("--references", type=existing, metavar="JSON", help=cameras)
    add("--negative-prompt", help="what to steer away from")
    strength = "the highest level of noise, above .02 to 1: more changes more; default .5"
    add("--strength", type=float, metavar="T", help=strength)
    add("--method", help="sdi (default), sds, csd, ... : docs/METHODS.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    return run_change(lambda: start(args))


def start(args: argparse.Namespace) -> int:
    """Read the splat and its prompt, and run; return the exit status."""
    return change(configure(args), args, "refine")


def configure(args: argparse.Namespace) -> Config:
    """Return the configuration of the command line."""
    noise_levels(args.strength)  # a wrong one is told before the splat is read
    edit = start_of(args, args.prompt, prompted=False)
    prompt = args.prompt if args.prompt is not None else edit["source_prompt"]
    if not prompt.strip() and not args.image:
        raise UserError("what does the splat show? say it with --prompt 'a red car'")
    flags = chosen(args, "negative_prompt", "method", "steps", "seed")
    if args.image is not None:
        flags["image"] = {"path": args.image}
    if args.references is not None:
        flags["captures"] = {"path": args.references}
    return refine_config(prompt, args.strength, edit, flags, args.config, args.overrides)


if __name__ == "__main__":
    sys.exit(main())
