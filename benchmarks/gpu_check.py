"""What can be known of a GPU in eight minutes: stages in order of worth, each written down at once.

`python benchmarks/gpu_check.py [--until 480] [--only STAGE ...]` writes benchmarks/results/gpu-STAGE.json; a
stage for which the time does not suffice is left out, and one that fails is told with its error. Needs a bare
checkout with its extension built, and the packages. `--dry` runs every stage on the CPU with small networks,
and writes nothing but to --out.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ddim_ops
import networks_gpu
import torch
from common import RESULTS, write_result
from guidance_gpu import matmul_peak, synchronize

from splatdistill.config.load import resolve
from splatdistill.scene.cameras import OrbitRanges, sample_orbit
from splatdistill.scene.gaussians import init_blob, select
from splatdistill.scene.rendering import render
from splatdistill.training.progress import NullWatcher
from splatdistill.training.run import make_run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["views.size=16", "gaussians.count=100", "report.size=16", "report.frames=2", "views.count=4"]
GROWING = ["densification.start=1", "densification.every=2", "densification.grow_grad2d=0"]
VARIANTS = {
    "perp_neg": ["guidance.mode=perp_neg"],
    "mcmc": ["densification.kind=mcmc", "densification.cap_max=400"],
    "reset": ["densification.reset_every=2"],
    **{
        name: [f"method={name}"]
        for name in ("sds", "dsd", "ism", "csd", "nfsd", "vsd", "sdi_published", "clip")
    },
    "float32": ["prior.dtype=float32"],
    "shading": ["shading.start=0", "shading.lambertian=0.4", "shading.textureless=0.4"],
}


@dataclass(frozen=True)
class Check:
    """How a check is made.

    dry: on the CPU, with small networks; end: the time in seconds when it must end; scratch: a folder for
    runs; out: of results, None for none; save: writes down what is known of the present stage.
    """

    dry: bool
    end: float
    scratch: Path
    out: Path | None
    save: Callable[[dict[str, Any]], None]

    @property
    def device(self) -> str:
        """The device that is checked."""
        return "cpu" if self.dry else "cuda"

    def milliseconds(self, work: Callable[[], Any], count: int = 10) -> float:
        """Return the mean time of a piece of work on the device, after three that do not count."""
        for _ in range(1 if self.dry else 3):
            work()
        synchronize(self.device)
        begin = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(self.device)
        return 1e3 * (time.perf_counter() - begin) / count

    def command(self, *words: str) -> dict[str, Any]:
        """Run Python with these words as `shell` does."""
        return self.shell(sys.executable, *words)

    def shell(self, *words: str) -> dict[str, Any]:
        """Run a command until the time is over; return its status and its last lines."""
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        left = max(self.end - time.monotonic(), 1.0)
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=left,
        )
        return {"status": done.returncode, "end": (done.stdout + done.stderr)[-800:]}


def machine(check: Check) -> dict[str, Any]:
    """Measure ceilings: a copy on the device, and a matrix product."""
    size = 2**16 if check.dry else 2**28
    source = torch.zeros(size, device=check.device)
    copied = 8 * size / check.milliseconds(source.clone) / 1e9
    dtype = torch.float32 if check.dry else torch.float16
    return {
        "copy_tb_s": copied,
        "matmul_tflops": matmul_peak(check.device, dtype, 128 if check.dry else 8192),
    }


def tests(check: Check) -> dict[str, Any]:
    """Run the tests that need a GPU, from the files that hold them alone: others may need more packages."""
    mark = "pytest.mark." + "gpu"
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if mark in path.read_text("utf-8")]
    names = [str(path) for path in files[: 1 if check.dry else None]]
    return check.command("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *names)


def renderer(check: Check) -> dict[str, Any]:
    """Return the distances of gsplat from the CPU rasterizer, relative, in values and gradients."""
    size, count = (32, 200) if check.dry else (512, 50_000)
    generator = torch.Generator().manual_seed(0)
    scene = init_blob(count, sh_degree=1, generator=generator)
    with torch.no_grad():  # not round: turning a ball changes nothing, and its gradient is rounding alone
        scene["scales"].add_(0.5 * torch.randn(scene["scales"].shape, generator=generator))
    cameras = sample_orbit(OrbitRanges(), 2, size, torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", check.device):
        own = select(scene, slice(None)).to(device)
        view = render(own, cameras, torch.tensor([0.2, 0.5, 0.8]))
        (view.rgb.square().mean() + view.depth.mean() + view.alpha.mean()).backward()
        values = {"rgb": view.rgb, "alpha": view.alpha, "depth": view.depth}
        gradients = {f"gradient of {name}": p.grad for name, p in own.items() if p.grad is not None}
        found.append({name: value.detach().cpu() for name, value in (values | gradients).items()})
    here, there = found
    far = {
        name: float((there[name] - here[name]).norm() / here[name].norm().clamp(min=1e-12)) for name in here
    }
    own = select(scene, slice(None)).to(check.device)
    spent = check.milliseconds(lambda: render(own, cameras).rgb.square().mean().backward(), 3)
    return {"relative_distance": far, "forward_backward_ms": spent}


def job(check: Check) -> dict[str, Any]:
    """Run the main job, whole; tell how long it took, and whether its splat is there."""
    out = check.scratch / "job"
    small = ["--steps", "2", *SMALL] if check.dry else []
    words = ["--prompt", "a red mushroom", "--device", check.device, "--out", str(out), *small]
    begin = time.monotonic()
    told = check.command("-m", "splatdistill.train", *words)
    return told | {"seconds": time.monotonic() - begin, "splat": (out / "splat.ply").is_file()}


class StopAfter(NullWatcher):
    """Stops a run after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Count down."""
        self.left -= 1

    def should_stop(self) -> bool:
        """Tell whether it is time."""
        return self.left <= 0


def variants(check: Check) -> dict[str, Any]:
    """Run every other path for four steps, stopped after two and continued."""
    told: dict[str, Any] = {}
    for name, words in list(VARIANTS.items())[: 2 if check.dry else None]:
        out = check.scratch / name
        try:
            flags = {"prompt": "a red mushroom", "steps": 4}
            config = resolve(flags, None, [*SMALL, *GROWING, "gaussians.final_opacity=0.001", *words])
            make_run(config, out, device=check.device, watch=lambda job: nullcontext(StopAfter(2)))
            done = make_run(config, out, device=check.device, resume=True)
            told[name] = "ok" if done.finished else "not finished"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"[:300]
    return {"variants": told, "failed": [name for name, text in told.items() if text != "ok"]}


class Waits(NullWatcher):
    """Collects where the host waited in each step, as CUDA itself warns."""

    def __init__(self, caught: list[warnings.WarningMessage]) -> None:
        self.caught, self.steps = caught, []
        self.begin = time.perf_counter()

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Note the lines of this step."""
        lines = [f"{Path(w.filename).name}:{w.lineno}" for w in self.caught if "synchroniz" in str(w.message)]
        now = time.perf_counter()
        self.steps.append({"ms": 1e3 * (now - self.begin), "waits": dict(collections.Counter(lines))})
        self.caught.clear()
        self.begin = now


