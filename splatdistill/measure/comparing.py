"""Two evaluations of the same prompts and seeds, compared pair by pair."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from splatdistill.errors import UserError
from splatdistill.folder import RESULT
from splatdistill.measure import metrics
from splatdistill.measure.groups import MEANS, SHARES
from splatdistill.media.page import asset, digest, document, encoded
from splatdistill.media.sheets import runs_sheet

FILE = "evaluation.json"
SIZE = 192  # of a view in pixels

Row = Mapping[str, Any]
Pair = tuple[Row, Row]


def rows_of(path: Path) -> list[Row]:
    """Return the rows of one group in an evaluation.json, or in the one of a folder.

    Raises UserError where there is none, or it holds several groups.
    """
    path = path / FILE if path.is_dir() else path
    try:
        groups = json.loads(path.read_text("utf-8"))["groups"]
        rows = [group["rows"] for group in groups.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no result of an evaluation ({error}); give two folders that `evaluate --out` wrote"
        ) from error
    if len(rows) != 1:
        raise UserError(
            f"{path} holds {len(rows)} groups ({', '.join(groups)}); evaluate each by itself first"
        )
    return rows[0]


def paired(first: Sequence[Row], second: Sequence[Row]) -> list[Pair]:
    """Return the rows of the same prompt and seed; raises UserError where there are none."""
    other = {(row["prompt"], row["seed"]): row for row in second}
    pairs = [(row, other[key]) for row in first if (key := (row["prompt"], row["seed"])) in other]
    if not pairs:
        raise UserError("the two evaluations share no prompt with the same seed; nothing can be compared")
    return pairs


def differences(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Return for each figure that both have its means, the mean paired difference, and its 95 % interval.

    The interval is a bootstrap over pairs, so that what a prompt or a seed does to both drops out.
    """
    found = {}
    for name in (*SHARES, *MEANS):
        both = [(a[name], b[name]) for a, b in pairs if a.get(name) is not None and b.get(name) is not None]
        if not both:
            continue
        values = torch.tensor(both, dtype=torch.float64)  # [pairs, 2]
        apart = values[:, 1] - values[:, 0]
        low, high = metrics.bootstrap_interval(apart)
        found[name] = {
            "first": values[:, 0].mean().item(),
            "second": values[:, 1].mean().item(),
            "difference": apart.mean().item(),
            "low": low,
            "high": high,
            "pairs": len(both),
        }
    return found


def table(found: Mapping[str, Mapping[str, float]], names: tuple[str, str]) -> list[list[str]]:
    """Return cells: a heading, then a row for each figure."""
    rows = [["", *names, "difference [95 % interval]", "pairs"]]
    for name, value in found.items():
        interval = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**value)
        sure = " *" if value["low"] > 0 or value["high"] < 0 else ""
        first, second = (f"{value[side]:.3f}" for side in ("first", "second"))
        rows.append([name.replace("_", " "), first, second, interval + sure, str(int(value["pairs"]))])
    return rows


def page(pairs: Sequence[Pair], found: Mapping[str, Mapping[str, float]], names: tuple[str, str]) -> str:
    """Return a page that needs no network: the differences, and every pair's pictures side by side."""
    style = asset("style.css")
    policy = f"default-src 'none'; img-src data:; style-src {digest(style)}; base-uri 'none'"
    lines = [[html.escape(cell) for cell in row] for row in table(found, names)]
    heading = "".join(f"<th>{cell}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in lines[1:])
    sections = "".join(_section(pair, names) for pair in pairs)
    return document(
        f"{names[0]} and {names[1]}",
        policy,
        style,
        f"""<p class="quiet">{len(pairs)} pairs of one prompt and seed; * where the interval leaves out 0.</p>
<table><tr>{heading}</tr>{body}</table>
{sections}""",
    )


def _section(pair: Pair, names: tuple[str, str]) -> str:
    """Return the part of the page of one prompt and seed."""
    shown = "".join(
        f'<p class="quiet">{html.escape(name)}</p>{_picture(Path(row["run"]) / RESULT, name)}'
        for row, name in zip(pair, names, strict=True)
    )
    return f"<h2>{html.escape(pair[0]['prompt'])}, seed {pair[0]['seed']}</h2>\n{shown}\n"


def _picture(splat: Path, name: str) -> str:
    """Return four views of a splat as an image of the page; a note where it is gone."""
    if not splat.is_file():
        return f'<p class="quiet">{html.escape(str(splat))} is gone</p>'
    picture = io.BytesIO()
    runs_sheet([splat], SIZE, 1).save(picture, format="PNG")
    source = f"data:image/png;base64,{encoded(picture.getvalue())}"
    return f'<img class="wide" alt="four views: {html.escape(name)}" src="{source}">'
