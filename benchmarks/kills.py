"""Kill every verb that writes at every file operation, and see that nothing is lost.

`PYTHONPATH=tests python benchmarks/kills.py [--jobs NAME ...]` writes benchmarks/results/kills.json.

A job is a command: a new run, one that replaces a finished run or goes on with it, of each way to place
Gaussians and of VSD; a run from a picture; an edit; an export over an older file; and others. It is done once
undisturbed, and then again and again: the k-th time it dies by SIGKILL at its k-th operation on files, or in
the middle of its k-th write. Then the user does what is left to do: --resume, or the same command again;
every other time that is killed too, at a random operation, up to three kills in all.

Lost: an older result that is nowhere while there is no new one; a command that cannot be finished.
Different: any file, hidden ones too, that at the end has other bytes than after the undisturbed command, is
missing, or is too many. The teacher is by default a tiny random pipeline: what is in question are files.
With --plant a fault is put into the product, which the campaign must find.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import numpy as np
import torch
from common import RESULTS, write_result
from file_faults import KILL, KILLED, MEMORY_DISK, NEVER, TEAR, Ended, contents, preload, run_verb
from format_errors import scene
from PIL import Image, ImageDraw

from splatdistill.config.load import resolve
from splatdistill.folder import CONFIG, PREVIOUS, RESULT
from splatdistill.formats.ply import write_ply
from splatdistill.training import inputs, run
from splatdistill.training.state import TrainState

SETTINGS = (
    *("steps=4", "views.size=16", "views.count=2", "gaussians.count=50"),
    *("report.size=16", "report.frames=2", "checkpoint_every=2", "gaussians.final_opacity=0.01"),
)
KINDS = {
    "fixed": ("method=sds", "densification.kind=none"),
    "default": ("method=sds", "densification.kind=default", "densification.start=1", "densification.every=2"),
    "mcmc": ("method=sds", "densification.kind=mcmc", "densification.start=1", "densification.every=2"),
    "vsd": ("method=vsd",),
}
FORMATS = ("ply", "compressed.ply", "splat", "spz", "glb", "sog", "obj")
MOST_KILLS = 3  # of one case
FAULTS = {"before": KILL, "within": TEAR}


@dataclass
class Job:
    """A command that writes into OUT, whose place in `words` is {out}."""

    words: list[str]
    before: Path | None = None  # what OUT holds before
    again: list[str] = field(default_factory=list)  # what is added when the command is given again
    resumes: bool = False  # --resume continues it, once its config.yaml is there
    result: str = RESULT  # the file that must not be lost


@dataclass
class Tally:
    """What came of the faults that a job met."""

    faults: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)  # the user did not hear of it in one line


def kill_all(job: Job, folder: Path, every: int = 1) -> Tally:
    """Kill a job at every so many-th of its operations, finish it, and compare."""
    whole = folder / "whole"
    expected, ended = done(job, whole)
    tally, random, cases = Tally(), np.random.default_rng(0), 0
    for name, how in FAULTS.items():
        for moment in range(0, NEVER, every):
            out = folder / f"{name}-{moment}"
            if job.before is not None:
                shutil.copytree(job.before, out)
            where = f"killed {name} operation {moment}"
            status = run_verb(filled(job.words, out), out, how, moment).status
            if status == 0:
                shutil.rmtree(out)
                break
            if status != KILLED:
                raise RuntimeError(f"status {status} instead of a kill: {filled(job.words, out)}")
            kills, last = 1, ended
            while status == KILLED:
                tally.faults += 1
                if not held(job, out, expected):
                    tally.lost.append(f"{where}: neither the old {job.result} nor the new one is there")
                later = int(random.integers(ended.operations)) if cases % 2 and kills < MOST_KILLS else NEVER
                last = run_verb(next_words(job, out, expected, cases), out, KILL, later)
                status, kills = last.status, kills + 1
            cases += 1
            if status != 0:
                tally.lost.append(f"{where}: {last.text[-300:]}")
            elif wrong := differing(contents(out), expected):
                tally.different.append(f"{where}: {wrong}")
            shutil.rmtree(out)
    return tally


def done(job: Job, out: Path) -> tuple[dict[str, bytes], Ended]:
    """Do a job undisturbed; return the files in OUT, and how many operations it took."""
    if job.before is not None:
        shutil.copytree(job.before, out)
    ended = run_verb(filled(job.words, out), out)
    if ended.status != 0:
        raise RuntimeError(f"{filled(job.words, out)}: {ended.text}")
    return contents(out), ended


def filled(words: list[str], out: Path) -> list[str]:
    """Return the command line with its folder."""
    return [word.format(out=out) for word in words]


def next_words(job: Job, out: Path, expected: dict[str, bytes], turn: int) -> list[str]:
    """Return what a user does after a kill: continue a run that had begun, or give the command again."""
    config = out / CONFIG
    begun = job.resumes and config.is_file() and config.read_bytes() == expected[CONFIG]
    if begun and (turn % 3 or not job.again):
        return ["train", "--resume", str(out)]
    return filled([*job.words, *job.again], out)


def held(job: Job, out: Path, expected: dict[str, bytes]) -> bool:
    """Whether an older result is there, whole, where no new one is."""
    if job.before is None or not (job.before / job.result).exists():
        return True
    places = [out / job.result, out / PREVIOUS / job.result]
    results = {place.read_bytes() for place in places if place.exists()}
    return bool(results & {(job.before / job.result).read_bytes(), expected[job.result]})


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """Name the files that are not as expected."""
    return ", ".join(sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)))


def runs(prior: str, folder: Path) -> dict[str, Job]:
    """Return the jobs that a teacher takes part in, by name, after making what they start from."""
    made, dog = folder / "made", folder / "dog"
    model = ["--prior", prior, "--allow-unknown", *SETTINGS]
    started = ["train", "--prompt", "a red car", "--out", "{out}", *model]
    done(Job([*started, "seed=5", *KINDS["fixed"]]), made)
    done(Job(["train", "--prompt", "a red dog", "--out", "{out}", *model, *KINDS["fixed"]]), dog)
    found = {}
    for kind, settings in KINDS.items():
        found[f"{kind}, new"] = Job([*started, *settings], resumes=True)
        replaced = Job([*started, *settings, "--overwrite"], dog, resumes=True)
        found[f"{kind}, replacing a run"] = replaced
    found["longer"] = Job(["train", "--resume", "{out}", "--steps", "6"], made)
    found["seeds"] = Job([*started, *KINDS["fixed"], "--seeds", "0,1", "steps=2"])
    picture = folder / "picture.png"
    drawn = Image.new("RGBA", (48, 64))
    ImageDraw.Draw(drawn).ellipse((8, 12, 40, 52), fill="red")
    drawn.save(picture)
    found["picture"] = Job([*started, "--image", str(picture)], resumes=True)
    edited = ["edit", "--splat", str(made), "--target-prompt", "a blue car", "--out", "{out}", *model]
    found["edit, new"] = Job(edited, resumes=True)
    found["edit, replacing a run"] = Job([*edited, "--overwrite"], dog, resumes=True)
    refined = ["refine", "--splat", str(made), "--prompt", "a red car", "--out", "{out}", *model]
    found["refine, new"] = Job(refined, resumes=True)
    found["report"] = Job(["report", "{out}"], made)
    drawing = ["sample2d", "--prompt", "a red car", "--out", "{out}", "--count", "2", "--steps", "4"]
    found["sample2d"] = Job([*drawing, "--prior", prior, "--allow-unknown"], result="picture.png")
    return found


def exports(folder: Path, endings: Sequence[str]) -> dict[str, Job]:
    """Return a job for each format, which replaces the file of another scene, after making both."""
    for name, count in (("old", 200), ("new", 400)):
        gaussians = scene(count, 1)
        gaussians["opacities"].data.fill_(4.0)
        write_ply(folder / f"{name}.ply", gaussians)
    found = {}
    for ending in endings:
        (folder / ending).mkdir()
        done(Job(["export", str(folder / "old.ply"), f"{{out}}/splat.{ending}"]), folder / ending)
        command = ["export", str(folder / "new.ply"), f"{{out}}/splat.{ending}", "--overwrite"]
        found[f"export, .{ending}"] = Job(command, folder / ending, result=f"splat.{ending}")
    return found


def campaign(
    prior: str | None, names: list[str] | None, every: int, meet: Callable[[Job, Path, int], Tally]
) -> Iterator[tuple[str, Tally]]:
    """Let the named jobs, or all, meet faults; print and yield what came of each.

    Args:
        prior: the folder of a teacher; None for a tiny random one, for which tests/ must be importable.
        names: of jobs, or None.
        every: so many-th operation of a run meets a fault; of what cannot be resumed every one does.
        meet: `kill_all`, or another campaign of this kind.
    """
    if prior is None:
        from tiny import make_pipeline

        with tempfile.TemporaryDirectory() as folder:
            yield from campaign(str(make_pipeline(Path(folder), "AutoencoderTiny")), names, every, meet)
        return
    config = resolve({"prompt": "a red car", "prior": {"name": prior}}, None, [])
    teacher = inputs.teacher_of(config, torch.device("cpu"))  # loaded once
    with (
        tempfile.TemporaryDirectory(dir=MEMORY_DISK) as folder,
        patch.object(run, "teacher_of", lambda *_: teacher),
        patch.object(inputs, "teacher_of", lambda *_: teacher),
    ):
        endings = [ending for ending in FORMATS if names is None or f"export, .{ending}" in names]
        made = exports(Path(folder), endings)
        if names is None or len(endings) < len(names):
            made |= runs(prior, Path(folder))
        for name in names or made:
            place = Path(folder) / "jobs" / name.replace(" ", "-")
            place.mkdir(parents=True)
            tally = meet(made[name], place, every if made[name].resumes else 1)
            print(name, *(f"{key} {count}" for key, count in counted(tally).items()), sep=", ", flush=True)
            for line in tally.lost + tally.different + tally.untold:
                print(f"    {line}", flush=True)
            yield name, tally


@contextmanager
def torn(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing as if nothing could happen; planted in place of `atomic_write`."""
    with open(path, "wb") as file:
        yield file


