"""Measure whether refining brings damaged splats nearer to the truth, and leaves undamaged ones alone.

`python benchmarks/refine.py [--scenes N] [--kinds blurred,thinned,...] [key=value ...]` fits splats to
renders of held-out scenes, as photographs are fitted, damages each in five ways, and runs what
`python -m splatdistill.refine` runs on each and on the undamaged splat. The truth is the scene itself, from
views of which neither the fit nor the run knows. Writes benchmarks/results/refine.json, where rows of kinds
that were not asked for stay, and, of all kinds, a picture beside it: for each scene the truth, then each
splat before and after. docs/REFINE.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from common import RESULTS, made, write_result
from edit_job import look, photographed, photographs, scene
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.metrics import bootstrap_interval, psnr
from splatdistill.priors import words as grammar
from splatdistill.priors.clip import Scorer
from splatdistill.refine import configure, parse
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import from_tensors, joined, sh_degree_of

VIEWS, SIZE = 12, 64
SCENES = (
    (("penguin",), ("black",)),
    (("house",), ("yellow",)),
    (("mug", "cube"), ("orange", "green")),
    (("teddy bear",), ("brown",)),
    (("car",), ("red",)),
    (("duck",), ("yellow",)),
    (("rocket", "cylinder"), ("blue", "pink")),
    (("snowman",), ("white",)),
    (("chair",), ("purple",)),
    (("cake",), ("pink",)),
    (("mushroom", "cube"), ("red", "cyan")),
    (("robot",), ("gray",)),
)
SOUND = 24.0  # dB of a fit to its scene, below which it is no undamaged splat, and is left out
FIRST = 20  # the seed of the first scene; edit_job has those below
KINDS = ("undamaged", "blurred", "thinned", "quantized", "noisy", "floaters")


def fit(index: int, steps: int) -> ParameterDict:
    """Return the splat of a scene, which is made once and kept in build/."""
    path = RESULTS.parents[1] / "build" / f"refine-{index}-{steps}.ply"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        seen = scene(FIRST + index, *SCENES[index], photographs())
        write_ply(path, photographed(FIRST + index, seen, steps, count=3_000, sh_degree=1))
    return read_ply(path)[0]


def damaged(splat: ParameterDict, kind: str, seed: int) -> ParameterDict:
    """Return a splat in the unit sphere, damaged; see docs/REFINE.md for the kinds."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: value.detach().clone() for name, value in splat.items()}
    count = len(values["means"])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def rounded(name: str, step: float) -> Tensor:
        return (values[name] / step).round() * step

    if kind == "blurred":  # by .05, one and a half pixels of a teacher's picture
        values["scales"] = 0.5 * ((2 * values["scales"]).exp() + 0.05**2).log()
    elif kind == "thinned":
        chosen = torch.randperm(count, generator=generator)[: count // 10]
        values = {name: value[chosen] for name, value in values.items()}
    elif kind == "quantized":
        steps = {"means": 0.05, "scales": 0.8, "opacities": 2.0, "sh0": 0.6}
        values |= {name: rounded(name, step) for name, step in steps.items()}
        values["shN"] = torch.zeros_like(values["shN"])
    elif kind == "noisy":
        values["means"] += 0.03 * normal(count, 3)
        values["scales"] += 0.3 * normal(count, 3)
        values["sh0"] += 0.5 * normal(count, 1, 3)
    elif kind == "floaters":
        return joined(splat, _floaters(count // 20, sh_degree_of(splat), generator))
    return from_tensors(**values)


def _floaters(count: int, degree: int, generator: torch.Generator) -> ParameterDict:
    """Return Gaussians of any color between .4 and 1 from the origin."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    distance = 0.4 + 0.6 * torch.rand(count, 1, generator=generator)
    return from_tensors(
        means=direction * distance,
        scales=(0.015 + 0.03 * torch.rand(count, 3, generator=generator)).log(),
        quats=torch.randn(count, 4, generator=generator),
        opacities=3.0 * torch.rand(count, generator=generator) - 1.0,
        sh0=torch.randn(count, 1, 3, generator=generator),
        shN=torch.zeros(count, (degree + 1) ** 2 - 1, 3),
    )


def distances(scorer: Scorer, pictures: Tensor, truth: Tensor) -> Tensor:
    """Return the perceptual distances [V]: 1 - cosine of the scorer's embeddings of the same view."""
    with torch.no_grad():
        return 1.0 - (scorer.images(pictures) * scorer.images(truth)).sum(-1)


def run(splat: ParameterDict, prompt: str, words: list[str]) -> tuple[ParameterDict, float]:
    """Write and refine a splat; return the refined one and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_ply(f"{folder}/in.ply", splat)
        begin = time.perf_counter()
        config = configure(parse(["--splat", f"{folder}/in.ply", "--prompt", prompt, *words]))
        return made(config), time.perf_counter() - begin


def earlier(name: str, kinds: list[str]) -> list[dict[str, Any]]:
    """Return the rows of an earlier result of other kinds of damage."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return [row for row in rows if row["kind"] not in kinds]


def gains(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each kind the means before and after, and the mean gains with their 95 % intervals."""
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        entry: dict[str, Any] = {"scenes": len(own)}
        for name in ("psnr", "distance"):
            before, after = (
                torch.tensor([row[f"{name}_{when}"] for row in own]) for when in ("before", "after")
            )
            low, high = bootstrap_interval(after - before)
            entry[name] = {"before": before.mean().item(), "after": after.mean().item()}
            entry[name] |= {"gain": (after - before).mean().item(), "low": low, "high": high}
            entry[name]["worst"] = ((after - before) * (1 if name == "psnr" else -1)).min().item()
        found[kind] = entry
    return found


def table(found: dict[str, Any]) -> str:
    """Return the rows of the table in docs/REFINE.md."""

    def cells(entry: dict[str, float], digits: int) -> str:
        numbers = {name: f"{value:.{digits}f}" for name, value in entry.items()}
        signed = {name: f"{entry[name]:+.{digits}f}" for name in ("gain", "low", "high")}
        interval = f"{signed['gain']} ({signed['low']} to {signed['high']})"
        return f"{numbers['before']} | {numbers['after']} | {interval}"

    rows = [f"| {kind} | {cells(e['psnr'], 2)} | {cells(e['distance'], 3)} |" for kind, e in found.items()]
    return "\n".join(["| damage | dB before | after | gain | distance before | after | gain |", *rows])


def main() -> None:
    """Fit, damage, refine, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=10, help="whose fit is sound")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--fit-steps", type=int, default=500)
    parser.add_argument("--name", default="refine", help="of the files in benchmarks/results")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    scorer = Scorer.load("embedded")
    azimuths = [15.0 + 360.0 / VIEWS * k for k in range(VIEWS)]
    cameras = orbit(azimuths, [20.0 if k % 2 else 5.0 for k in range(VIEWS)], 3.0, 40.0, SIZE, SIZE)
    kinds = options.kinds.split(",")
    rows: list[dict[str, Any]] = []
    kept = earlier(options.name, kinds)
    strips = []
    for index, (things, colors) in enumerate(SCENES):
        if len(strips) == options.scenes:
            break
        drawn, prompt = scene(FIRST + index, things, colors, cameras), grammar.describe(things, colors)
        truth = drawn[:, :3] + 1.0 - drawn[:, 3:]
        fitted = fit(index, options.fit_steps)
        if psnr(look(fitted, cameras), truth).mean() < SOUND:
            print(f"{prompt}: left out, its fit is below {SOUND} dB", flush=True)
            continue
        shown = [truth[3]]
        for kind in kinds:
            before = damaged(fitted, kind, index)
            after, seconds = run(before, prompt, options.overrides)
            row: dict[str, Any] = {"scene": prompt, "kind": kind, "seconds": round(seconds, 1)}
            row["gaussians"] = [len(before["means"]), len(after["means"])]
            for when, splat in (("before", before), ("after", after)):
                pictures = look(splat, cameras)
                row[f"psnr_{when}"] = psnr(pictures, truth).mean().item()
                row[f"distance_{when}"] = distances(scorer, pictures, truth).mean().item()
                shown.append(pictures[3])
            rows.append(row)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        strips.append(torch.cat(shown, 2))
        found = sorted([*kept, *rows], key=lambda row: KINDS.index(row["kind"]))
        write_result(options.name, {"gains": gains(found), "runs": found})  # a stopped one leaves something
    print(table(gains([*kept, *rows])))
    if kept:
        return
    pixels = torch.cat(strips, 1).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
