"""The teacher's model card and the credits: `python -m splatdistill.teaching.card --out DIR --bundle BUNDLE`.

Every figure of the card is read from files that the teaching and the measuring wrote; what was not measured
is not in it. Writes DIR/teacher/README.md and DIR/teacher/NOTICE.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.priors.album import FILE, PICTURES, Album
from splatdistill.priors.judge import FOLDER, TOLD
from splatdistill.teaching.assets import read_rows

WIDTH = 106
FREE = "CC0-1.0"
LICENCES = {
    FREE: "Dedicated to the public domain (CC0 1.0); named all the same",
    "CC-BY-3.0": "Creative Commons Attribution 3.0 (creativecommons.org/licenses/by/3.0/)",
    "CC-BY-3.0-US": "Creative Commons Attribution 3.0 US (creativecommons.org/licenses/by/3.0/us/)",
}
CHANGED = (
    "Pictures were rendered from them, some changed in color and size; small ones are in the album "
    "(album.npz). The models are not included."
)
TABLE = """\
The table of near words (nearest.tsv)
-------------------------------------
WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. THIS SOFTWARE AND DATABASE IS
PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED.
The sentence encoder all-MiniLM-L6-v2 (Apache-2.0) voted; nothing of it is contained.

The judge (judge/)
------------------
Trained on from EfficientNet-Lite0's weights, Copyright 2020 ML Illustrated (Apache-2.0), after the network by
Google (Apache-2.0)."""


def credits(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the attribution of all models in assets.json: by license, source and author, with their titles.

    Raises UserError for a license that is not known here.
    """
    if unknown := {row["licence"] for row in rows} - set(LICENCES):
        raise UserError(f"assets.json: no text for the licences {', '.join(sorted(unknown))}")
    nouns = len({row["noun"] for row in rows})
    opening = (
        f"The teacher's weights are made from renderings of {len(rows):,} models of {nouns} nouns. {CHANGED}"
    )
    lines = [*textwrap.wrap(opening, WIDTH)]
    for licence, title in LICENCES.items():
        these = [row for row in rows if row["licence"] == licence]
        if these:
            lines += ["", "", title, "-" * len(title)]
            lines += [line for text in sources(these, titles=licence != FREE) for line in item(text)]
    return "\n".join([*lines, "", "", TABLE, ""])


def sources(rows: Iterable[Mapping[str, Any]], titles: bool) -> list[str]:
    """Return one text for each source and author: how many models, and with `titles` which."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        key = (str(row["author"]), str(row["source"]).partition(":")[0 if "@" in row["source"] else 2])
        grouped.setdefault(key, []).append(str(row.get("title") or row["noun"]))
    texts = []
    for (author, source), names in sorted(grouped.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        count = "1 model" if len(names) == 1 else f"{len(names)} models"
        counted = Counter(names)
        which = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in sorted(counted.items()))
        texts.append(f"{author}: {count}, {source}" + (f": {which}" if titles else ""))
    return texts


def item(text: str) -> list[str]:
    """Return a text as the lines of a list's item."""
    return textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def read(path: Path) -> Any:
    """Return a JSON file's value; None where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def losses(path: Path, count: int = 8) -> list[str]:
    """Return a table of the training's losses, each the mean of the ten lines up to its step."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    places = sorted({max(10, round(len(rows) * (k + 1) / count)) for k in range(count)})
    told = [
        (rows[i - 1]["step"], sum(r["loss"] for r in rows[i - 10 : i]) / 10) for i in places if i <= len(rows)
    ]
    return [
        "| step | " + " | ".join(f"{step:,}" for step, _ in told) + " |",
        "|---" * (len(told) + 1) + "|",
        "| loss | " + " | ".join(f"{loss:.4f}" for _, loss in told) + " |",
    ]


def percent(value: float) -> str:
    """Return a share as text."""
    return f"{100 * value:.1f} %"


