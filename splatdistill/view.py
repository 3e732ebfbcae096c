"""`python -m splatdistill.view FILE|RUN`: show a splat, or a finished run, in the browser.

Heavy imports are deferred until the arguments are parsed, so that help and errors answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splatdistill import __version__
from splatdistill.cli import Parser, add_axes, add_viewer, interruptible, note
from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, RESULT
from splatdistill.priors.loading import check_name

if TYPE_CHECKING:
    from splatdistill.viewer import Scenes


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace."""
    parser = Parser(
        prog="python -m splatdistill.view",
        description="Look at a splat, or at a finished run, in the browser.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    kinds = "a splat in any format, a point cloud, a mesh, or the folder of a run"
    add("source", type=Path, metavar="FILE|RUN", help=kinds)
    add_axes(parser)
    add_viewer(parser)
    add("--prior", help="the teacher of runs that are started in the page; default as of refine and edit")
    add("--version", action="version", version=f"splatdistill {__version__}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C; return its exit status: 0, or 2 after a user's mistake."""
    args = parse(arguments)
    return exit_status(lambda: view(args), "interrupted")


def view(args: argparse.Namespace) -> int:
    """Read and show a scene until Ctrl-C; return the exit status."""
    source_file(args.source)  # before anything heavy is imported
    if args.prior is not None:
        check_name(args.prior)
    from splatdistill.viewer import parse_address, serve

    address = parse_address(args.viewer or "", args.viewer_remote)
    scenes, prompt, method = open_scenes(args.source, args.from_up, args.program)
    settings = [] if args.prior is None else [f"prior.name={args.prior}"]
    served = serve(scenes, address, prompt, method, live=False, settings=settings)
    with interruptible() as interrupted, served:
        note("Ctrl-C ends it")
        version = -1
        while not interrupted():
            version = scenes.session.wait(version, 0.2)
    return 0


def source_file(source: Path) -> Path:
    """Return the file to show: the path itself, or a run's result; raises UserError where there is none."""
    file = source / RESULT if source.is_dir() else source
    if source.is_dir() and not file.is_file():
        raise UserError(f"{source} holds no finished run (no {RESULT}); give another, or a file")
    if not file.exists():
        raise UserError(f"there is no file and no run {source}")
    return file


def open_scenes(source: Path, up: str | None = None, program: str | None = None) -> tuple[Scenes, str, str]:
    """Return the scenes of a file or run, its title (prompt or name), and its subtitle (method or format).

    up, program: as in `formats.read_splat`. Raises UserError when there is none, or it cannot be read.
    """
    from splatdistill.formats.shapes import holds_splats, read_scene
    from splatdistill.viewer import Scenes, Session

    folder, file = source if source.is_dir() else None, source_file(source)
    gaussians, comments = read_scene(file, up, program=program, note=note)
    steps = 0
    if folder and (folder / CONFIG).is_file():
        from splatdistill.config.load import load

        steps = load(folder / CONFIG).steps
    stored = file if holds_splats(file) else None
    scenes = Scenes(Session.showing(gaussians, steps, steps), comments, stored, folder)
    return scenes, comments.get("prompt") or source.name, comments.get("method") or file.suffix


if __name__ == "__main__":
    sys.exit(main())
