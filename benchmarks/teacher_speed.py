"""Compare denoisers by speed: `python benchmarks/teacher_speed.py [--threads N]`.

For each candidate: the forward pass of the default job's batch (4 views x 2 branches) in this machine's usual
dtype, and a training step of 32 samples; floating-point operations counted by torch, and their rate as a
share of the best matrix product measured in the same run, in bfloat16 and in float32. Writes
benchmarks/results/teacher_speed.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from common import write_result
from torch.utils.flop_counter import FlopCounterMode

from splatdistill.priors.latent import default_dtype
from splatdistill.priors.view_transformer import ViewTransformer, describe_cameras, patch_rays

VIEWS, BRANCHES, TRAINED = 4, 2, 32
CANDIDATES: dict[str, dict[str, Any]] = {
    "views, the default": dict(outer_width=192, outer_layers=4, width=320, layers=5),
    "views, two outer layers": dict(outer_width=192, outer_layers=2, width=320, layers=5),
    "views, wider": dict(outer_width=256, outer_layers=2, width=384, layers=6),
    "views, 16 tokens alone": dict(outer_width=256, outer_layers=0, width=384, layers=6),
    "views, 64 tokens alone": dict(outer_width=320, outer_layers=6, width=320, layers=0),
}


def peak(dtype: torch.dtype) -> float:
    """Return the rate in GFLOP/s of the best of a few square matrix products."""
    best = 0.0
    for size in (512, 1024):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / fastest(lambda a=a, b=b: a @ b, 3) / 1e9)
    return best


def fastest(run: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def candidate(
    settings: dict[str, Any], count: int, dtype: torch.dtype
) -> tuple[Any, Callable[[], torch.Tensor]]:
    """Return a network and a call of it on `count` samples, each VIEWS of one scene."""
    torch.manual_seed(0)
    t = torch.randint(1000, (count,))
    network: Any = ViewTransformer(**settings)
    if dtype != torch.float32:
        network.to(dtype)
    side, zero = network.side, torch.zeros(count)
    orbit = (torch.rand(count) * 6, zero + 0.3, zero + 3, zero + 0.73)
    told = (describe_cameras(*orbit, zero), patch_rays(*orbit, side), torch.rand(count, 3))
    shown = (torch.randn(count, 3, 24, 16, 16), torch.ones(count, 3, 5), VIEWS)
    sample, text = torch.randn(count, 24, 16, 16), torch.randn(count // VIEWS, 20, 256)
    return network, lambda: network(sample, t, torch.rand(count), text.to(dtype), *told, *shown)


def measure(settings: dict[str, Any], dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds a sample and GFLOP/s, forward and in training."""
    network, call = candidate(settings, VIEWS * BRANCHES, dtype)
    count = VIEWS * BRANCHES
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            call()
        seconds = fastest(call, 5)
    flops = counter.get_total_flops()
    network, call = candidate(settings, TRAINED, torch.float32)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        call().square().mean().backward()

    trained = fastest(step, 2)
    return {
        "parameters_M": round(sum(p.numel() for p in network.parameters()) / 1e6, 2),
        "forward_GFLOP_a_sample": round(flops / count / 1e9, 3),
        "forward_ms_a_sample": round(seconds / count * 1e3, 2),
        "forward_GFLOPs": round(flops / seconds / 1e9, 1),
        "training_samples_per_s": round(TRAINED / trained, 1),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    dtype = default_dtype("cpu")
    rows: dict[str, dict[str, float]] = {}
    peaks = {"bfloat16": peak(torch.bfloat16), "float32": 0.0}
    for name, settings in CANDIDATES.items():
        peaks["float32"] = max(peaks["float32"], peak(torch.float32))
        rows[name] = measure(settings, dtype)
        print(name, rows[name], flush=True)
    for row in rows.values():
        row["share_of_bfloat16_peak"] = round(row["forward_GFLOPs"] / peaks["bfloat16"], 3)
        row["share_of_best_peak"] = round(row["forward_GFLOPs"] / max(peaks.values()), 3)
    load = round(os.getloadavg()[0], 1)  # of all that ran beside it: above the threads, times are too long
    told = {"load": load, "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch.")}
    write_result("teacher_speed", told | {"peak_GFLOPs": peaks, "candidates": rows})


if __name__ == "__main__":
    main()
