"""Measure whether refining brings damaged splats nearer to the truth, and leaves undamaged ones alone.

`python benchmarks/refine.py [--assets FOLDER] [--scenes N] [--kinds blurred,...] [key=value ...]` fits
splats to pictures of real models, damages each in five ways, and runs what `python -m splatdistill.refine`
runs on each and on the undamaged splat, under the model's noun. The truth is pictures of the model from
views that neither the fit nor the run has seen. With --assets, a bundle of models, these are models of the
bundle that no teaching has seen; without, some from the teacher's album, fitted to two thirds of its
pictures. What is done stays in build/, so that a stopped campaign goes on. Writes
benchmarks/results/refine.json, or refine-album.json, and a picture beside it: for each scene the truth,
then each splat before and after. docs/REFINE.md has the figures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, made, write_result
from fits import (
    BUILD,
    PRIOR,
    album,
    fitted,
    look,
    model_views,
    on_white,
    page_cameras,
    page_views,
    photographs,
)
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.jury import Jury
from splatdistill.measure.metrics import bootstrap_interval, psnr
from splatdistill.priors.album import PICTURES, SIDE
from splatdistill.priors.judge import Judge
from splatdistill.refine import configure, parse
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.gaussians import from_tensors, joined, sh_degree_of
from splatdistill.training.inputs import read_source

VIEWS = 12
UNSEEN = torch.arange(PICTURES) % 3 == 1  # of a page's pictures
SCENES = (
    "chair", "car", "house", "sofa", "treasure chest", "snowman", "hamburger", "horse", "police car",
    "mushroom", "gift", "windmill", "refrigerator", "robot",
)  # fmt: skip
SOUND = 24.0  # dB of a fit to its model, below which it is no undamaged splat, and is left out
KINDS = ("undamaged", "blurred", "thinned", "quantized", "noisy", "floaters")


def cameras_of(assets: Path | None) -> tuple[Cameras, Cameras]:
    """Return the cameras of the pictures to fit to, and of others to compare with."""
    if assets is None:
        return page_cameras()[~UNSEEN], page_cameras()[UNSEEN]
    azimuths = [15.0 + 360.0 / VIEWS * k for k in range(VIEWS)]
    return photographs(), orbit(
        azimuths, [20.0 if k % 2 else 5.0 for k in range(VIEWS)], 3.0, 40.0, SIDE, SIDE
    )


def views_of(noun: str, assets: Path | None) -> tuple[Tensor, Tensor]:
    """Return the pictures of a model to fit to, and others to compare with."""
    if assets is None:
        page = page_views(album().page(album().of_noun[noun][0]))
        return page[~UNSEEN], page[UNSEEN]
    fit_to, compared = (model_views(noun, cameras, assets) for cameras in cameras_of(assets))
    return fit_to, compared


def fit(noun: str, options: argparse.Namespace) -> tuple[ParameterDict, Tensor, Cameras]:
    """Return the splat of a model, which is made once and kept in build/, with the truth and its cameras."""
    stem = BUILD / f"{options.name}-{noun.replace(' ', '-')}-{options.fit_steps}"
    path, known = stem.with_suffix(".ply"), stem.with_suffix(".pt")
    around, others = cameras_of(options.assets)
    if not (path.exists() and known.exists()):
        path.parent.mkdir(exist_ok=True)
        drawn, truth = views_of(noun, options.assets)
        write_ply(path, fitted(drawn, around, options.fit_steps))
        torch.save(on_white(truth), known)
    return read_ply(path)[0], torch.load(known, weights_only=True), others


def damaged(splat: ParameterDict, kind: str, seed: int) -> ParameterDict:
    """Return a splat in the unit sphere, damaged; see docs/REFINE.md for the kinds."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: value.detach().clone() for name, value in splat.items()}
    count = len(values["means"])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def rounded(name: str, step: float) -> Tensor:
        return (values[name] / step).round() * step

    if kind == "blurred":  # by .05, three pixels of a teacher's picture
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


def distances(judge: Judge, pictures: Tensor, truth: Tensor) -> Tensor:
    """Return the perceptual distances [V]: 1 - cosine of the judge's features of the same view."""
    return 1.0 - (judge.images(pictures) * judge.images(truth)).sum(-1)