def judged(measured: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the table of the judge's own figures."""
    names = {"held_out_views": "other views of learned models", "held_out_models": "models never seen"}
    lines = [
        "| true renderings of | one view: first | among five | turntable: first | among five | calibration |",
        "|---|---|---|---|---|---|",
    ]
    keys = ("view_top1", "view_top5", "turntable_top1", "turntable_top5", "calibration_error")
    for name, title in names.items():
        if name in measured:
            cells = " | ".join(percent(measured[name][key]) for key in keys)
            lines.append(f"| {title} | {cells} |")
    if "junk" in measured:
        none = percent(measured["junk"]["none"])
        lines += ["", f"Of torn and blended pictures, {none} are called none of the nouns."]
    return lines


def card(out: Path, run: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the model card of DIR/teacher from the files of the teaching."""
    folder = out / "teacher"
    index, words = read(folder / "model_index.json"), read(folder / "vocabulary.json")
    network, told = read(folder / "transformer" / "config.json"), read(out / run / "pupil.json")
    if index is None or words is None or network is None or told is None:
        raise UserError(f"{folder} is not complete: run the stage export first")
    settings = told["settings"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    judge = read(folder / FOLDER / TOLD)
    measured = read(out / "measured.json") or {}
    nearest = folder / "nearest.tsv"
    near = len(nearest.read_text("utf-8").splitlines()) if nearest.is_file() else 0
    things, names = len(words["things"]), len(words["names"])
    pages = Album.load(folder / FILE) if (folder / FILE).is_file() else None
    channels, side = network["in_channels"], network["sample_size"]
    steps, batch = index["step"], settings["batch"]
    paragraphs = {
        "": f"A latent diffusion model of {things} everyday nouns at 128 x 128 pixels, told of cameras: one "
        "to four views of a scene together, from a text, from a picture of one view, or from both. Trained "
        f"from scratch on renderings of {len(rows):,} models. {size:.1f} MiB.",
        "Words": f"{things} nouns, {names - things} other names and classes of them, "
        f"{len(words.get('colors', []))} colors; {near:,} other English words are taken for the nearest name."
        f" Two things: {', '.join(words.get('pairs', {}))}. `--list-words --prior FOLDER` prints them.",
        "Networks": f"ViewTransformer, {network['layers']} layers of width {network['width']} over all views "
        f"and {network['outer_layers']} of width {network['outer_width']} over each, v-prediction; a CLIP "
        f"text encoder of two layers; PatchCodec, {channels} channels of {side} x {side}.",
        "Album": "Beside each view the denoiser sees the nearest pictures of the thing. The album has "
        f"{PICTURES} of each of {len(pages.ids):,} models of {len(set(pages.nouns))} nouns: the teacher's "
        "things are those. docs/TEACHING.md says more."
        if pages
        else "None: the network alone knows the things.",
        "Training": f"{steps:,} steps of {batch} views ({steps * batch:,} in all), Muon at "
        f"{settings['matrix_rate']:g} and AdamW at {settings['learning_rate']:g}; average of decay "
        f"{settings['ema']:g}. `make teachers ASSETS=FOLDER` runs all of it; docs/TEACHING.md has the "
        "stages.",
    }
    front = "---\nlicense: apache-2.0\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---"
    lines = [front, "# The teacher of real things of splatdistill"]
    for title, text in paragraphs.items():
        lines += ["", *([f"## {title}"] if title else []), *textwrap.wrap(text, WIDTH + 14)]
    lines += ["", *losses(out / run / "losses.jsonl")]
    if measured:
        lines += ["", "## Measured", "| what | figure |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in measured.items()]
    if judge is not None and "measured" in judge:
        lines += ["", "## The judge", *judged(judge["measured"])]
    lines += ["", "## Sources", "NOTICE names every author.", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse and write."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.card", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the teaching")
    parser.add_argument("--run", default="run", help="subfolder of what was trained")
    parser.add_argument("--bundle", type=Path, default=Path("assets"), help="folder of assets.json")
    options = parser.parse_args(arguments)

    def command() -> int:
        rows = read_rows(options.bundle)
        text, named = card(options.out, options.run, rows), credits(rows)
        (options.out / "teacher" / "README.md").write_text(text, "utf-8")
        (options.out / "teacher" / "NOTICE").write_text(named, "utf-8")
        return 0

    return exit_status(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
