"""Write the figures of the campaigns, in benchmarks/results/, into docs/RELIABILITY.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from common import RESULTS

PAGE = RESULTS.parents[1] / "docs" / "RELIABILITY.md"
FIGURES = re.compile(r"(<!-- figures: .*? -->\n).*?(<!-- end -->)", re.DOTALL)


def faults(result: dict[str, Any]) -> str:
    """Describe a campaign on files."""
    jobs, every = len(result["jobs"]), result["every"]
    places = "every operation" + (f" (of runs every {every}.)" if every > 1 else "")
    counts = f"{result['lost']} lost, {result['different']} with different bytes, {result['untold']} untold"
    return f"{result['faults']} at {places} of {jobs} jobs: {counts}"


def fuzzing(result: dict[str, Any]) -> str:
    """Describe the fuzzing of the importers."""
    rows = result["importers"].values()
    foreign = sum(len(row.get("other_exceptions", ())) for row in rows)
    ended = sum(row["crashed"] or row["hung"] for row in rows)
    most = max(
        row.get(key, 0.0)
        for row in rows
        for key in ("most_growth_beyond_4x_mib", "most_memory_beyond_4x_mib")
    )
    return (
        f"{sum(row['cases'] for row in rows)} files, {len(rows)} importers: {foreign} foreign exceptions, "
        f"{ended} crashes or hangs; at most {most:.0f} MiB beyond four times the file"
    )


def families(result: dict[str, Any]) -> str:
    """Describe which verbs opened sockets."""
    internet = [verb for verb, found in result["families"].items() if {"AF_INET", "AF_INET6"} & set(found)]
    return f"{len(result['families'])} verbs traced; an Internet socket: {', '.join(internet) or 'none'}"


def busy(result: dict[str, Any]) -> str:
    """Describe the default job on busy cores."""
    return (
        f"{result['alone_s']:.0f} s alone, {result['busy_s']:.0f} s beside one: {result['ratio']:.2f} times"
    )


CAMPAIGNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "kills": ("kills", faults),
    "disk_full": ("full disks", faults),
    "fuzz_formats": ("damaged files", fuzzing),
    "sockets": ("sockets", families),
    "busy_core": ("a busy core", busy),
}


def rows() -> list[str]:
    """Return a line of the table for each campaign that has a result."""
    lines = ["| campaign | figures | machine |", "|---|---|---|"]
    for name, (title, describe) in CAMPAIGNS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            result = json.loads(path.read_text("utf-8"))
            machine = result["machine"]
            told = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
            lines.append(f"| {title} | {describe(result)} | {told} |")
    return lines


def main() -> None:
    """Replace the table on the page."""
    text, count = FIGURES.subn(
        lambda found: found[1] + "\n".join(rows()) + "\n" + found[2], PAGE.read_text("utf-8")
    )
    if count != 1:
        raise SystemExit(f"{PAGE} has no place for the figures")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
