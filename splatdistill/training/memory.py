"""Lower bounds of a run's memory, checked before it is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from splatdistill.config.schema import Config, ReportConfig
from splatdistill.errors import UserError

COPIES = 4  # of each parameter: itself, its gradient, Adam's two moments
PIXEL = 64  # bytes a pixel of a training view, at least: color, alpha, depth and saved tensors
WEBP_SIDE = 16383  # pixels; the limit of WebP


def check_memory(config: Config, device: torch.device, available: int | None = None) -> None:
    """Raise UserError, naming the setting, for sizes of a run that cannot fit.

    Only certain needs are counted, so that nothing which fits is refused. available: free bytes, by default
    those of the machine.
    """
    views, count = config.views, config.gaussians.count
    numbers = 11 + 3 * (config.gaussians.sh_degree + 1) ** 2  # of one Gaussian
    check_fits(f"gaussians.count {count:,}", 4 * numbers * COPIES * count, device, available)
    pixels = views.count * views.size**2
    check_fits(f"views.size {views.size:,} for {views.count} views", PIXEL * pixels, device, available)
    check_report(config.report, available)


def check_report(look: ReportConfig, available: int | None = None) -> None:
    """Raise UserError for a report whose images cannot fit; available as in `check_memory`."""
    if look.size > WEBP_SIDE:
        raise UserError(f"report.size {look.size}: the turntable has at most {WEBP_SIDE} pixels a side")
    setting = f"report.size {look.size:,} for {look.frames} frames"
    check_fits(setting, 3 * look.frames * look.size**2, torch.device("cpu"), available)


def check_fits(setting: str, needed: int, device: torch.device, available: int | None) -> None:
    """Raise UserError for a setting that needs more bytes than a device has."""
    there = free_memory(device) if available is None else available
    if needed > there:
        raise UserError(
            f"{setting} needs at least {needed / 1e9:,.1f} GB of memory; {there / 1e9:,.1f} GB are free: "
            "choose less"
        )


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process can have on a device, within its control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    listing, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    free = found[0] if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(free, int(limit.read_text()))
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return free
