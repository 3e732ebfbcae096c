"""`python -m splatdistill.reproduce [CLAIM...]`: test claims of the papers on the shipped teacher.

Writes OUT/reproduction/CLAIM.json, plots of curves, and OUT/REPRODUCTION.md from all JSON files there.
Existing runs and results are reused, so an interrupted command can be continued.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, folder, note
from splatdistill.console import exit_status, say
from splatdistill.errors import UserError
from splatdistill.measure.claims import NAMES, all_claims

if TYPE_CHECKING:
    from splatdistill.measure.claims.base import Claim, Findings

PROMPTS = 24  # at most: a thing each
VERDICTS = {True: "holds here", False: "does not hold here", None: "measured"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace."""
    parser = Parser(
        prog="python -m splatdistill.reproduce", description="Claims, measured.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "claims",
        nargs="*",
        metavar="CLAIM",
        help="default all that --list shows; key=value words go to all runs",
    )
    add("--list", action="store_true", help="print the claims, and exit")
    add("--out", type=folder, default=Path("outputs"), metavar="DIR", help="default outputs")
    add("--prompts", type=int, default=4, help=f"default 4, at most {PROMPTS}")
    add("--seeds", type=int, default=2, help="for each prompt; default 2")
    add("--draws", type=int, default=32, help="of noise, where variance is measured; default 32")
    add("--steps", type=int, default=130, help="of optimization; default 130")
    add("--jobs", type=int, help="runs side by side; default one a core, on a GPU one")
    add("--version", action="version", version=f"splatdistill {__version__}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    return exit_status(lambda: start(args), "interrupted; the same command makes only what is missing")


def start(args: argparse.Namespace) -> int:
    """Measure and write; return the exit status."""
    if min(args.prompts, args.draws, args.steps) < 2:
        raise UserError("--prompts, --draws and --steps: expected 2 or more, for an interval")
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: expected 1 or more")
    if args.prompts > PROMPTS:
        raise UserError(f"--prompts {args.prompts}: expected at most {PROMPTS}")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected 1 or more")
    words = [word for word in args.claims if "=" in word]
    names = [word for word in args.claims if "=" not in word]

    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"unknown claim '{unknown[0]}'; expected one of {', '.join(NAMES)}")
    claims = all_claims()
    if args.list:
        say("\n".join(f"{name:8s} {claim.says}" for name, claim in claims.items()))
        return 0
    import torch

    from splatdistill.config.load import resolve
    from splatdistill.files import atomic_write, writable_folder
    from splatdistill.measure.claims.base import MODELS, Lab
    from splatdistill.measure.jury import Jury
    from splatdistill.measure.machine import machine
    from splatdistill.priors import load_prior
    from splatdistill.training.inputs import slug

    resolve({}, None, words)  # a mistyped setting fails before anything is measured
    place = args.out / "reproduction"
    writable_folder(place)
    prior, jury = load_prior("real", dtype=torch.float32).for_run(0, MODELS), Jury.of("real")
    assert jury is not None
    sizes: dict[str, Any] = {name: getattr(args, name) for name in ("prompts", "seeds", "draws", "steps")}
    runs = place / "runs" / slug(" ".join(words)) if words else place / "runs"
    lab = Lab(prior, jury, runs, **sizes, overrides=words, jobs=args.jobs)
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    for name in names or claims:
        command = shlex.join(["python", "-m", "splatdistill.reproduce", name, *words, *options])
        if not names and measured(place / f"{name}.json").get("command") == command:
            note(f"{name}: measured before; name it to measure it again")
            continue
        begin = time.perf_counter()
        findings = claims[name].measure(lab)
        seconds = time.perf_counter() - begin
        record = {"claim": name, **dataclasses.asdict(findings), "seconds": round(seconds)}
        record["shown"] = len(findings.shown)  # rows of the picture
        record |= {"command": command, "version": __version__, "machine": machine()}
        with atomic_write(place / f"{name}.json") as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")
        if findings.lines:
            plot(findings, place / f"{name}.png")
        if findings.shown:
            picture(findings, place / f"{name}.png")
        note(f"{name}: {VERDICTS[findings.holds]}. {findings.reading}")
    with atomic_write(args.out / "REPRODUCTION.md") as file:
        file.write(document(place, claims).encode())
    note(f"{args.out / 'REPRODUCTION.md'} has what {place} holds")
    return 0


