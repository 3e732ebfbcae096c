"""Many runs: workers that are killed, parts of a list, and runs that share their teacher's batches.

`workers`: a list over two actors of Ray, or processes, that are killed ten times at random moments; each run
must finish once, with the bytes that the same list has by --shard 0/2 and 1/2 in this process.
`calls`: the processor time of a call of the network a scene, by how many scenes share it.
`scenes`: the same runs alone and with `batch.scenes`: processor time, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from file_faults import MEMORY_DISK, contents
from PIL import Image
from ranks import tiny

from splatdistill.batch import main as batch
from splatdistill.folder import LOG, PREVIEW, RESULT
from splatdistill.measure.suites import listed, specs_of
from splatdistill.priors import load_prior
from splatdistill.priors.base import cfg
from splatdistill.scene.cameras import turntable
from splatdistill.training.executors import LOST, Crew, Processes, RayActors
from splatdistill.training.jobs import RunSpec, Task, make_all, make_one
from splatdistill.training.scenes import joined, make_together

SMALL = (
    *("views.size=16", "views.count=2", "gaussians.count=50", "gaussians.final_opacity=0.01", "method=sds"),
    *("report.size=16", "report.frames=2", "checkpoint_every=2", "steps=2"),
)
PROMPTS = (
    "a red mug",
    "a blue car",
    "a green tree",
    "a yellow duck",
    "a red chair",
    "a blue lamp",
    "a red cup",
)
PROMPTS += ("a white house",)


class Mortal(Crew):
    """Workers of which some are killed while they work; a mixin.

    Args:
        size: of the crew.
        doomed: the counts of tasks given after which the worker that got one dies.
    """

    def __init__(self, size: int, doomed: set[int]) -> None:
        super().__init__(size, "cpu")
        self.doomed, self.given, self.kills = doomed, 0, 0
        self.random = np.random.default_rng(0)
        self.open: set[str] = set()

    def pid(self, worker: Any) -> int:
        """Return the id of a worker's process."""
        return worker[0].pid

    def give(self, worker: Any, task: Task) -> None:
        """Send a task, and death a moment later."""
        super().give(worker, task)
        self.given += 1
        if self.given in self.doomed:
            self.kills += 1
            threading.Timer(
                self.random.uniform(0.0, 0.5), os.kill, (self.pid(worker), signal.SIGKILL)
            ).start()


class MortalProcesses(Mortal, Processes):
    """Processes of this machine."""


class MortalActors(Mortal, RayActors):
    """Ray's actors."""

    pids: dict[Any, int]

    def start(self, place: int) -> Any:
        """Start an actor, and note its process."""
        actor = super().start(place)
        self.pids = getattr(self, "pids", {}) | {actor: self.ray.get(actor.pid.remote())}
        self.open |= listening()
        return actor

    def pid(self, worker: Any) -> int:
        """Return the id of an actor's process."""
        return self.pids[worker]


def listening() -> set[str]:
    """Return the addresses beyond loopback at which Ray's processes listen."""
    inodes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            if b"ray" in words and b"benchmarks/many.py" not in words:
                inodes |= {
                    os.readlink(fd)[8:-1] for fd in (folder / "fd").iterdir() if "socket" in os.readlink(fd)
                }
        except OSError:
            continue
    found = set()
    for table, local in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            address = words[1].split(":")[0]
            loopback = address == local or address.endswith("FFFF00000100007F")
            if words[3] == "0A" and words[9] in inodes and not loopback:
                found.add(words[1])
    return found


def workers(folder: Path, on: str, count: int, kills: int) -> dict[str, Any]:
    """Make a list with mortal workers, unless it was made before, and by parts; return what came of it."""
    prior, text, kept = folder / "teacher" / "pipeline", folder / "list.yaml", folder / f"{on}.json"
    if not prior.exists():
        tiny(folder)
    text.write_text("".join(f"- {{prompt: a red dog, seed: {seed}}}\n" for seed in range(count)))
    flags = {"prior": {"name": str(prior)}}
    specs, _ = specs_of(listed(str(text)), folder / on, flags, SMALL, allow_unknown=True)
    if not kept.exists():
        kept.write_text(json.dumps(killed(specs, on, kills)))
    begin = time.perf_counter()
    for part in ("0/2", "1/2"):
        words = [str(text), "--out", str(folder / "parts"), "--prior", str(prior), "--allow-unknown"]
        if batch([*words, "--jobs", "1", "--device", "cpu", "--shard", part, *SMALL]):
            raise RuntimeError(f"--shard {part} failed")
    same = [made(spec.folder) == made(folder / "parts" / spec.folder.name) for spec in specs]
    seconds = round(time.perf_counter() - begin, 1)
    return json.loads(kept.read_text()) | {"same_bytes_as_by_shards": sum(same), "seconds_of_shards": seconds}


