"""Measure time and memory at the size of a scan: drawing, files, the viewer, an edit, refining.

python benchmarks/scan_size.py [--count 1000000] [--parts ...]: writes benchmarks/results/scan_size.json

A scene of Gaussians at SH degree 3 on curved surfaces within radius 1, as flat and as small as so many of
them are; view-dependent color is smooth along the surface, with noise. Each task runs in a process of its
own on one thread: its CPU seconds are without the start and the making of the scene, its memory is the most
that the whole process ever held. The quality of a .sog is the PSNR of the coefficients of SH 1 to 3 as
decoded, on a scale of 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import edit, formats, refine, view
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import from_arrays
from splatdistill.scene.rendering import render

SIZES = (100_000, 300_000, 1_000_000)  # of the rasterizer's measurement
SIDE, REPEATS = 512, 3  # pixels; the best of so many
STEPS = 5  # of the edit, and of refining
MASK = "sphere:0,0,0.5,0.3"


def scan(count: int) -> ParameterDict:
    """Make a scene of a million or so Gaussians as a scan has them."""
    rng = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    waves = torch.randn(3, 24, generator=rng) * 3.0
    smooth = torch.sin(points @ waves + torch.arange(24.0))  # [N, 24] fields on the surface
    means = points * (0.6 + 0.25 * smooth[:, :1] * smooth[:, 1:2])
    size = 1.5 * count**-0.5  # so that neighbors overlap
    scales = size * torch.rand(count, 3, generator=rng).add(0.5)
    scales[:, 2] *= 0.1
    band = torch.tensor([0.10] * 9 + [0.06] * 15 + [0.04] * 21)
    mixed = smooth @ torch.randn(24, 45, generator=rng) / 24**0.5
    harmonics = band * (mixed + 0.7 * torch.randn(count, 45, generator=rng))
    arrays: dict[str, Tensor] = {
        "means": means,
        "scales": scales.log(),
        "quats": torch.randn(count, 4, generator=rng),
        "opacities": torch.randn(count, generator=rng) + 1.0,
        "sh0": smooth[:, None, 2:5].contiguous(),
        "shN": harmonics.view(count, 15, 3).contiguous(),
    }
    return from_arrays(**{name: values.numpy() for name, values in arrays.items()})


def best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the least CPU seconds of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def raster(folder: Path, count: int) -> dict[str, float]:
    """Draw one view, without and with gradients."""
    scene = scan(count)
    camera = orbit(30.0, 15.0, 3.0, 40.0, SIDE, SIDE)

    def forward() -> None:
        with torch.no_grad():
            render(scene, camera)

    def both() -> None:
        drawn = render(scene, camera)
        torch.autograd.grad(drawn.rgb.sum() + drawn.alpha.sum(), list(scene.values()))

    return {"forward": best(forward), "forward_backward": best(both)}


def write(folder: Path, count: int, name: str) -> dict[str, float]:
    """Export the scene in a format."""
    ending, _, version = name.partition(" ")
    scene, path = formats.read_splat(folder / "scan.ply")[0], folder / f"scan{version}{ending}"
    seconds = best(lambda: formats.write_splat(path, scene, spz=4 if version else 3), 1)
    return {"seconds": seconds, "bytes": path.stat().st_size}


def read(folder: Path, count: int, name: str) -> dict[str, float]:
    """Read what `write` wrote; for a .sog, compare its coefficients with the scene's."""
    ending, _, version = name.partition(" ")
    path = folder / f"scan{version}{ending}"
    start = time.process_time()
    back = formats.read_splat(path)[0]
    seconds = time.process_time() - start
    if ending != ".sog":
        return {"seconds": seconds}
    from splatdistill.formats.compressed_ply import morton_order
    from splatdistill.scene.orientation import reorient

    scene = formats.read_splat(folder / "scan.ply")[0]
    stored = reorient(scene, "z", "-y")["means"].detach().numpy()
    order = torch.from_numpy(morton_order(stored))
    error = (scene["shN"].detach()[order] - back["shN"].detach()).square().mean()
    return {"seconds": seconds, "psnr_sh": float(-10 * error.log10())}


def look(folder: Path, count: int) -> dict[str, float]:
    """Open the scene as the viewer does, draw a frame by our rasterizer, and pack it for the browser's."""
    from splatdistill.viewer.drawing import Pose, draw, splats_for_client

    start = time.process_time()
    scenes, _, _ = view.open_scenes(folder / "scan.ply")
    shown = scenes.get(None)
    opened = time.process_time() - start
    assert shown is not None
    camera = Pose((0.5, -0.5, -0.5, 0.5), (3.0, 0.0, 0.0), 0.8).cameras(SIDE)
    frame = best(lambda: draw(shown.gaussians, camera))
    packed = splats_for_client(shown.gaussians)
    return {"seconds": opened, "frame": frame, "sent_bytes": len(packed[0]) * 32}


def change(folder: Path, count: int, verb: str) -> dict[str, float]:
    """Edit a part of the scene, or refine it, for a few steps, with checkpoint, report and result."""
    words = ["--splat", str(folder / "scan.ply"), "--out", str(folder / verb), "--steps", str(STEPS)]
    start = time.process_time()
    if verb == "edit":
        assert edit.main([*words, "--target-prompt", "a red sphere", "--mask", MASK]) == 0
    else:
        assert refine.main([*words, "--prompt", "a red sphere"]) == 0
    return {"seconds": time.process_time() - start, "steps": STEPS}


PARTS = ("raster", "write", "read", "view", "edit", "refine")  # "read" reads what "write" wrote
TASKS: dict[str, Callable[..., dict[str, float]]] = {
    "raster": raster,
    "write": write,
    "read": read,
    "view": look,
    "change": change,
}


def peak_mib() -> float:
    """Return the most memory that this process held; getrusage would count its parent's before the start."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def measured(task: str, folder: Path, count: int, *rest: str) -> dict[str, float]:
    """Run a task in a process of its own; return what it measured, and its memory in MiB."""
    command = [
        sys.executable,
        __file__,
        "--task",
        task,
        "--folder",
        str(folder),
        "--count",
        str(count),
        *rest,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(task, count, *rest[1:], {name: round(value, 2) for name, value in row.items()}, flush=True)
    return row


def part(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Return the rows of one part of the result."""
    names = [*formats.FORMATS, ".spz 4"]
    if name == "raster":
        return {str(size): measured("raster", folder, size) for size in SIZES}
    if name in ("write", "read"):
        return {ending: measured(name, folder, count, "--name", ending) for ending in names}
    if name == "view":
        return measured("view", folder, count)
    return measured("change", folder, count, "--name", name)


def main() -> None:
    """Run all parts, or in a process of its own one task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=SIZES[-1])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="the rest stays as it was")
    parser.add_argument("--task", choices=TASKS, help="only this one, as JSON")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--name", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task:
        row = TASKS[options.task](options.folder, options.count, *options.name)
        print(json.dumps(row | {"peak_mib": peak_mib()}))
        return
    known = RESULTS / "scan_size.json"
    result = json.loads(known.read_text("utf-8")) if known.is_file() else {}
    result |= {"gaussians": options.count, "sh_degree": 3, "side": SIDE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        formats.write_splat(folder / "scan.ply", scan(options.count))
        for chosen in options.parts:
            result[chosen] = part(chosen, folder, options.count)
            write_result("scan_size", {k: v for k, v in result.items() if k not in ("command", "machine")})


if __name__ == "__main__":
    main()