def plot(findings: Findings, path: Path) -> None:
    """Plot the curves with their intervals."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'splatdistill[reproduce]'") from None
    from splatdistill.files import atomic_write

    drawing = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for curve in findings.lines:
        axes.plot(curve.x, curve.mean, marker="o", markersize=3, label=curve.label)
        axes.fill_between(curve.x, curve.low, curve.high, alpha=0.15)
    axes.set_xlabel(findings.axes[0])
    axes.set_ylabel(findings.axes[1])
    if findings.logarithmic:
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        drawing.savefig(file, format="png", dpi=120)


def picture(findings: Findings, path: Path) -> None:
    """Write a picture of the runs that are shown: a row for each row of the findings, four views of each."""
    from splatdistill.files import atomic_write
    from splatdistill.folder import RESULT
    from splatdistill.media.sheets import runs_sheet

    splats = [run / RESULT for row in findings.shown for run in row]
    with atomic_write(path) as file:
        runs_sheet(splats, size=64, columns=len(findings.shown[0])).save(file, format="PNG")


def document(folder: Path, claims: dict[str, Claim]) -> str:
    """Return the Markdown page of the records in a folder, in the claims' order.

    Another record of a claim, kept as CLAIM.WORD.json, follows the last one. A record's `note` is told too.
    """
    parts = [
        "# What the papers claim, on the shipped teacher\n",
        "Made by `python -m splatdistill.reproduce` from the JSON files in `reproduction/`. Numbers are",
        "means, with 95 % intervals where something was repeated. The teacher is `real`; a name means",
        "three of its models. A claim that does not hold on this small teacher may well hold on others; the",
        "conditions are given with each.\n",
    ]
    kept = [(name, path) for name in claims for path in sorted(folder.glob(f"{name}.*json"), key=recent)]
    for name, path in kept:
        record, claim = measured(path), claims[name]
        parts += [f"## {name}: {VERDICTS[record['holds']]}\n", claim.says]
        parts += [f"({claim.source})\n" if claim.source else "", f"**{record['reading']}**\n"]
        parts += [f"{record['note']}\n"] if "note" in record else []
        parts += [*table(record), ""]
        if record["lines"]:
            parts.append(f"![{name}](reproduction/{path.stem}.png)\n")
        if record.get("shown"):
            parts.append(f"![{name}](reproduction/{path.stem}.png)\n\nFrom above, the rows of the table.\n")
        machine = record["machine"]
        conditions = ", ".join(f"{key} {value}" for key, value in record["conditions"].items())
        parts += [f"Conditions: {conditions}.\n"] if conditions else []
        parts.append(f"    {record['command']}\n")
        parts.append(f"{record['seconds']} s on {machine['cores']} cores, {machine['processor']}.\n")
    return "\n".join(parts)


def recent(path: Path) -> tuple[int, str]:
    """Return what sorts the last record of a claim before others."""
    return path.name.count("."), path.name


def measured(path: Path) -> dict[str, Any]:
    """Return the record of a measured claim; empty where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def table(record: dict[str, Any]) -> list[str]:
    """Return the rows of a record as a Markdown table."""
    heading = ["", *record["columns"]]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for label, cells in record["rows"]:
        lines.append(f"| {' | '.join([label, *(cell(value) for value in cells)])} |")
    return lines


def cell(value: Any) -> str:
    """Format a number, or a mean with its interval; None is empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        mean, low, high = (f"{number:.3g}" for number in value)
        return f"{mean} [{low}, {high}]"
    return f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
