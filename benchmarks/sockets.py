"""Show which verbs open a socket, by strace.

`python benchmarks/sockets.py [--steps N]` writes benchmarks/results/sockets.json.

Every verb runs as a user runs it, in a process of its own, on the shipped teacher, under
`strace -f -e trace=socket,connect,bind`. Only `view`, and a run that was asked to show itself, may open one
of the Internet; `view` is here to show that one is seen.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_result

CALL = re.compile(r"\b(socket|connect|bind)\(.*?\b(AF_\w+)")
INTERNET = {"AF_INET", "AF_INET6"}
MAY = {"view"}


def commands(folder: Path, steps: int) -> dict[str, list[str]]:
    """Return the command line of each verb, in an order in which each finds what it reads."""
    prompts = folder / "list.txt"
    prompts.write_text("a red mushroom\na blue mushroom\n", "utf-8")
    run, small = str(folder / "run"), [f"steps={steps}", "report.size=64"]
    drawn = ["--prompt", "a red mushroom", "--out", str(folder / "drawn"), "--count", "1", "--steps", "3"]
    edited = ["--splat", run, "--target-prompt", "a blue mushroom", "--out", str(folder / "edited"), *small]
    return {
        "train": ["--prompt", "a red mushroom", "--out", run, *small],
        "batch": [str(prompts), "--out", str(folder / "many"), *small],
        "refine": ["--splat", run, "--out", str(folder / "refined"), *small],
        "edit": edited,
        "export": [run, str(folder / "scene.spz")],
        "report": [run],
        "evaluate": [run, "--out", str(folder / "figures")],
        "sample2d": drawn,
        "reproduce": ["sdi-1", "--out", str(folder), "--prompts", "2", "--seeds", "2", "--steps", "2"],
        "doctor": [],
        "view": [run, "--viewer", "0"],
    }


def sockets(verb: str, words: list[str], log: Path) -> dict[str, int]:
    """Run a verb under strace; return how often it named each family in a call on sockets."""
    traced = ["strace", "-f", "-qq", "-e", "trace=socket,connect,bind", "-o", str(log)]
    command = [*traced, sys.executable, "-m", "splatdistill", verb, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        if verb in MAY:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("viewer: "))
            os.killpg(process.pid, signal.SIGINT)  # strace itself would not pass it on
        _, said = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{verb}: status {process.returncode}: {said}")
    families = [match[2] for match in map(CALL.search, log.read_text().splitlines()) if match]
    return {family: families.count(family) for family in sorted(set(families))}


def main() -> None:
    """Print a line a verb and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="of the runs; default 20")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for verb, words in commands(Path(folder), args.steps).items():
            found[verb] = sockets(verb, words, Path(folder) / "strace.log")
            print(f"{verb:10} {found[verb] or 'none'}", flush=True)
    wrong = [verb for verb, families in found.items() if INTERNET & set(families) and verb not in MAY]
    blind = [verb for verb in MAY if not INTERNET & set(found[verb])]
    write_result("sockets", {"steps": args.steps, "families": found})
    sys.exit(f"sockets of {', '.join(wrong)}; none seen of {', '.join(blind)}" if wrong or blind else 0)


if __name__ == "__main__":
    main()
