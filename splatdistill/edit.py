"""`python -m splatdistill.edit`: change a splat, or a part of it, by the difference of two prompts.

A run like any other, initialized from the splat instead of a blob, by a method that compares with it, or,
within a mask, by one that makes something new.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splatdistill.cli import change, chosen, note, parse_change, run_change, start_of
from splatdistill.errors import UserError
from splatdistill.training.changes import COMPARING, edit_config, edit_method

if TYPE_CHECKING:
    from splatdistill.config.schema import Config

METHODS = (*COMPARING, "sds", "sdi")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    return parse_change("edit", "<target prompt>", options, arguments)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this verb has."""
    add = parser.add_argument
    add("--source-prompt", help="what it shows; default the run's own prompt")
    add("--target-prompt", required=True, help="what it should show")
    add("--method", choices=METHODS, help="default pds; within a mask sdi, which makes what was not there")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    return run_change(lambda: start(args))


def start(args: argparse.Namespace) -> int:
    """Read the splat and its prompt, and run; return the exit status."""
    config = configure(args)
    if config.edit.scale != 1.0:
        scale = f"{config.edit.scale:.3g} times its size"
        note(f"{config.edit.splat} is edited in the unit sphere, {scale}, and goes back afterwards")
    return change(config, args, "edit")


def configure(args: argparse.Namespace) -> Config:
    """Return the configuration of the command line."""
    if not args.target_prompt.strip():
        raise UserError("the target prompt is empty; say what it should show: --target-prompt 'a red car'")
    method = edit_method(args.method, masked=bool(args.mask))
    edit = start_of(args, args.source_prompt, prompted=method in COMPARING)
    flags = chosen(args, "steps", "seed")
    return edit_config(args.target_prompt, method, edit, flags, args.config, args.overrides)


if __name__ == "__main__":
    sys.exit(main())
