"""Check that independent programs and this package read each other's files as the same scene.

`npm install @playcanvas/splat-transform`, then `python benchmarks/foreign_reader.py node_modules`. The
programs are PlayCanvas' splat-transform, the PlayCanvas engine that comes with it (its parser of .glb), and
gaussforge. A scene of each SH degree is written by us, splat-transform and gaussforge in every format that
they write, and each file is read by all who read it. Renders of what was read are compared, as PSNR, with
those of the scene (what the format loses), and with those of what we read of the same file (whether both
agree). Writes benchmarks/results/foreign_reader.json; the exit status is 1 if some reading is further than
AGREE from ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import write_result
from format_errors import psnr, scene
from torch.nn import ParameterDict

from splatdistill import formats
from splatdistill.formats.conventions import set_upright
from splatdistill.formats.ply import read_ply
from splatdistill.scene.orientation import reorient

DEGREES, COUNT = range(4), 4_000
AGREE = 55.0  # dB between two readings of a file
Convert = Callable[[Path, Path, int], None]  # a file to another; the version of an .spz


@dataclass(frozen=True)
class Kind:
    """One kind of file, and what reading it takes."""

    ending: str
    spz: int = 3  # version
    axes: dict[str, Any] = field(
        default_factory=dict
    )  # for `read_splat`, where they differ from the format's

    @property
    def name(self) -> str:
        return f"{self.ending} version {self.spz}" if self.ending == ".spz" else self.ending

    def upright(self, read: ParameterDict) -> ParameterDict:
        """Return in our axes what a program read of the file, none of which turns it."""
        if "program" in self.axes:
            set_upright(read, self.axes["program"], formats.FORMATS[self.ending].up)
            return read
        return reorient(read, self.axes.get("up") or formats.FORMATS[self.ending].up, "z")


OURS = [Kind(ending) for ending in formats.FORMATS] + [Kind(".spz", 4)]
GAUSSFORGE = [kind for kind in OURS if kind.ending != ".glb"]
TRANSFORM = [
    Kind(".compressed.ply", axes={"up": "-y"}),
    Kind(".ply", axes={"up": "-y"}),
    Kind(".spz", axes={"up": "-y"}),  # since its version 3; version 2 turned half way about X
    Kind(".spz", 4, axes={"up": "-y"}),
    Kind(".sog"),
    Kind(".glb", axes={"program": "supersplat"}),  # half a turn about Z from its .ply
]


def by_us(source: Path, target: Path, spz: int) -> None:
    """Convert our .ply."""
    formats.write_splat(target, read_ply(source)[0], spz=spz)


def by_gaussforge(source: Path, target: Path, spz: int) -> None:
    """Convert by gaussforge, which knows formats by their names and turns no axes."""
    import gaussforge

    names = [path.name.partition(".")[2] for path in (source, target)]
    result = gaussforge.GaussForge().convert(source.read_bytes(), *names, spz_version=spz)
    if "error" in result:
        raise SystemExit(f"gaussforge: {names[0]} to {names[1]}: {result['error']}")
    target.write_bytes(result["data"])


def by_transform(modules: Path) -> Convert:
    """Return splat-transform as a converter."""

    def convert(source: Path, target: Path, spz: int) -> None:
        flags = {".spz": ["--spz-version", str(spz)], ".sog": ["-g", "cpu"]}.get(target.suffix, [])
        command = [modules / ".bin" / "splat-transform", "-w", source, target, *flags]
        subprocess.run(command, check=True, timeout=300, capture_output=True)

    return convert


def by_engine(modules: Path) -> Convert:
    """Return PlayCanvas' parser of .glb as a converter to .ply."""

    def convert(source: Path, target: Path, spz: int) -> None:
        script = Path(__file__).with_name("read_glb.mjs")
        command = ["node", script, modules / "playcanvas", source, target]
        subprocess.run(command, check=True, timeout=300, capture_output=True)

    return convert


def figures(
    kind: Kind, writer: tuple[str, Convert], readers: dict[str, Convert], degree: int
) -> dict[str, Any]:
    """Return of one file, written from a .ply: decibels of our reading, and of the others' to both."""
    original, (name, write) = scene(COUNT, degree), writer
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "source.ply", Path(folder) / f"file{kind.ending}"
        up = {"us": "z", "splat-transform": "-y"}.get(name, formats.FORMATS[kind.ending].up)
        formats.write_splat(source, original, up=up)
        write(source, path, kind.spz)
        ours = formats.read_splat(path, **kind.axes)[0]
        found: dict[str, Any] = {"us": psnr(original, ours)}
        for reader, read in readers.items():
            read(path, Path(folder) / "read.ply", kind.spz)
            theirs = kind.upright(read_ply(Path(folder) / "read.ply")[0])
            found[reader] = {"to_the_scene": psnr(original, theirs), "to_our_reading": psnr(ours, theirs)}
    return found


def main() -> int:
    """Convert, compare, report; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", type=Path, help="npm's folder node_modules")
    modules = parser.parse_args().modules
    forge, transform, engine = by_gaussforge, by_transform(modules), by_engine(modules)
    written = {
        ("us", by_us): OURS,
        ("splat-transform", transform): TRANSFORM,
        ("gaussforge", forge): GAUSSFORGE,
    }
    tools = {name: package(modules / name) for name in ("@playcanvas/splat-transform", "playcanvas")}
    result: dict[str, Any] = {"tools": tools | {"gaussforge": version("gaussforge")}, "agree": AGREE}
    worst = 200.0
    for writer, kinds in written.items():
        rows = result["written by " + writer[0]] = {}
        for kind in kinds:
            others = {"splat-transform": transform, "gaussforge": forge}
            readers = {"playcanvas": engine} if kind.ending == ".glb" else others
            rows[kind.name] = {f"sh_{d}": figures(kind, writer, readers, d) for d in DEGREES}
            for found in rows[kind.name].values():
                worst = min(worst, *(found[reader]["to_our_reading"] for reader in readers))
            print(writer[0], kind.name, json.dumps(rows[kind.name]), flush=True)
    write_result("foreign_reader", {**result, "least_to_our_reading": worst})
    return int(worst < AGREE)


def package(folder: Path) -> str:
    """Return the version of an npm package."""
    return json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
