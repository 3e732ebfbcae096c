"""`python -m splatdistill.evaluate RUN...` or `--suite NAME`: metrics of runs as a table, JSON and an image.

`--compare A B` compares two such results pair by pair, as a table, JSON and a page.

With a suite, missing runs of its prompts, priors, methods and seeds are made first. Heavy imports are
deferred, so that help and errors answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, folder, note, numbers
from splatdistill.config.presets import DEFAULT
from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.files import atomic_write, writable_folder
from splatdistill.folder import CONFIG, RESULT
from splatdistill.guidance.registry import check_method
from splatdistill.priors.loading import check_clip, check_name

if TYPE_CHECKING:
    from rich.table import Table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace."""
    parser = Parser(
        prog="python -m splatdistill.evaluate", description="Runs as numbers.", allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs; with a suite: key=value")
    suites = "objects, compositions, dreamfusion, sdi43, t3bench (or -single, -surroundings, -multi)"
    add("--suite", metavar="NAME", help=f"make and measure runs: {suites}")
    two = "compare two results of this command, of the same prompts and seeds"
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help=two)
    add("--methods", default="sdi", help="with a suite: sdi,sds")
    add("--priors", default=DEFAULT, help=f"with a suite: real,sd21; default {DEFAULT}")
    add("--seeds", default="0", help="with a suite: 0,1 or 0-7")
    add("--jobs", type=int, help="with a suite: runs side by side; default one a core, on a GPU one")
    add("--out", type=folder, metavar="DIR", help="default outputs/suite-NAME, or outputs/evaluation")
    clip = "the folder of a CLIP model, or owner/name@COMMIT of the hub; default the judge of the teacher"
    add("--clip", metavar="PATH", help=clip)
    liked = "a model of preferences: PickScore as --clip, HPSv2's or ImageReward's file; a figure more"
    add("--preference", metavar="PATH", help=liked)
    add("--distractors", type=Path, metavar="FILE", help="what R-Precision ranks against, one text a line")
    add("--no-teacher", action="store_true", help="do not compare with the teacher's own samples")
    add("--version", action="version", version=f"splatdistill {__version__}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    task = compare if args.compare else report
    return exit_status(lambda: task(args), "interrupted; the same command goes on from here")


def compare(args: argparse.Namespace) -> int:
    """Write comparison.json and comparison.html of two evaluations; return the exit status."""
    from rich.console import Console

    from splatdistill.measure.comparing import differences, page, paired, rows_of
    from splatdistill.measure.comparing import table as comparison

    first, second = args.compare
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    pairs = paired(rows_of(first), rows_of(second))
    found, out = differences(pairs), args.out or Path("outputs/comparison")
    writable_folder(out)
    Console(width=None if sys.stdout.isatty() else 120).print(rich_table(comparison(found, names)))
    with atomic_write(out / "comparison.json") as file:
        told = {"first": str(first), "second": str(second), "figures": found, **provenance()}
        file.write(json.dumps(told, indent=1).encode() + b"\n")
    with atomic_write(out / "comparison.html") as file:
        file.write(page(pairs, found, names).encode())
    print(f"{out / 'comparison.html'} shows every pair; it is one file, to send or to keep")
    return 0


def provenance() -> dict[str, Any]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    packages = ("torch", "diffusers", "transformers", "gsplat", "numpy")
    return {"versions": {"splatdistill": __version__, **{name: version(name) for name in packages}}}


def report(args: argparse.Namespace) -> int:
    """Make the runs of a suite, measure, write evaluation.json, .md and .png; return the exit status."""
    check(args)

    from rich.console import Console

    from splatdistill.measure.jury import confusions
    from splatdistill.measure.runs import evaluate
    from splatdistill.measure.suites import PUBLISHED, SUITES, make_runs
    from splatdistill.media.sheets import runs_sheet
    from splatdistill.priors.clip import Scorer
    from splatdistill.priors.imagereward import load_judge

    out = args.out or Path("outputs") / (f"suite-{args.suite}" if args.suite else "evaluation")
    others = None if args.distractors is None else read_lines(args.distractors)
    if args.suite and args.suite not in SUITES:
        raise UserError(f"--suite {args.suite}: expected one of {', '.join(SUITES)}")
    runs = list(args.runs)
    if args.suite:
        methods, priors = args.methods.split(","), args.priors.split(",")
        seeds, words = numbers(args.seeds, "--seeds"), [str(run) for run in runs]
        prompts, theirs = SUITES[args.suite](), args.suite in PUBLISHED
        runs = make_runs(prompts, out, methods, priors, seeds, words, args.jobs, allow_unknown=theirs)
        others = prompts if theirs and others is None else others  # what a paper's R-Precision ranks against
        count = len(prompts) * len(methods) * len(priors) * len(seeds)
        if not runs:
            raise UserError(
                f"none of the {count} runs finished; the lines above and the log.txt of each say why"
            )
        if len(runs) < count:
            note(f"{count - len(runs)} of {count} runs are missing; the figures are of the others")
    writable_folder(out)
    scorer = None if args.clip is None else Scorer.load(args.clip)
    judge = None if args.preference is None else load_judge(args.preference)
    groups = evaluate(runs, scorer, others, not args.no_teacher, judge)
    rows = [row for group in groups.values() for row in group["rows"]]
    judged = any("called" in row for row in rows)
    Console(width=None if sys.stdout.isatty() else 120).print(table(groups))
    with atomic_write(out / "evaluation.json") as file:
        told = {"clip": args.clip, "preference": args.preference, **provenance(), "groups": groups}
        file.write(json.dumps(told, indent=1).encode() + b"\n")
    with atomic_write(out / "evaluation.md") as file:
        file.write(markdown(groups).encode())
    if judged:
        with atomic_write(out / "confusions.tsv") as file:
            file.write(confusions(rows).encode())
    with atomic_write(out / "evaluation.png") as file:
        runs_sheet([run / RESULT for run in runs]).save(file, format="PNG")
    print(f"{out / 'evaluation.json'} has every figure, {out / 'evaluation.png'} shows every run")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UserError for invalid options before anything is loaded or made."""
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected 1 or more")
    for model in (args.clip, args.preference):
        if model is not None:
            check_clip(model)
    if args.suite:
        for prior in args.priors.split(","):
            check_name(prior)
        for method in args.methods.split(","):
            check_method(method)
        numbers(args.seeds, "--seeds")
        if any("=" not in str(word) for word in args.runs):
            raise UserError("with --suite the other words are settings, such as guidance.scale=3")
    elif not args.runs:
        raise UserError("nothing to evaluate; give folders of finished runs, or --suite NAME")
    else:
        for run in args.runs:
            for name in (RESULT, CONFIG):
                if not (run / name).is_file():
                    raise UserError(f"{run}: there is no finished run (no {name})")


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file; raises UserError when it cannot be read."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {error}; expected one text a line") from error


def cells(groups: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the summaries as text cells: a heading, then a row of means and intervals for each figure."""
    from splatdistill.measure.groups import FIGURES

    rows = [["runs of", *groups], ["number", *(str(len(group["rows"])) for group in groups.values())]]
    for name in FIGURES:
        if any(name in group["summary"] for group in groups.values()):
            values = [cell(group["summary"].get(name)) for group in groups.values()]
            rows.append([name.replace("_", " "), *values])
    return rows


def table(groups: dict[str, dict[str, Any]]) -> Table:
    """Format the summaries for a terminal."""
    return rich_table(cells(groups), "mean [95 % interval]")


def rich_table(rows: list[list[str]], title: str = "") -> Table:
    """Format rows of cells, the first the heading, for a terminal."""
    from rich.table import Table
    from rich.text import Text  # plain: names may hold what would be markup

    heading, *rows = rows
    result = Table(title=Text(title) if title else None)
    for i, name in enumerate(heading):
        result.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        result.add_row(*map(Text, row))
    return result


def markdown(groups: dict[str, dict[str, Any]]) -> str:
    """Format the summaries as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in cells(groups)]
    return "\n".join([lines[0], "|---" * (len(groups) + 1) + "|", *lines[1:]]) + "\n"


def cell(value: dict[str, Any] | None) -> str:
    """Format a figure and its interval."""
    if value is None:
        return ""
    digits = 1 if value["high"] > 10 else 2 if value["high"] > 0.1 else 4
    mean, low, high = (f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
