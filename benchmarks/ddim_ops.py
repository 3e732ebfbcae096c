"""Measure the fused diffusion steps against the best torch formulation.

python benchmarks/ddim_ops.py [--device cuda]: one thread on the CPU; writes benchmarks/results/ddim_ops.json
On CUDA also: the memory bandwidth of large batches, as a share of what a copy on the device reaches.

The torch forms of a step get every advantage: coefficients folded by hand into factors already shaped for
broadcasting, in place where that helps. `guide_then_move` combines the branches (lerp), then converts and
moves (mul, addcmul); `all_folded` has the guidance in its factors too (mul, addcmul twice), so it needs new
ones for other weights; `split_before` also keeps the splitting of the network's output out of the time. All
candidates of a case take turns, and the best of many repeats counts: other load touches all alike.
"""

import argparse
import timeit
from collections.abc import Callable

import torch
from common import write_result
from torch import Tensor

from splatdistill import ops, reference

SHAPES = [(4, 4, 16, 16), (4, 4, 64, 64)]  # B, C, h, w: those of a small teacher, and Stable Diffusion's
GUIDANCE = 7.5


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for name, candidates in cases(shape, dtype, options.device).items():
                    rows.append(measure(name, shape, dtype, candidates, options))
        result = {"rows": rows}
        if options.device == "cuda":
            result["bandwidth"] = [bandwidth(dtype) for dtype in (torch.float32, torch.float16)]
    write_result("ddim_ops" if options.device == "cpu" else "gpu-ddim_ops", result)


def bandwidth(dtype: torch.dtype, shape: tuple[int, ...] = (1024, 4, 64, 64)) -> dict:
    """Bytes read and written a second by each op on CUDA, beside those of a device copy of one tensor."""
    size = dtype.itemsize * torch.Size(shape).numel()
    x_t = torch.randn(shape, device="cuda", dtype=dtype)
    copy = 2 * size / device_seconds(lambda: x_t.clone())
    row = {"dtype": str(dtype).removeprefix("torch."), "copy_gb_per_s": copy / 1e9}
    accesses = {"ddim_step": 4, "noise_residual": 6, "recover_noise": 4}  # tensors of x_t's size
    for name, candidates in cases(shape, dtype, "cuda").items():
        rate = accesses[name] * size / device_seconds(candidates["ours"])
        row |= {f"{name}_gb_per_s": rate / 1e9, f"{name}_share_of_copy": rate / copy}
        row[f"{name}_from_reference"] = farthest(candidates["ours"](), candidates["reference"]())
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return row


