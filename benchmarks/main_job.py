"""How well and how fast does the main job work? Text to splat for many prompts, named by the judge.

`python benchmarks/main_job.py [--suite objects] [--prompts N] [--seeds N] [--method sdi] [key=value ...]`
runs what `python -m splatdistill.train` runs, has the judge name eight turntable views, prints a line a run,
writes benchmarks/results/main_job-SUITE-METHOD.json and, beside it, a picture of all results, four views
each. Of one thing on top of another, both and their colors must be named right.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from judge import COLORS, NOTHING, THINGS, Judge, load_judge
from PIL import Image

from splatdistill.config.load import resolve
from splatdistill.config.schema import Config
from splatdistill.formats.ply import read_ply
from splatdistill.measure.suites import SUITES
from splatdistill.media.sheets import render_views
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.base import Prior
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.gaussians import finite_mask
from splatdistill.training.progress import NullWatcher
from splatdistill.training.run import Job, fit, write
from splatdistill.training.state import new_state

CPU = torch.device("cpu")


def run(prior: Prior, config: Config, out: Path) -> tuple[torch.nn.ParameterDict, float]:
    """Train, export and read back: the splat of the written file, and the seconds that it took."""
    begin = time.perf_counter()
    state = new_state(config, CPU)
    job = Job(config, out, CPU, prior, state, None, None, True, [])
    fit(job, NullWatcher())
    write(job)
    seconds = time.perf_counter() - begin
    gaussians, _ = read_ply(out / "splat.ply")
    if not finite_mask(gaussians).all():
        raise RuntimeError(f"{config.prompt}: non-finite splats")
    return gaussians, seconds


def look(gaussians: torch.nn.ParameterDict, count: int, size: int) -> torch.Tensor:
    """Turntable views on white, [count, 3, size, size]."""
    views = render_views(gaussians, turntable(count, *EVALUATION_VIEW, size), (1.0, 1.0, 1.0))
    return views.permute(0, 3, 1, 2).float() / 255


def evaluate(
    prior: Prior,
    judge: Judge,
    method: str,
    prompts: Sequence[str],
    seeds: int = 1,
    overrides: Sequence[str] = (),
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Run the prompts; the shares named right with a row a run, and a strip [3, 96, 384] of each."""
    rows, strips = [], []
    for prompt in prompts:
        things, colors = grammar.parse(prompt) or ((prompt,), (None,))
        for seed in range(seeds):
            flags = {"prompt": prompt, "seed": seed, "method": method, "prior": {"name": prior.name}}
            config = resolve(flags, None, overrides)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "checkpoints").mkdir()
                splat, seconds = run(prior, config, Path(folder))
            said = [int(p.mean(0).argmax()) for p in judge.name(look(splat, 8, 64))]
            below = [said[3]] if said[3] != NOTHING else []
            named = [THINGS[i] for i in (said[0], *below)]
            hues = [COLORS[i] for i in (said[1], said[4])][: len(named)]
            row = {
                "prompt": prompt,
                "seed": seed,
                "named": named,
                "named_colors": hues,
                "object": named == list(things),
                "color": hues[: len(colors)] == list(colors),
                "gaussians": len(splat["means"]),
                "seconds": round(seconds, 1),
            }
            rows.append(row)
            strips.append(torch.cat(list(look(splat, 4, 96)), 2))
            marks = ["" if row[key] else " (!)" for key in ("object", "color")]
            verdict = f"{' on '.join(named)}{marks[0]}, {' on '.join(hues)}{marks[1]}"
            print(f"{prompt:46s} {verdict:46s} {row['gaussians']:5d} Gaussians {seconds:5.1f} s", flush=True)
    shares = {key: sum(r[key] for r in rows) / len(rows) for key in ("object", "color", "seconds")}
    return {**shares, "runs": rows}, strips


def sheet(strips: list[torch.Tensor], columns: int = 4) -> Image.Image:
    """All strips on one picture."""
    blank = torch.ones_like(strips[0])
    strips = strips + [blank] * (-len(strips) % columns)
    lines = [torch.cat(strips[k : k + columns], 2) for k in range(0, len(strips), columns)]
    return Image.fromarray((torch.cat(lines, 1).permute(1, 2, 0) * 255).round().byte().numpy())


def main() -> None:
    """Run all prompts and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--method", default="sdi")
    parser.add_argument("--suite", default="objects", choices=["objects", "compositions"])
    parser.add_argument("--prompts", type=int, help="the first of the suite; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    prior = load_prior(options.prior, CPU)
    prompts = SUITES[options.suite]()[: options.prompts]
    result, strips = evaluate(prior, load_judge(), options.method, prompts, options.seeds, options.overrides)
    print({k: round(v, 3) for k, v in result.items() if isinstance(v, float)})
    name = "-".join(["main_job", options.suite, options.method])
    if prior.name != "embedded":
        name += f"-{prior.name}"
    write_result(name, result)
    sheet(strips).save(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
