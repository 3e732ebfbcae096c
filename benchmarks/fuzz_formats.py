"""Check that damaged and malicious files only ever fail with one clear error.

python benchmarks/fuzz_formats.py [--cases 170000]: writes benchmarks/results/fuzz_formats.json

Each importer reads that many damaged files: sound ones of every flavour with bytes flipped, numbers made
extreme, parts cut out, doubled, swapped or appended; headers that lie; compressed payloads damaged inside;
bombs; and files built to need memory. A case is named by its number: the same seed gives the same file. What
is counted: scenes, the importer's own errors (UserError), other exceptions, crashes and hangs of the process;
and the most memory that one file needed above 4 times its size: by the whole process at every case, whatever
allocated it (Linux), and by tracemalloc (what Python and NumPy allocate, touched or not) at every case that
is built to need memory and one in twenty of the others, since it doubles the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from damage import damaged, samples

from splatdistill import formats
from splatdistill.errors import UserError

ENDINGS = (".ply", ".compressed.ply", ".splat", ".spz", ".glb", ".sog")
MIB = 1 << 20
ALLOWED_MIB = 64  # beyond 4 times the file's size
HANG_SECONDS = 60
TRACED_EVERY = 20  # divides damage.HEAVY_EVERY
MEMORY_DISK = "/dev/shm"  # where there is one


def main() -> None:
    """Run every importer in a process of its own, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=170_000, help="for each importer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for ending in ENDINGS:
        rows[ending] = in_process(ending, options.cases, options.seed)
        print(ending, rows[ending], flush=True)
        total = sum(row["cases"] for row in rows.values())
        result = {"cases": total, "cases_each": options.cases, "seed": options.seed, "importers": rows}
        write_result("fuzz_formats", result)
    bad = [ending for ending, row in rows.items() if not sound(row)]
    sys.exit(f"unsound: {', '.join(bad)}" if bad else 0)


def sound(row: dict[str, Any]) -> bool:
    """Whether nothing happened but scenes and clear errors, within the memory allowed."""
    clean = not (row["crashed"] or row["hung"] or row["other_exceptions"])
    return clean and max(row["most_memory_beyond_4x_mib"], row["most_growth_beyond_4x_mib"]) <= ALLOWED_MIB


def in_process(ending: str, cases: int, seed: int, hang_seconds: float = HANG_SECONDS) -> dict[str, Any]:
    """Fuzz one importer in a child process, so that a crash or a hang is seen and named."""
    context = multiprocessing.get_context("fork")
    progress, results = context.Value("q", 0), context.SimpleQueue()

    def work() -> None:
        def advance(case: int) -> None:
            progress.value = case

        results.put(fuzz(ending, range(cases), seed, folder, advance))

    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if os.path.isdir(MEMORY_DISK) else None) as name:
        folder, process = Path(name), context.Process(target=work)
        process.start()
        last, since = -1, time.monotonic()
        while process.is_alive() and results.empty():
            process.join(0.2)
            if progress.value != last:
                last, since = progress.value, time.monotonic()
            elif time.monotonic() - since > hang_seconds:
                process.kill()
                process.join()
                return {"cases": cases, "crashed": False, "hung": True, "case": last}
        row = {"cases": cases, "crashed": True, "hung": False, "case": progress.value}
        if not results.empty():
            row = results.get()
        process.join()
    return row


def fuzz(
    ending: str,
    cases: range,
    seed: int,
    folder: Path,
    advance: Callable[[int], None] = lambda case: None,
) -> dict[str, Any]:
    """Read the cases of these numbers; return counts, the most memory and the longest time."""
    seeds = samples(ending)
    scenes = errors = traced = 0
    others: dict[str, int] = {}  # what -> first case
    slowest, hungriest, fattest, largest = 0.0, -1e9, -1e9, 0
    path, before = folder / f"case{ending}", resident()
    for case in cases:
        advance(case)
        content = damaged(ending, seeds, np.random.default_rng((seed, case)), case)
        path.write_bytes(content)
        largest, allowed = max(largest, len(content)), 4 * len(content)
        trace = case % TRACED_EVERY == TRACED_EVERY - 1
        if trace:
            before = resident()
            tracemalloc.start()
        start = time.perf_counter()
        try:
            formats.read_splat(path, note=lambda text: None)
            scenes += 1
        except UserError as error:
            errors += 1
            if "\n" in str(error) or len(str(error)) > 500:
                others.setdefault(f"an error of more than a line: {str(error)[:80]!r}", case)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            others.setdefault(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}", case)
        slowest = max(slowest, time.perf_counter() - start)
        highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the last `resident`
        fattest = max(fattest, (highest - before - allowed) / MIB)
        if trace:
            traced += 1
            hungriest = max(hungriest, (tracemalloc.get_traced_memory()[1] - allowed) / MIB)
            tracemalloc.stop()
    return {
        "cases": len(cases),
        "scenes": scenes,
        "user_errors": errors,
        "other_exceptions": others,
        "crashed": False,
        "hung": False,
        "slowest_seconds": round(slowest, 3),
        "traced": traced,
        "most_memory_beyond_4x_mib": round(hungriest, 2),
        "largest_file_mib": round(largest / MIB, 2),
        "most_growth_beyond_4x_mib": round(fattest, 2),
    }


def resident() -> int:
    """Bytes of this process in memory; the most that it had is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
