"""Check that PlayCanvas' splat-transform and this package read each other's files as the same scene.

`npm install @playcanvas/splat-transform`, then `python benchmarks/foreign_reader.py TOOL` with the path of
its command: writes benchmarks/results/foreign_reader.json. What we write, it converts to a .ply; what it
writes from our .ply, we read. Renders of the results are compared with those of the scene, as PSNR.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write_result
from format_errors import psnr, scene

from splatdistill import formats
from splatdistill.formats.ply import read_ply
from splatdistill.scene.orientation import reorient

OURS: dict[str, dict[str, Any]] = {  # ending -> how we write it; the tool reads no .glb
    ".compressed.ply": {},
    ".ply": {},
    ".splat": {},
    ".spz": {},
    ".spz version 4": {"spz": 4},
    ".sog": {},
}
THEIRS: dict[str, tuple[list[str], dict[str, Any]]] = {  # what it writes -> its options, and ours to read it
    ".compressed.ply": ([], {"up": "-y"}),
    ".ply": ([], {"up": "-y"}),
    ".spz": (["--spz-version", "3"], {}),
    ".spz version 4": ([], {}),
    ".sog": (["-g", "cpu"], {}),
    ".glb": ([], {"program": "supersplat"}),  # half a turn about the other axis than its .spz
}
DEGREES = range(4)


def main() -> None:
    """Convert, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", type=Path, help="splat-transform")
    tool = str(parser.parse_args().tool)
    read_by_them: dict[str, dict[str, float]] = {}
    read_by_us: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in OURS.items():
            read_by_them[name] = {f"psnr_{d}": by_them(tool, Path(folder), name, options, d) for d in DEGREES}
            print("read by them:", name, read_by_them[name], flush=True)
        for name, (flags, options) in THEIRS.items():
            read_by_us[name] = {
                f"psnr_{d}": by_us(tool, Path(folder), name, flags, options, d) for d in DEGREES
            }
            print("read by us:", name, read_by_us[name], flush=True)
    said = subprocess.run([tool, "--version"], check=True, timeout=60, capture_output=True, text=True)
    version = (said.stdout.strip() or said.stderr.strip()).splitlines()[0]
    rows = {"read_by_them": read_by_them, "read_by_us": read_by_us}
    write_result("foreign_reader", {"tool": version, **rows})


def convert(tool: str, source: Path, target: Path, flags: list[str]) -> None:
    """Run the tool from a file to a file."""
    command = [tool, "-w", str(source), str(target), *flags]
    subprocess.run(command, check=True, timeout=300, capture_output=True)


def by_them(tool: str, folder: Path, name: str, options: dict[str, Any], degree: int) -> float:
    """Decibels between a scene and what the tool reads of our file."""
    ending = name.split()[0]
    ours, theirs, original = folder / f"ours{ending}", folder / "theirs.ply", scene(4000, degree)
    formats.write_splat(ours, original, **options)
    convert(tool, ours, theirs, [])
    up = "z" if ending.endswith(".ply") else "-y"  # a .ply comes out as it was, the rest as it takes them
    return psnr(original, reorient(read_ply(theirs)[0], up, "z"))


def by_us(
    tool: str, folder: Path, name: str, flags: list[str], options: dict[str, Any], degree: int
) -> float:
    """Decibels between a scene and what we read of the tool's file."""
    ending = name.split()[0]
    ours, theirs, original = folder / "ours.ply", folder / f"theirs{ending}", scene(4000, degree)
    formats.write_splat(ours, original, up="-y")
    convert(tool, ours, theirs, flags)
    return psnr(original, formats.read_splat(theirs, **options)[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
