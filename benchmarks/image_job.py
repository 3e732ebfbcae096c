"""Make splats from single pictures of real models, and compare their other sides with the truth.

`python benchmarks/image_job.py --assets FOLDER [--pictures N] [--work DIR] [key=value ...]` draws held-out
models of a bundle, which no teaching has seen, and runs what `python -m splatdistill.train --image` runs on
one picture of each. The other sides are compared with the model's, and with samples that the teacher draws of
them from that picture, 50 steps; beside them stand such samples of models that it was taught. With --work the
splats are kept there, and a second call goes on. Writes benchmarks/results/image_job.json and, beside it, a
picture: for each model the truth from four sides, and below it the splat.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, made, write_result
from fits import PRIOR, held_out_nouns, look, model_views, on_white
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.config.load import resolve
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.guidance.core import sample
from splatdistill.measure.jury import Jury, around
from splatdistill.measure.metrics import bootstrap_interval, psnr, wilson_interval
from splatdistill.priors import load_prior
from splatdistill.priors.base import cfg
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.pictures import Reference

ELEVATION, DISTANCE, FOV = 15.0, 3.0, 40.0  # of all views; the first is that of the picture
VIEWS, SIZE = 8, 128
GUIDANCE = 2.0  # of the samples


def circle() -> Cameras:
    """Return the views that are compared, the picture's first."""
    return orbit([360.0 * k / VIEWS for k in range(VIEWS)], ELEVATION, DISTANCE, FOV, SIZE, SIZE)


def reconstructed(rgba: Tensor, path: Path, words: list[str]) -> ParameterDict:
    """Return the splat of a picture [4, S, S], color times alpha; one that is in `path` is not made again."""
    if not path.exists():
        straight = torch.cat([rgba[:3] / rgba[3:].clamp(min=1e-3), rgba[3:]]).clamp(0, 1)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            Image.fromarray((straight.permute(1, 2, 0) * 255).round().byte().numpy()).save(picture)
            told = {"path": str(picture), "elevation_deg": ELEVATION, "distance": DISTANCE, "fov_deg": FOV}
            write_ply(path, made(resolve({"image": told}, None, words)))
    return read_ply(path)[0]


@torch.no_grad()
def sampled(prior: Any, rgba: Tensor, seed: int) -> Tensor:
    """Return what the teacher draws of all views from the picture [4, S, S], [VIEWS, 3, S, S]."""
    order = torch.arange(VIEWS).view(prior.group, -1).T.flatten()  # each group's views are evenly around
    cameras = circle()
    told = prior.condition_on(Reference(rgba[:3] / rgba[3:].clamp(min=1e-3), rgba[3:], cameras[0]))
    nothing = told.embed([""] * VIEWS)
    cond = told.with_cameras(cfg(nothing, nothing, GUIDANCE), cameras[order], torch.ones(VIEWS, 3))
    noise = torch.randn(VIEWS, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    drawn = prior.decode(sample(prior, cond, noise, steps=50)).clamp(0, 1).float()
    return drawn[order.argsort()]


def main() -> None:
    """Reconstruct and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="the bundle of models")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--work", type=Path, help="folder that keeps the splats")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    prior, jury = load_prior(PRIOR), Jury.of(PRIOR)
    assert jury is not None
    nouns = held_out_nouns(options.assets)
    chosen = [nouns[i * len(nouns) // options.pictures] for i in range(options.pictures)]
    rows: list[dict[str, Any]] = []
    strips = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for index, noun in enumerate(chosen):
            drawn = model_views(noun, circle(), options.assets)
            splat = reconstructed(drawn[0], work / f"{noun.replace(' ', '-')}.ply", options.overrides)
            truth, shown = on_white(drawn), look(splat, circle())
            of_splat, of_teacher = (psnr(x, truth) for x in (shown, sampled(prior, drawn[0], index)))
            taught = model_views(noun, circle(), options.assets, held_out=False)
            of_taught = psnr(sampled(prior, taught[0], index), on_white(taught))
            said = jury.verdict(f"a {noun}", *around(splat))
            row = {
                "thing": noun,
                "psnr_db": of_splat[1:].mean().item(),
                "psnr_of_the_picture_db": of_splat[0].item(),
                "psnr_of_samples_db": of_teacher[1:].mean().item(),
                "psnr_of_samples_taught_db": of_taught[1:].mean().item(),
                "named": said["object"],
                "called": said["called"][0],
            }
            rows.append(row)
            strips.append(torch.cat([torch.cat(list(x[::2]), 2) for x in (truth, shown)], 1))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    summary: dict[str, Any] = {"pictures": len(rows)}
    for name in (key for key in rows[0] if key.startswith("psnr")):
        values = torch.tensor([row[name] for row in rows])
        summary[name] = [values.mean().item(), *bootstrap_interval(values)]
    named = sum(bool(row["named"]) for row in rows)
    summary["named"] = [named / len(rows), *wilson_interval(named, len(rows))]
    print(summary)
    write_result("image_job", {**summary, "runs": rows})
    strips += [torch.ones_like(strips[0])] * (-len(strips) % 2)
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / "image_job.png")


if __name__ == "__main__":
    main()
