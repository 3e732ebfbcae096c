"""Measure the default job beside a process that never waits.

`python benchmarks/busy_core.py [--steps N]` writes benchmarks/results/busy_core.json.

The job runs as a user runs it, with a thread a core and nothing set in the environment, alone and then beside
one process that counts for ever, both pinned to the same two cores. The load of the machine before, and the
time of the processors beside that of the clock, say how much of the first was alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_result

CORES = 2
SPIN = "while True: pass"
MOST_RATIO = 3.0


def seconds(steps: list[str], out: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Return the wall time and the processor time of the default job."""
    command = [sys.executable, "-m", "splatdistill.train", "--prompt", "a red mushroom", "--out", str(out)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, *steps], check=True, env=environment, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure both in one go, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="of the job; default those of its preset")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
    steps = [] if args.steps is None else ["--steps", str(args.steps)]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        alone, work = seconds(steps, Path(folder) / "alone", environment)
        with subprocess.Popen([sys.executable, "-c", SPIN]) as other:
            try:
                busy, busy_work = seconds(steps, Path(folder) / "busy", environment)
            finally:
                other.kill()
        first, second = ((Path(folder) / name / "splat.ply").read_bytes() for name in ("alone", "busy"))
    same, times = (
        first == second,
        {"alone_s": alone, "busy_s": busy, "alone_cpu_s": work, "busy_cpu_s": busy_work},
    )
    figures = {**times, "ratio": busy / alone}
    write_result("busy_core", {"steps": args.steps, "load_before": load, "same_bytes": same, **figures})
    print(figures, f"load before {load:.1f}, same bytes: {same}")
    sys.exit(busy > MOST_RATIO * alone or not same)


if __name__ == "__main__":
    main()
