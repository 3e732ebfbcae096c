"""Plot a teacher's training: `python benchmarks/losses.py text=DIR multiview=DIR image=DIR`.

Reads the losses.jsonl that training wrote in each folder (after a resumed run, the last word on each step);
writes benchmarks/results/losses.json and docs/teacher_losses.png. Needs the [reproduce] extra.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from common import write_result

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).parents[1] / "docs" / "teacher_losses.png"


def main() -> None:
    """Read, write, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="NAME=DIR")
    curves: dict[str, dict[int, float]] = {}
    for word in parser.parse_args().folders:
        name, _, folder = word.partition("=")
        lines = Path(folder, "losses.jsonl").read_text("utf-8").splitlines()
        curves[name] = {row["step"]: row["loss"] for row in map(json.loads, lines)}
    write_result("losses", {"mean_of_100_steps": curves})
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.6), layout="constrained")
    for axis, (name, curve) in zip(figure.axes if len(curves) > 1 else [axes], curves.items(), strict=True):
        steps = sorted(curve)
        axis.plot(steps, [curve[step] for step in steps], linewidth=1.2, color="#285aa0")
        axis.set(title=name, xlabel="step", ylabel="error of v", yscale="log")
        axis.grid(which="both", alpha=0.25)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
