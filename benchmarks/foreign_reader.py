"""Does PlayCanvas' splat-transform show our files as we do?

`npm install @playcanvas/splat-transform`, then `python benchmarks/foreign_reader.py TOOL` with the path of
its command: writes benchmarks/results/foreign_reader.json. Each file that it can read goes through it into
a .ply, whose renders are compared with those of the scene that we wrote; it works with -Y up.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch
from common import write_result
from format_errors import psnr, scene

from splatdistill import formats
from splatdistill.formats.ply import read_ply
from splatdistill.scene.orientation import reorient

ENDINGS = (".compressed.ply", ".ply", ".splat", ".spz", ".sog")  # it writes .glb, and reads none


def main() -> None:
    """Convert, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", type=Path, help="splat-transform")
    tool = str(parser.parse_args().tool)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in ENDINGS:
            up = "z" if ending.endswith(".ply") else "-y"
            row = rows[ending] = {}
            for degree in (0, 3):
                ours, theirs = Path(folder, f"ours{ending}"), Path(folder, "theirs.ply")
                original = scene(4000, degree)
                formats.write_splat(ours, original)
                subprocess.run([tool, "-w", ours, theirs], check=True, timeout=120, capture_output=True)
                row[f"psnr_{degree}"] = psnr(original, reorient(read_ply(theirs)[0], up, "z"))
            print(ending, row)
    said = subprocess.run([tool, "--version"], check=True, timeout=60, capture_output=True, text=True)
    write_result("foreign_reader", {"tool": said.stdout.strip() or said.stderr.strip(), "rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
