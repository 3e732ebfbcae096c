"""`python -m splatdistill.edit`: change a splat by the difference of two prompts.

A run like any other, initialized from the splat instead of a blob, by a method that compares with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from splatdistill.cli import (
    Parser,
    add_logging,
    add_settings,
    add_viewer,
    chosen,
    exit_status,
    folder,
    make,
    note,
    status_of,
)
from splatdistill.errors import UserError
from splatdistill.training.inputs import edit_settings, name_of

METHODS = ("pds", "dds", "sds")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(prog="python -m splatdistill.edit", description="Edit a splat.", allow_abbrev=False)
    add = parser.add_argument
    add("--splat", required=True, metavar="FILE|RUN", help="a splat file, or the folder of a finished run")
    add("--source-prompt", help="what it shows; default the run's own prompt")
    add("--target-prompt", required=True, help="what it should show")
    add("--method", choices=METHODS, default="pds", help="default pds")
    add("--out", type=folder, metavar="DIR", help="default outputs/<target prompt>-edit-<seed>")
    add("--config", metavar="YAML", help="settings on top of the presets")
    add_viewer(parser)
    add_logging(parser)
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    add_settings(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    again = "python -m splatdistill.train --resume DIR"
    return exit_status(lambda: start(args), f"interrupted; a run that had begun continues with `{again}`")


def start(args: argparse.Namespace) -> int:
    """Read the splat and its prompt, and run; return the exit status."""
    if not args.target_prompt.strip():
        raise UserError("the target prompt is empty; say what it should show: --target-prompt 'a red car'")
    edit = edit_settings(Path(args.splat), args.source_prompt, note)
    from splatdistill.config.load import resolve

    flags = {"prompt": args.target_prompt, "method": args.method, "edit": edit}
    config = resolve(flags | chosen(args, "steps", "seed"), args.config, args.overrides)
    if config.edit.scale != 1.0:
        scale = f"{config.edit.scale:.3g} times its size"
        note(f"{config.edit.splat} is edited in the unit sphere, {scale}, and goes back afterwards")
    out = args.out or Path("outputs") / f"{name_of(config)}-edit-{config.seed}"
    return status_of(make(config, out, args))


if __name__ == "__main__":
    sys.exit(main())