def killed(specs: Sequence[RunSpec], on: str, kills: int) -> dict[str, Any]:
    """Make runs with mortal workers; return what came of it."""
    random = np.random.default_rng(1)
    doomed = {int(n) for n in random.choice(np.arange(1, len(specs)), kills, replace=False)}
    crew = (MortalActors if on == "ray" else MortalProcesses)(2, doomed)
    ends, inodes = Counter(), {}

    def tell(spec: RunSpec, failure: str | None) -> None:
        if failure == "":
            ends[spec.folder.name] += 1
            inodes[spec.folder] = (spec.folder / RESULT).stat().st_ino
            print(f"{len(ends)} finished, {crew.kills} workers killed", flush=True)
        elif failure not in (None, LOST):
            print(f"{spec.folder.name}: {failure}", flush=True)

    begin = time.perf_counter()
    failures = make_all(specs, crew, retries=kills, tell=tell)
    seconds = time.perf_counter() - begin
    if isinstance(crew, MortalActors):
        crew.ray.shutdown()
    return {
        "runs": len(specs),
        "finished": len(ends),
        "finished_twice": sum(number > 1 for number in ends.values()),
        "written_again": sum(path.joinpath(RESULT).stat().st_ino != inode for path, inode in inodes.items()),
        "failed": len(failures),
        "workers_killed": crew.kills,
        "listening_beyond_loopback": sorted(crew.open),
        "seconds_over_two_workers": round(seconds, 1),
    }


def made(run: Path) -> dict[str, bytes]:
    """Return the files of a run but for its log, which has times."""
    return {name: content for name, content in contents(run).items() if name != LOG}


def scenes(folder: Path, priors: Sequence[str], sizes: Sequence[int], steps: int) -> dict[str, Any]:
    """Make runs alone and together; return processor time and distances for each teacher and size."""
    rows: dict[str, Any] = {}
    words = [f"steps={steps}", "report.size=64", "report.frames=2", "checkpoint_every=1000"]
    for prior in priors:
        items = [{"prompt": prompt} for prompt in PROMPTS[: max(sizes)]]
        flags = {"prior": {"name": prior}}
        alone, _ = specs_of(items, folder / f"{prior}-alone", flags, words, allow_unknown=True)
        make_one(RunSpec(folder / f"{prior}-first", alone[0].config), "cpu")  # loads and imports
        begin = time.process_time()
        for spec in alone:
            make_one(spec, "cpu")
        each = (time.process_time() - begin) / len(alone)
        rows[prior] = {"steps": steps, "alone_seconds_a_run": round(each, 3)}
        for size in sizes:
            together, _ = specs_of(items[:size], folder / f"{prior}-{size}", flags, words, allow_unknown=True)
            begin = time.process_time()
            failures = make_together(together, "cpu")
            spent = (time.process_time() - begin) / size
            pairs = [(a.folder, b.folder) for a, b in zip(alone, together)]
            rows[prior][str(size)] = {
                "seconds_a_run": round(spent, 3),
                "gain": round(each / spent, 3),
                "same_bytes": sum((a / RESULT).read_bytes() == (b / RESULT).read_bytes() for a, b in pairs),
                "largest_mean_difference_of_a_pixel": round(max(apart(a, b) for a, b in pairs), 5),
                "failed": sum(map(bool, failures)),
            }
            print(prior, size, rows[prior][str(size)], flush=True)
            write_result("batch_scenes", rows)
    return rows


def calls(priors: Sequence[str], sizes: Sequence[int], views: int = 4, repeat: int = 5) -> dict[str, Any]:
    """Return the processor time of a call of the network for each scene, by how many share it."""
    rows: dict[str, Any] = {}
    for name in priors:
        prior = load_prior(name)
        cameras = turntable(views, 15.0, 3.0, 40.0, 64)
        one = cfg(prior.embed([""] * views), prior.embed(["a red mug"] * views), 7.5)
        one = prior.with_cameras(one, cameras, torch.ones(views, 3))
        rows[name] = {}
        for size in sizes:
            cond = joined([one] * size)
            z_t, t = torch.randn(views * size, *prior.latent_shape), torch.full((views * size,), 500)
            prior.predict(z_t, t, cond)
            spent = []
            for _ in range(repeat):
                begin = time.process_time()
                prior.predict(z_t, t, cond)
                spent.append((time.process_time() - begin) / size)
            rows[name][str(size)] = round(min(spent), 4)
        print(name, rows[name], flush=True)
    return rows


def apart(a: Path, b: Path) -> float:
    """Return the mean absolute difference of two runs' previews, in [0, 1]."""
    pictures = [np.asarray(Image.open(run / PREVIEW).convert("RGB"), dtype=float) for run in (a, b)]
    return float(np.abs(pictures[0] - pictures[1]).mean() / 255.0)


def main() -> None:
    """Print a line a case and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("workers", "scenes", "calls"))
    parser.add_argument("--count", type=int, default=200, help="of runs, for workers")
    parser.add_argument("--on", choices=("ray", "processes"), default="ray")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--priors", nargs="+", default=["real"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", help="a folder to go on in; default a new one, deleted at the end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = tempfile.TemporaryDirectory(dir=MEMORY_DISK) if args.work is None else nullcontext(args.work)
    with where as name:
        Path(name).mkdir(exist_ok=True)
        if args.part == "workers":
            write_result(f"batch_{args.on}", workers(Path(name), args.on, args.count, args.kills))
        elif args.part == "calls":
            write_result("batch_calls", calls(args.priors, args.sizes))
        else:
            scenes(Path(name), args.priors, args.sizes, args.steps)


if __name__ == "__main__":
    main()
