"""Measure the CPU rasterizer, forward and backward, against dense torch.

python benchmarks/rasterizer.py [--repeats 20]: writes benchmarks/results/rasterizer.json

One thread, everything counted (Python and autograd too), the best of several repeats. The scene is a ball of
N Gaussians of radius 1: scales 0.02 to 0.05, opacities 0.1 to 0.95, SH degree 0, seen from distance 3 with a
field of view of 50 degrees. The dense renderer evaluates every Gaussian at every pixel.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from common import write_result
from torch import Tensor

from splatdistill.ops.raster import rasterize
from splatdistill.reference import raster as reference

CASES = ((2_000, 64), (10_000, 128), (10_000, 512), (50_000, 512))  # Gaussians, pixels along a side
DENSE_CASE = CASES[0]  # larger ones do not fit in memory


Draw = Callable[[list[Tensor], int], tuple[Tensor, Tensor, Tensor]]


def ball(count: int) -> list[Tensor]:
    """Means, quats, scales, opacities and SH coefficients of the benchmark's scene."""
    rng = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    means = directions * torch.rand(count, 1, generator=rng) ** (1 / 3)
    quats = torch.randn(count, 4, generator=rng)
    scales = 0.02 + 0.03 * torch.rand(count, 3, generator=rng)
    opacities = 0.1 + 0.85 * torch.rand(count, generator=rng)
    sh = 0.5 * torch.randn(count, 1, 3, generator=rng)
    return [x.requires_grad_() for x in (means, quats, scales, opacities, sh)]


def camera(size: int) -> tuple[Tensor, Tensor]:
    """View matrix [1,4,4] at distance 3 along z and intrinsics [1,3,3] for 50 degrees."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = 3.0
    focal = 0.5 * size / math.tan(math.radians(25.0))
    K = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return viewmat[None], K[None]


def draw_native(gaussians: list[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """rgb [H,W,3], alpha and depth [H,W,1] by the native kernels."""
    means, quats, scales, opacities, sh = gaussians
    viewmats, Ks = camera(size)
    rgb, alpha, depth, _, _ = rasterize(
        means, quats, scales, opacities, sh, viewmats, Ks, size, size, torch.ones(1, 3), 0
    )
    return rgb[0], alpha[0], depth[0]


def draw_dense(gaussians: list[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """rgb [H,W,3], alpha and depth [H,W,1] by plain torch: all pixels times all Gaussians."""
    means, quats, scales, opacities, sh = gaussians
    viewmats, Ks = camera(size)
    projected = reference.project(
        means, quats, scales, opacities, sh, viewmats, Ks, size, size, 0, reference.Limits()
    )
    means2d, conics, depths, colors = (x[0] for x in projected[:4])
    order = torch.argsort(depths)
    means2d, conics, depths, colors = means2d[order], conics[order], depths[order], colors[order]
    centers = torch.arange(size) + 0.5
    dx = (means2d[:, 0] - centers[:, None])[None]  # [1,W,N]
    dy = (means2d[:, 1] - centers[:, None])[:, None]  # [H,1,N]
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy  # [H,W,N]
    alpha = (opacities[order] * torch.exp(-sigma)).clamp_max(reference.ALPHA_MAX)
    alpha = torch.where(alpha >= reference.ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1.0 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
    weights = torch.where(after > reference.TRANSMITTANCE_MIN, alpha * before, 0.0)
    total = weights.sum(-1, keepdim=True)
    depth = (weights @ depths[:, None]) / total.clamp_min(1e-10)
    return weights @ colors + (1.0 - total), total, depth


def best_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest of `repeats` runs after one to warm up, in milliseconds."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(
    draw: Callable[[list[Tensor], int], tuple[Tensor, ...]], count: int, size: int, repeats: int
) -> dict:
    """Milliseconds for a forward pass, and for a forward and a backward pass to all Gaussians' parameters."""
    gaussians = ball(count)
    cotangents = [torch.randn(x.shape) for x in draw(gaussians, size)]

    def forward() -> None:
        with torch.no_grad():
            draw(gaussians, size)

    def both() -> None:
        torch.autograd.grad(draw(gaussians, size), gaussians, cotangents)

    result = {"gaussians": count, "size": size, "forward_ms": best_ms(forward, repeats)}
    return result | {"forward_backward_ms": best_ms(both, repeats)}


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    with torch.no_grad():
        gaussians, size = ball(DENSE_CASE[0]), DENSE_CASE[1]
        pairs = zip(draw_native(gaussians, size), draw_dense(gaussians, size))
        difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    dense = measure(draw_dense, *DENSE_CASE, repeats=3)
    rows = [measure(draw_native, count, size, arguments.repeats) for count, size in CASES]
    print(f"{'Gaussians':>10} {'pixels':>9} {'forward':>11} {'+ backward':>11} {'dense 2k@64 /':>14}")
    for row in rows:
        row["dense_ratio"] = dense["forward_backward_ms"] / row["forward_backward_ms"]
        print(
            f"{row['gaussians']:>10} {row['size']:>4}x{row['size']:<4} {row['forward_ms']:>8.2f} ms "
            f"{row['forward_backward_ms']:>8.2f} ms {row['dense_ratio']:>13.1f}x"
        )
    times = f"{dense['forward_ms']:>8.2f} ms {dense['forward_backward_ms']:>8.2f} ms"
    print(f"{'dense 2k':>10} {size:>4}x{size:<4} {times}  plain torch; images differ by {difference:.1e}")
    result = {"best_of": arguments.repeats, "dense": dense, "difference": difference, "native": rows}
    write_result("rasterizer", result)


if __name__ == "__main__":
    main()
