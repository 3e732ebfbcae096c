"""What a run will need at least of memory, told before it asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from splatdistill.config.schema import Config
from splatdistill.errors import UserError

COPIES = 4  # of each parameter: itself, its gradient, Adam's two moments
PIXEL = 64  # bytes of a training view: color, alpha, depth and what the backward pass keeps, at the least
WEBP_SIDE = 16383  # pixels: the turntable's format knows no more


def check_memory(config: Config, device: torch.device, available: int | None = None) -> None:
    """Raise UserError for sizes that cannot fit, with the setting that is to blame.

    Only what is certain counts, so that nothing which fits is refused. available: bytes, where they are not
    to be asked of the machine.
    """
    report, views, count = config.report, config.views, config.gaussians.count
    if report.size > WEBP_SIDE:
        raise UserError(f"report.size {report.size}: the turntable has at most {WEBP_SIDE} pixels a side")
    numbers = 11 + 3 * (config.gaussians.sh_degree + 1) ** 2  # of one Gaussian
    needed = {  # on the device of the run, and beside it
        f"gaussians.count {count:,}": (4 * numbers * COPIES * count, device),
        f"views.size {views.size:,} for {views.count} views": (PIXEL * views.count * views.size**2, device),
        f"report.size {report.size:,} for {report.frames} frames": (
            3 * report.frames * report.size**2,
            torch.device("cpu"),
        ),
    }
    for setting, (size, place) in needed.items():
        there = free_memory(place) if available is None else available
        if size > there:
            raise UserError(
                f"{setting} needs at least {size / 1e9:,.1f} GB of memory; {there / 1e9:,.1f} GB are free: "
                "choose less"
            )


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still have on a device: of the machine, and of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = "SC_AVPHYS_PAGES" if not Path("/proc/meminfo").is_file() else None
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages else _from_meminfo()
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


def _from_meminfo() -> int:
    """What Linux counts as available, caches that it would give up among it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
