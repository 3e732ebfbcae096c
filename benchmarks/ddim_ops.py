"""How much faster are the fused diffusion steps than the best way to write them in torch?

python benchmarks/ddim_ops.py [--device cuda]: one thread on the CPU; writes benchmarks/results/ddim_ops.json

The torch forms get every advantage: coefficients folded by hand into two factors a sample, already shaped for
broadcasting, in-place where that helps; the fastest of them is the baseline. All candidates of a case take
turns, and the best of many repeats counts, so that other load on the machine touches all alike.
"""

import argparse
import json
import platform
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from splatdistill import ops, reference

SHAPES = [(4, 4, 16, 16), (4, 4, 64, 64)]  # B, C, h, w: the embedded teacher's latents, Stable Diffusion's
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
    print(f"{'op':<16}{'shape':<14}{'dtype':<10}{'ours us':>9}{'torch us':>10}{'ref us':>9}  torch / ours")
    with torch.no_grad():
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for name, candidates in cases(shape, dtype, options.device).items():
                    rows.append(measure(name, shape, dtype, candidates, options))
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine,
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    name = "ddim_ops.json" if options.device == "cpu" else "gpu-ddim_ops.json"
    path = Path(__file__).parent / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def cases(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, dict[str, Callable]]:
    """Return, for each op, its candidates by name: `ours`, `reference`, and any number of torch forms."""
    now, then = torch.linspace(0.2, 0.6, shape[0]), torch.linspace(0.3, 0.7, shape[0])
    x_t, noise = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    outputs = torch.randn(2, *shape, device=device, dtype=dtype)
    weights = torch.tensor([1 - GUIDANCE, GUIDANCE], device=device)[:, None].repeat(1, shape[0])
    step = ops.ddim_coefficients(now, then, "epsilon").to(device)
    residual = torch.cat([step[:, :4], 1 - now[:, None].to(device)], 1)
    recover = ops.recover_coefficients(now, then).to(device)
    arguments = (x_t, outputs, weights)
    return {
        "ddim_step": {
            "ours": lambda: ops.ddim_step(*arguments, step),
            "reference": lambda: reference.ddim_step(*arguments, step),
            **step_forms(x_t, outputs, step),
        },
        "noise_residual": {
            "ours": lambda: ops.noise_residual(*arguments, residual, noise),
            "reference": lambda: reference.noise_residual(*arguments, residual, noise),
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

    def lerp_mul_addcmul():
        null, text = outputs.unbind(0)
        return torch.addcmul(x * x_t, m, torch.lerp(null, text, GUIDANCE))

    def lerp_mul_addcmul_in_place():
        null, text = outputs.unbind(0)
        return (x * x_t).addcmul_(m, torch.lerp(null, text, GUIDANCE))

    def mul_addcmul_addcmul_in_place():
        null, text = outputs.unbind(0)
        return (x * x_t).addcmul_(m_null, null).addcmul_(m_text, text)

    def split_before_lerp_mul_addcmul_in_place():
        return (x * x_t).addcmul_(m, torch.lerp(split_null, split_text, GUIDANCE))

    def split_before_mul_addcmul_addcmul_in_place():
        return (x * x_t).addcmul_(m_null, split_null).addcmul_(m_text, split_text)

    forms = (
        lerp_mul_addcmul,
        lerp_mul_addcmul_in_place,
        mul_addcmul_addcmul_in_place,
        split_before_lerp_mul_addcmul_in_place,
        split_before_mul_addcmul_addcmul_in_place,
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
            timer = timeit.Timer(lambda f=candidate: synchronised(f, number, options.device))
            best[key] = min(best[key], timer.timeit(1) / number * 1e6)
    forms = {key: value for key, value in best.items() if key not in ("ours", "reference")}
    whole = {key: value for key, value in forms.items() if not key.startswith("split_before")}
    form = min(whole, key=whole.__getitem__)
    size, kind = "x".join(map(str, shape)), str(dtype).removeprefix("torch.")
    ratio = whole[form] / best["ours"]
    print(
        f"{name:<16}{size:<14}{kind:<10}{best['ours']:>9.2f}{whole[form]:>10.2f}{best['reference']:>9.1f}"
        f"{ratio:>7.2f}x  {form}"
    )
    for key in forms.keys() - whole.keys():
        print(f"{'':<33}{'':>9}{forms[key]:>10.2f}{'':>9}{forms[key] / best['ours']:>7.2f}x  {key}")
    return {
        "op": name,
        "shape": size,
        "dtype": kind,
        "microseconds": best,
        "ours_vs_best_torch": round(ratio, 2),
    }


def synchronised(function: Callable, number: int, device: str) -> None:
    """Call `function` and, on CUDA, wait until the device has done the work."""
    for _ in range(number):
        function()
    if device == "cuda":
        torch.cuda.synchronize()


def processor() -> str:
    """Return the processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
