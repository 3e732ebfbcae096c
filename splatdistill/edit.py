"""`python -m splatdistill.edit`: change what a splat shows, as far as two prompts differ. Parses; no maths.

It is a run like any other, from the splat instead of a blob, by a method that compares with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splatdistill.cli import Parser, add_settings, add_viewer, chosen, exit_status, note
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, RESULT
from splatdistill.training.run import begin, slug

METHODS = ("pds", "dds", "sds")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(prog="python -m splatdistill.edit", description="Edit a splat.", allow_abbrev=False)
    add = parser.add_argument
    add("--splat", required=True, metavar="FILE|RUN", help="a splat file, or the folder of a finished run")
    add("--source-prompt", help="what it shows; default the run's own prompt")
    add("--target-prompt", required=True, help="what it should show")
    add("--method", choices=METHODS, default="pds", help="default pds")
    add("--out", type=Path, metavar="DIR", help="default outputs/<target prompt>-edit-<seed>")
    add("--config", metavar="YAML", help="settings on top of the presets")
    add_viewer(parser)
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    add_settings(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    again = "python -m splatdistill.train --resume DIR"
    return exit_status(lambda: start(args), f"interrupted; a run that had begun continues with `{again}`")


def start(args: argparse.Namespace) -> int:
    """Find the splat and its prompt, and run."""
    from splatdistill import formats
    from splatdistill.config.load import load, resolve
    from splatdistill.scene.gaussians import placement

    splat, source = Path(args.splat), args.source_prompt
    if splat.is_dir():
        if not (splat / RESULT).is_file():
            raise UserError(f"{splat}: there is no finished run (no {RESULT})")
        source = load(splat / CONFIG).prompt if source is None else source
        splat = splat / RESULT
    if not source or not source.strip():
        raise UserError("what does the splat show? say it with --source-prompt 'a red car'")
    gaussians, _ = formats.read_splat(splat, note=note)
    shift, scale = placement(gaussians)
    if scale != 1.0:
        note(f"{splat} is edited in the unit sphere, {scale:.3g} times its size, and goes back afterwards")
    flags: dict[str, Any] = {
        "prompt": args.target_prompt,
        "method": args.method,
        "edit": {"splat": str(splat), "source_prompt": source, "shift": list(shift), "scale": scale},
    }
    config = resolve(flags | chosen(args, "steps", "seed"), args.config, args.overrides)
    out = args.out or Path("outputs") / f"{slug(config.prompt)}-edit-{config.seed}"
    return begin(config, out, args)


if __name__ == "__main__":
    sys.exit(main())