def waits(check: Check) -> dict[str, Any]:
    """Return milliseconds and host waits of each step of a run of the shipped teacher."""
    config = resolve({"prompt": "a red mushroom", "steps": 6}, None, SMALL if check.dry else [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not check.dry:
            torch.cuda.set_sync_debug_mode("warn")
        watcher = Waits(caught)
        try:
            make_run(
                config, check.scratch / "waits", device=check.device, watch=lambda job: nullcontext(watcher)
            )
        finally:
            if not check.dry:
                torch.cuda.set_sync_debug_mode("default")
    return {"steps": watcher.steps}


def best_of(check: Check, stage: str) -> dict[str, Any]:
    """Return what an earlier stage found best; empty if it did not run."""
    found = (check.out or RESULTS) / f"gpu-{stage}.json"
    return json.loads(found.read_text("utf-8")).get("best", {}) if found.is_file() else {}


def speed(check: Check) -> dict[str, Any]:
    """Run benchmarks/guidance_gpu.py: whole steps, ours against an eager loop; it writes its own results.

    Compiled, in the forms that `unet` and `encoder` found best if they came before.
    """
    words = ["--views", "4", "1", "--eager-views", "1", "4", "--repeats", "2", "--compile"]
    words += ["--out", str(check.out)]
    if check.dry:
        words = ["--tiny", "--device", "cpu", "--views", "1", "--repeats", "1", "--gaussians", "100"]
    if best := best_of(check, "unet"):
        words += ["--attention", best["attention"], "--norm", best["norm"], *["--fuse"] * best["fuse"]]
    if best := best_of(check, "encoder"):
        words += ["--encoder-attention", best["attention"]]
    return check.command("benchmarks/guidance_gpu.py", *words)


def sanitizers(check: Check) -> dict[str, Any]:
    """Run compute-sanitizer over every kernel: memory, races, uninitialised values, barriers."""
    program = str(check.scratch / "launch_ddim")
    sources = ["tests/native/launch_ddim.cu", "csrc/ddim/ddim_cuda.cu"]
    compiler = shutil.which("nvcc")
    if compiler is None:
        return {"error": "no nvcc"} if not check.dry else {}
    target = "-arch=sm_90" if check.dry else "-arch=native"
    built = check.shell(compiler, "-std=c++17", "-O3", target, "-Icsrc", *sources, "-o", program)
    if built["status"]:
        return built
    if check.dry:
        return {}
    told = {"plain": check.shell(program)}
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        told[tool] = check.shell("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", program)
    return told | {"failed": [tool for tool, done in told.items() if done["status"]]}


def bandwidth(check: Check) -> dict[str, Any]:
    """Return the memory traffic of each fused step at a large batch, as a share of a device copy's."""
    if check.dry:
        return {}
    shape = (4096, 4, 64, 64)
    return {
        "shape": shape,
        "rows": [ddim_ops.bandwidth(dtype, shape) for dtype in (torch.float32, torch.float16)],
    }


STAGES: dict[str, tuple[Callable[[Check], dict[str, Any]], float]] = {  # and the seconds that it needs
    "machine": (machine, 10),
    "sanitizers": (sanitizers, 40),
    "renderer": (renderer, 15),
    "tests": (tests, 45),
    "job": (job, 60),
    "unet": (networks_gpu.unet, 30),
    "encoder": (networks_gpu.encoder, 20),
    "speed": (speed, 40),
    "bandwidth": (bandwidth, 10),
    "waits": (waits, 20),
    "variants": (variants, 60),
}


def main() -> int:
    """Run the stages; return 1 where one failed."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--until", type=float, default=480.0, help="seconds after which no stage begins or runs"
    )
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--out", type=Path, help="default benchmarks/results; none with --dry")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small networks")
    options = parser.parse_args()
    out = options.out or (None if options.dry else RESULTS)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            stage, seconds = STAGES[name]
            started = time.monotonic()

            def save(told: dict[str, Any], name: str = name, started: float = started) -> None:
                if out is not None:
                    took = time.monotonic() - started
                    write_result(f"gpu-{name}", {"seconds": took, "dry": options.dry, **told}, out)

            check = Check(options.dry, begin + options.until, Path(scratch), out, save)
            if check.end - started < seconds and not options.dry:
                print(f"{name}: left out, {check.end - started:.0f} s are left of {seconds:.0f}", flush=True)
                continue
            try:
                told = stage(check)
            except Exception as error:
                told = {
                    "error": f"{type(error).__name__}: {error}"[:500],
                    "where": traceback.format_exc()[-800:],
                }
            if "error" in told or told.get("status") or told.get("failed"):
                failed.append(name)
            save(told)
            took = time.monotonic() - started
            print(f"{name} [{took:.0f} s] {json.dumps(told, default=str)[:900]}", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