def farthest(given: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> float:
    """Return the largest relative distance between outputs of an op and of its reference."""
    pairs = zip(*([x] if isinstance(x, Tensor) else x for x in (given, expected)), strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def device_seconds(function: Callable, number: int = 50) -> float:
    """Return the shortest of five averages over `number` calls, by the device's own clock."""
    best = float("inf")
    for _ in range(6):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            function()
        stop.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(stop) / 1e3 / number)
    return best


def cases(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, dict[str, Callable]]:
    """Return, for each op, its candidates by name: `ours`, `reference`, and any number of torch forms."""
    now, then = torch.linspace(0.2, 0.6, shape[0]), torch.linspace(0.3, 0.7, shape[0])
    x_t, noise = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    outputs = torch.randn(2, *shape, device=device, dtype=dtype)
    weights = torch.tensor([1 - GUIDANCE, GUIDANCE], device=device)[:, None].repeat(1, shape[0])
    step = ops.ddim_coefficients(now, then, "epsilon").to(device)
    residual = torch.cat([step[:, :4], 1 - now[:, None].to(device)], 1)
    recover = ops.recover_coefficients(now, then).to(device)
    return {
        "ddim_step": {
            "ours": lambda: ops.ddim_step(x_t, outputs, weights, step),
            "reference": lambda: reference.ddim_step(x_t, outputs, weights, step),
            **step_forms(x_t, outputs, step),
        },
        "noise_residual": {
            "ours": lambda: ops.noise_residual(x_t, outputs, weights, residual, noise),
            "reference": lambda: reference.noise_residual(x_t, outputs, weights, residual, noise),
            **residual_forms(x_t, outputs, residual, noise),
        },
        "recover_noise": {
            "ours": lambda: ops.recover_noise(noise, x_t, recover),
            "reference": lambda: reference.recover_noise(noise, x_t, recover),
            **recover_forms(noise, x_t, recover),
        },
    }


def step_forms(x_t: Tensor, outputs: Tensor, coefficients: Tensor) -> dict[str, Callable]:
    """Return guidance, conversion and move as three arithmetic operations of torch."""
    c = [column.to(x_t.dtype) for column in reference.ddim.columns(coefficients, x_t)]
    x, m = c[4] * c[0] + c[5] * c[2], c[4] * c[1] + c[5] * c[3]  # x_next = x x_t + m e
    m_null, m_text = (1 - GUIDANCE) * m, GUIDANCE * m
    split_null, split_text = outputs.unbind(0)

    def guide_then_move():
        null, text = outputs.unbind(0)
        return torch.addcmul(x * x_t, m, torch.lerp(null, text, GUIDANCE))

    def guide_then_move_in_place():
        null, text = outputs.unbind(0)
        return (x * x_t).addcmul_(m, torch.lerp(null, text, GUIDANCE))

    def all_folded_in_place():
        null, text = outputs.unbind(0)
        return (x * x_t).addcmul_(m_null, null).addcmul_(m_text, text)

    def split_before_guide_then_move_in_place():
        return (x * x_t).addcmul_(m, torch.lerp(split_null, split_text, GUIDANCE))

    def split_before_all_folded_in_place():
        return (x * x_t).addcmul_(m_null, split_null).addcmul_(m_text, split_text)

    forms = (
        guide_then_move,
        guide_then_move_in_place,
        all_folded_in_place,
        split_before_guide_then_move_in_place,
        split_before_all_folded_in_place,
    )
    return {form.__name__: form for form in forms}


def residual_forms(x_t: Tensor, outputs: Tensor, coefficients: Tensor, noise: Tensor) -> dict[str, Callable]:
    """Return the weighted residual, the target and the norms in torch (epsilon prediction: eps_hat = e)."""
    x0_x, x0_m, _, _, w = (column.to(x_t.dtype) for column in reference.ddim.columns(coefficients, x_t))

    def lerp_sub_mul_addcmul_norm():
        null, text = outputs.unbind(0)
        e = torch.lerp(null, text, GUIDANCE)
        gradient = (e - noise).mul_(w)
        norms = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), dtype=torch.float32)
        return gradient, (x0_x * x_t).addcmul_(x0_m, e), norms

    return {"lerp_sub_mul_addcmul_norm": lerp_sub_mul_addcmul_norm}


def recover_forms(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> dict[str, Callable]:
    """Return noise recovery and remapping in torch."""
    c = [column.to(x_t.dtype) for column in reference.ddim.columns(coefficients, x_t)]

    def mul_addcmul_twice():
        eps = (c[0] * x_t).addcmul_(c[1], x_0)
        return eps, (c[2] * x_0).addcmul_(c[3], eps)

    return {"mul_addcmul_twice": mul_addcmul_twice}


def measure(name: str, shape: tuple[int, ...], dtype: torch.dtype, candidates: dict, options) -> dict:
    """Time the candidates in turns, print a line, and return it as a row of the results (microseconds)."""
    number = 200
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(options.repeats + 1):
        for key, candidate in candidates.items():
            timer = timeit.Timer(lambda f=candidate: synchronized(f, number, options.device))
            best[key] = min(best[key], timer.timeit(1) / number * 1e6)
    size, kind = "x".join(map(str, shape)), str(dtype).removeprefix("torch.")
    print(f"{name} {size} {kind}: {best['ours']:.2f} us")
    for key, value in best.items():
        if key != "ours":
            print(f"    {key:<40}{value:>10.2f} us {value / best['ours']:>6.2f}x")
    speedup = {key: round(value / best["ours"], 2) for key, value in best.items() if key != "ours"}
    return {"op": name, "shape": size, "dtype": kind, "microseconds": best, "speedup_over": speedup}


def synchronized(function: Callable, number: int, device: str) -> None:
    """Call `function` and, on CUDA, wait until the device has done the work."""
    for _ in range(number):
        function()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