def forgetful(state: TrainState, saved: dict[str, Any], device: torch.device) -> None:
    """Load a state but for its generator; planted in place of `load_state_dict`."""
    load_state(state, saved, device)
    state.generator.manual_seed(0)


load_state = TrainState.load_state_dict
PLANTS = {
    "torn": ("splatdistill.formats.ply.atomic_write", torn),
    "forgetful": ("splatdistill.training.state.TrainState.load_state_dict", forgetful),
}


def counted(tally: Tally) -> dict[str, int]:
    """Return the numbers of a tally."""
    lists = {"lost": tally.lost, "different": tally.different, "untold": tally.untold}
    return {"faults": tally.faults} | {name: len(lines) for name, lines in lists.items()}


def recorded(met: Iterator[tuple[str, Tally]], name: str | None, every: int, *, some: bool) -> bool:
    """Go through a campaign, writing its figures and their sums after each job; return whether all held.

    name: of the result; None writes none. some: only named jobs are done, and the result keeps the others'.
    """
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text("utf-8"))["jobs"] if some and path.is_file() else {}
    faults, held = 0, True
    for job, tally in met:
        rows[job] = counted(tally)
        faults, held = faults + tally.faults, held and rows[job] == counted(Tally(tally.faults))
        total = {key: sum(row[key] for row in rows.values()) for key in rows[job]}
        if name is not None:
            write_result(name, {"every": every, **total, "jobs": rows})
    return faults > 0 and held


def main() -> None:
    """Print a line a job and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--prior", help="the teacher; default a tiny random one, for which tests/ must be importable"
    )
    parser.add_argument(
        "--jobs", nargs="+", metavar="NAME", help="default all; the result keeps others' figures"
    )
    parser.add_argument("--every", type=int, default=1, help="kill a run at every so many-th operation only")
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--plant", choices=PLANTS, help="put this fault into the product, to see it found")
    args = parser.parse_args()
    preload()
    torch.set_num_threads(1)
    with patch(*PLANTS[args.plant]) if args.plant else nullcontext():
        killed = campaign(args.prior, args.jobs, args.every, kill_all)
        name = None if args.dry or args.plant else "kills"
        sys.exit(not recorded(killed, name, args.every, some=bool(args.jobs)))


if __name__ == "__main__":
    main()