def begun(splat: ParameterDict, prompt: str) -> ParameterDict:
    """Return what a run that refines a splat begins with: without what is lonely, unrounded, widened."""
    with tempfile.TemporaryDirectory() as folder:
        write_ply(f"{folder}/in.ply", splat)
        config = configure(parse(["--splat", f"{folder}/in.ply", "--prompt", prompt]))
        origin = read_source(config, Path(folder), torch.device("cpu"), resume=False)
        assert origin is not None
        return origin.raw


def refined(splat: ParameterDict, prompt: str, words: list[str]) -> tuple[ParameterDict, float]:
    """Write and refine a splat; return the refined one and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_ply(f"{folder}/in.ply", splat)
        begin = time.perf_counter()
        config = configure(parse(["--splat", f"{folder}/in.ply", "--prompt", prompt, *words]))
        return made(config), time.perf_counter() - begin


def run(noun: str, kind: str, judge: Judge, options: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """Damage and refine a splat; return its figures, and its pictures before and after.

    One that an earlier call did with the same words is read from build/.
    """
    path = BUILD / f"{options.name}-{noun.replace(' ', '-')}-{kind}.pt"
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["words"] == [options.fit_steps, *options.overrides]:
            return found["row"], found["pictures"]
    sound, truth, cameras = fit(noun, options)
    before = damaged(sound, kind, SCENES.index(noun))
    after, seconds = refined(before, f"a {noun}", options.overrides)
    row: dict[str, Any] = {"scene": noun, "kind": kind, "seconds": round(seconds, 1)}
    row["gaussians"] = [len(before["means"]), len(after["means"])]
    shown = []
    for when, splat in (("before", before), ("after", after)):
        pictures = look(splat, cameras)
        row[f"psnr_{when}"] = psnr(pictures, truth).mean().item()
        row[f"distance_{when}"] = distances(judge, pictures, truth).mean().item()
        shown.append(pictures[3])
    words = [options.fit_steps, *options.overrides]
    torch.save({"words": words, "row": row, "pictures": torch.stack(shown)}, path)
    return row, torch.stack(shown)


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
        entry["begun"] = sum(row["psnr_begun"] for row in own) / len(own)
        found[kind] = entry
    return found


def table(found: dict[str, Any]) -> str:
    """Return the rows of the table in docs/REFINE.md."""

    def cells(entry: dict[str, float], digits: int) -> str:
        numbers = {name: f"{value:.{digits}f}" for name, value in entry.items()}
        signed = {name: f"{entry[name]:+.{digits}f}" for name in ("gain", "low", "high")}
        interval = f"{signed['gain']} ({signed['low']} to {signed['high']})"
        return f"{numbers['before']} | {numbers['after']} | {interval}"

    rows = [
        f"| {kind} | {e['begun']:.2f} | {cells(e['psnr'], 2)} | {cells(e['distance'], 3)} |"
        for kind, e in found.items()
    ]
    head = "| damage | dB where the run begins | before | after | gain | distance before | after | gain |"
    return "\n".join([head, *rows])


def main() -> None:
    """Fit, damage, refine, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assets", type=Path, help="folder of the bundle of models")
    parser.add_argument("--scenes", type=int, default=10, help="whose fit is sound")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--fit-steps", type=int, default=500)
    parser.add_argument("--name", help="of the files in benchmarks/results")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    options.name = options.name or ("refine" if options.assets else "refine-album")
    jury = Jury.of(PRIOR)
    assert jury is not None
    rows: list[dict[str, Any]] = []
    strips, left_out = [], []
    for noun in SCENES:
        if len(strips) == options.scenes:
            break
        sound, truth, cameras = fit(noun, options)
        if psnr(look(sound, cameras), truth).mean() < SOUND:
            left_out.append(noun)
            print(f"{noun}: left out, its fit is below {SOUND} dB", flush=True)
            continue
        shown = [truth[3]]
        for kind in options.kinds.split(","):
            row, pictures = run(noun, kind, jury.judge, options)
            start = begun(damaged(sound, kind, SCENES.index(noun)), f"a {noun}")
            rows.append(row | {"psnr_begun": psnr(look(start, cameras), truth).mean().item()})
            shown += list(pictures)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        strips.append(torch.cat(shown, 2))
        found = sorted(rows, key=lambda row: KINDS.index(row["kind"]))
        write_result(options.name, {"left_out": left_out, "gains": gains(found), "runs": found})
    print(table(gains(sorted(rows, key=lambda row: KINDS.index(row["kind"])))))
    pixels = torch.cat(strips, 1).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
