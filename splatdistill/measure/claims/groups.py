"""What claims about splats share: their runs, made once, the figures of these, and what a run costs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from splatdistill.config.load import resolve
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.measure.claims.base import Interval, Lab
from splatdistill.measure.groups import SHARES
from splatdistill.measure.runs import evaluate
from splatdistill.measure.suites import make_runs, run_folder
from splatdistill.priors.view_transformer import ViewTransformer
from splatdistill.training.inputs import slug
from splatdistill.training.progress import NullWatcher, Watcher
from splatdistill.training.run import make_run


def runs(
    lab: Lab,
    method: str,
    overrides: Sequence[str] = (),
    prior: str = "real",
    texts: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
) -> list[Path]:
    """Make the runs of a method with some settings; return their folders. Existing runs are reused."""
    settings, out = [*lab.settings, *overrides], runs_of(lab, overrides)
    return make_runs(texts or lab.texts, out, [method], [prior], seeds, settings, lab.jobs)


def runs_of(lab: Lab, overrides: Sequence[str]) -> Path:
    """Return the folder of the runs with some settings."""
    return lab.runs / slug(" ".join([f"steps={lab.steps}", *overrides]))


def evaluated(lab: Lab, folders: Sequence[Path], compare: bool = True) -> dict[str, Any]:
    """Evaluate runs that form one group."""
    if not folders:
        raise UserError("none of the runs came to a result; their log.txt says why")
    return next(iter(evaluate(folders, None, compare=compare, teachers=lab.teachers).values()))


def figure(group: dict[str, Any], name: str) -> Interval | None:
    """Return a mean with its interval; None where nothing was counted."""
    value = group["summary"].get(name)
    return None if value is None else Interval(value["mean"], value["low"], value["high"])


def shown_figure(group: dict[str, Any], name: str) -> Interval | float | None:
    """Return a figure as a table shows it: of one run alone there is no interval but that of a rate."""
    value = group["summary"].get(name)
    if value is None or name in SHARES or value["count"] > 1:
        return figure(group, name)
    return value["mean"]


def cost(lab: Lab, method: str, overrides: Sequence[str] = ()) -> tuple[int, float]:
    """Measure network evaluations (views through the denoiser) and seconds of one run; cached in costs.json.

    The seconds are the processor's, so that what else the machine does hardly counts; on a GPU the clock's.
    The run is the first one of the method with these settings, if that is still to be made.
    """
    path = lab.runs / "costs.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    key = " ".join([method, str(lab.steps), *overrides])
    if key not in known:
        flags = {"prompt": lab.texts[0], "prior": {"name": "real"}, "method": method, "seed": 0}
        config = resolve(flags, None, [*lab.settings, *overrides])
        folder = run_folder(runs_of(lab, overrides), "real", method, lab.texts[0], 0)
        if folder.exists():
            folder = lab.runs / "costs"
            shutil.rmtree(folder, ignore_errors=True)
        counts: list[int] = []
        clock = time.perf_counter if lab.prior.device.type == "cuda" else time.process_time
        begin = clock()
        make_run(config, folder, watch=lambda job: counting(counts))
        known[key] = [sum(counts), clock() - begin]
        with atomic_write(path) as file:
            file.write(json.dumps(known, indent=1).encode())
    return known[key][0], known[key][1]


@contextmanager
def counting(counts: list[int]) -> Iterator[Watcher]:
    """Count the views of every pass through the denoiser while a run is made with the watcher given."""

    def hook(module: torch.nn.Module, given: Any, result: Any) -> None:
        if isinstance(module, ViewTransformer):
            counts.append(len(given[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield NullWatcher()
    finally:
        handle.remove()
