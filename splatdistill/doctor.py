"""`python -m splatdistill.doctor`: check this machine, and say what to do about what is missing."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatdistill import __version__
from splatdistill.cli import Parser
from splatdistill.console import exit_status
from splatdistill.priors.loading import REAL

TEACHER_PARTS = ("model_index.json", "transformer", "vae", "text_encoder", "scheduler")
TEACHER_PARTS += ("vocabulary.json", "album.npz", "judge")


@dataclass(frozen=True)
class Finding:
    """One line of the report; a run needs all that are `required`."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = False


def examine() -> Iterator[Finding]:
    """Yield findings about this machine, most important first."""
    yield Finding(
        "python", sys.version_info >= (3, 11), sys.version.split()[0], "install 3.11 or newer", True
    )
    for package in ("torch", "gsplat", "diffusers", "transformers"):
        yield _package(package)
    yield _teacher(REAL)
    yield from _native()
    compilers = [os.environ.get("CXX", "g++"), "c++", "clang++"]
    yield _tool("C++ compiler", compilers, "builds the native extension: install one, then reinstall")
    yield _tool("nvcc", ["nvcc", "/usr/local/cuda/bin/nvcc"], "needed only to build CUDA kernels")
    yield _cuda()


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name), required=True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "run `make install` or `pip install .`", True)


def _teacher(folder: Path) -> Finding:
    """Check the shipped weights: every part of the folder, and no empty weight file."""
    missing = [part for part in TEACHER_PARTS if not (folder / part).exists()]
    weights = list(folder.rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights) / 2**20
    ok = not missing and len(weights) >= 3 and all(path.stat().st_size for path in weights)
    found = f"{size:.1f} MiB" if ok else f"no {missing[0] if missing else 'whole set of weights'}"
    return Finding("teacher weights", ok, found, "reinstall, or name another teacher with --prior", True)


def _native() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # the missing package is a finding of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the warning says is what this report says
        from splatdistill.ops import native
    kernels = native.kernels()
    found = "not available" if kernels is None else f"built; vector level {kernels.level()}"
    advice = f"runs use the slow torch reference: {native.failure}"
    yield Finding("native extension", kernels is not None, found, advice)
    yield Finding("threads", True, f"{torch.get_num_threads()} of {os.cpu_count()} (OMP_NUM_THREADS)")


def _tool(name: str, candidates: list[str], use: str) -> Finding:
    path = next(filter(None, map(shutil.which, candidates)), None)
    if path is None:
        return Finding(name, False, "not found", use)
    try:
        lines = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=20
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"{path} does not run: {error}", use)
    version = next((line for line in lines if "release" in line), lines[0] if lines else path)
    return Finding(name, True, version)


def _cuda() -> Finding:
    try:
        import torch

        from splatdistill.ops import native
    except ImportError:
        return Finding("CUDA", False, "torch is missing")
    if not torch.cuda.is_available():
        return Finding("CUDA", False, "no device", "needed only for Stable Diffusion")
    kernels = "kernels built" if native.cuda_available() else "kernels not built: torch does their work"
    advice = "install nvcc, then reinstall with SPLATDISTILL_CUDA=1"
    return Finding("CUDA", native.cuda_available(), f"{torch.cuda.get_device_name()}; {kernels}", advice)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 0 when the default run can work here, else 1."""
    parser = Parser(
        prog="python -m splatdistill.doctor",
        description="What this machine has, and what to do about the rest.",
        allow_abbrev=False,
    )
    kinds = "appraise a teacher instead: a name, a folder, or owner/name@COMMIT of the hub"
    parser.add_argument("--prior", metavar="X", help=kinds)
    parser.add_argument("--version", action="version", version=f"splatdistill {__version__}")
    args = parser.parse_args(arguments)
    if args.prior is not None:
        return exit_status(lambda: examine_prior(args.prior), "interrupted")
    findings = list(examine())
    show(findings)
    able = all(finding.ok for finding in findings if finding.required)
    print("The default run works here." if able else "The default run needs what is MISSING above.")
    return 0 if able else 1


def examine_prior(name: str) -> int:
    """Print what a teacher is, whether it fits here, its cost and its licence; return the exit status."""
    from splatdistill.priors.appraise import appraise, lines
    from splatdistill.training.inputs import pick_device
    from splatdistill.training.memory import free_memory

    device = pick_device(None)
    rows = [Finding(*row) for row in lines(appraise(name, device), free_memory(device))]
    show(rows)
    fits = next(row for row in rows if row.name == "memory")
    print(f"{name} fits here." if fits.ok else f"{name} does not fit here: {fits.found}; {fits.advice}.")
    return 0 if fits.ok else 1


def show(findings: Sequence[Finding]) -> None:
    """Print findings as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "what to do", box=None)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]MISSING[/]" if finding.required else "[yellow]-[/]"
        cells = (finding.name, finding.found, "" if finding.ok else finding.advice)
        table.add_row(mark, *map(Text, cells))  # plain text: values may look like markup
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
