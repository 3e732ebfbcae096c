"""Measure how well a splat made from one picture matches the object from other sides.

`python benchmarks/image_job.py [--pictures N] [--prior NAME] [key=value ...]` renders held-out scenes, runs
what `python -m splatdistill.train --image` runs on one view of each, and compares the splat with the scene on
a circle of twelve views. Writes benchmarks/results/image_job.json and, beside it, a picture: for each scene
the truth above the splat.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result
from PIL import Image
from torch import Tensor

from splatdistill.formats.ply import read_ply
from splatdistill.guidance.core import sample
from splatdistill.measure.metrics import psnr
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.base import cfg
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, orbit
from splatdistill.scene.pictures import Reference
from splatdistill.scene.rendering import render
from splatdistill.teaching import scenes
from splatdistill.teaching.solids import raycast
from splatdistill.train import main as train

SEED = 88_000  # far from the teachers' and the scorer's
SIZE = 64
ELEVATION, DISTANCE, FOV = EVALUATION_VIEW
VIEWS = 12


def circle(first: float, size: int = SIZE) -> Cameras:
    """Return the views that are compared, the picture's first."""
    return orbit([first + 360.0 * k / VIEWS for k in range(VIEWS)], ELEVATION, DISTANCE, FOV, size, size)


def scene(index: int) -> tuple[str, Tensor]:
    """Return a held-out scene: its description, and its views, RGBA [V, 4, S, S] with color times alpha."""
    rng = np.random.default_rng((SEED, index))
    thing = list(grammar.OBJECTS)[index * 5 % len(grammar.OBJECTS)]
    batch = scenes.build((thing,), 1, rng, 1.0)
    drawn = raycast(np.repeat(batch.table, VIEWS, axis=0), circle(rng.uniform(-60, 60)))
    return grammar.describe((thing,), batch.colors[0]), torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255


def reconstruct(picture: Tensor, seed: int, words: list[str]) -> tuple[Tensor, Tensor, float]:
    """Return the views of the splat made from a picture [4, S, S]: rgb on white, alpha, and seconds."""
    rgb, alpha = picture[:3] / picture[3:].clamp(min=1e-3), picture[3:]
    with tempfile.TemporaryDirectory() as folder:
        rgba = (torch.cat([rgb, alpha]).clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(rgba).save(Path(folder) / "picture.png")
        out, begin = Path(folder) / "run", time.perf_counter()
        words = [*words, f"image.elevation_deg={ELEVATION}", f"image.distance={DISTANCE}"]
        status = train(["--image", f"{folder}/picture.png", "--out", str(out), "--seed", str(seed), *words])
        if status:
            raise SystemExit(status)
        seconds = time.perf_counter() - begin
        gaussians, _ = read_ply(out / "splat.ply")
    with torch.no_grad():
        shown = render(gaussians, circle(0.0), torch.ones(3))
    return shown.rgb.permute(0, 3, 1, 2).clamp(0, 1), shown.alpha.permute(0, 3, 1, 2), seconds


@torch.no_grad()
def sampled_psnr(prior: Any, count: int, guidance: float, steps: int = 50) -> float:
    """Mean PSNR in dB of the teacher's own samples of the other views of held-out scenes."""
    found = []
    order = torch.arange(VIEWS).view(prior.group, -1).T.flatten()  # views of a group are spread evenly
    for index in range(count):
        drawn = scene(1000 + index)[1]
        views = drawn[:, :3] + 1.0 - drawn[:, 3:]
        cameras = circle(0.0)
        alpha = drawn[0, 3:]
        told = prior.condition_on(Reference(drawn[0, :3] / alpha.clamp(min=1e-3), alpha, cameras[0]))
        nothing = told.embed([""] * VIEWS)
        cond = told.with_cameras(cfg(nothing, nothing, guidance), cameras[order], torch.ones(VIEWS, 3))
        noise = torch.randn(VIEWS, *prior.latent_shape, generator=torch.Generator().manual_seed(index))
        images = prior.decode(sample(prior, cond, noise, steps=steps)).clamp(0, 1).float()
        found.append(psnr(images, views[order])[order > 0].mean().item())
    return float(np.mean(found))


def main() -> None:
    """Reconstruct and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24, help="the first so many of the objects")
    parser.add_argument("--prior", default="embedded-image")
    parser.add_argument("--samples", type=int, default=24, help="scenes whose other views are sampled")
    parser.add_argument("--guidance", type=float, default=2.0, help="of these samples")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    prior = load_prior(options.prior)
    sampled = sampled_psnr(prior, options.samples, options.guidance)
    print(f"samples of the teacher: {sampled:.2f} dB")
    rows: list[dict[str, Any]] = []
    strips = []
    for index in range(options.pictures):
        text, drawn = scene(index)
        words = ["--prior", options.prior, *options.overrides]
        shown, covered, seconds = reconstruct(drawn[0], index, words)
        alpha = drawn[:, 3:]
        views = drawn[:, :3] + 1.0 - alpha
        decibels = psnr(shown, views)  # [V]
        both, either = (covered > 0.5) & (alpha > 0.5), (covered > 0.5) | (alpha > 0.5)
        row = {
            "thing": text,
            "psnr_db": decibels[1:].mean().item(),
            "psnr_of_the_picture_db": decibels[0].item(),
            "psnr_by_view_db": [round(x, 2) for x in decibels.tolist()],
            "mask_iou": (both.sum() / either.sum()).item(),
            "seconds": round(seconds, 1),
        }
        rows.append(row)
        strips.append(torch.cat([torch.cat(list(x[::2]), 2) for x in (views, shown)], 1))
        print(
            {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "psnr_by_view_db"}
        )
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("psnr_db", "mask_iou", "seconds")}
    print(means)
    write_result("image_job", {**means, "psnr_of_samples_db": sampled, "runs": rows})
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / "image_job.png")


if __name__ == "__main__":
    main()
