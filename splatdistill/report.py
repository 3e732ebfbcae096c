"""`python -m splatdistill.report RUN`: make the images and the page of a finished run again.

Heavy imports are deferred, so that help and errors answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from splatdistill import __version__
from splatdistill.cli import Parser, note
from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, REPORT, RESULT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    parser = Parser(
        prog="python -m splatdistill.report",
        description="Make the pictures and the page of a finished run anew.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--version", action="version", version=f"splatdistill {__version__}")
    args = parser.parse_args(arguments)
    return exit_status(lambda: report(args.run), "interrupted; run it again for the rest")


def report(folder: Path) -> int:
    """Read a run and write its report; return the exit status."""
    for name in (RESULT, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no finished run (no {name}); give the folder of one")
    from splatdistill.config.load import load
    from splatdistill.formats.ply import read_ply
    from splatdistill.media.run_report import write_report
    from splatdistill.training.memory import check_report

    config = load(folder / CONFIG)
    check_report(config.report)
    write_report(read_ply(folder / RESULT)[0], folder, config)
    note(f"{folder / REPORT} shows the run; it is one file, to send or to keep")
    return 0


if __name__ == "__main__":
    sys.exit(main())
