"""Make splats from single pictures of real models, and compare their other sides with the truth.

`python benchmarks/image_job.py KIND --assets FOLDER [--pictures N] [--work DIR] [key=value ...]` takes models
of a bundle: never_seen, those that no teaching has seen; or taught, others of the same nouns. It runs what
`python -m splatdistill.train --image` runs on one picture of each. The other sides are compared with the
model's, and so are samples of them that the teacher draws from that picture, 50 steps: as it is, and without
the album in which it may know the thing. Then it is shown models from cameras drawn at random, and what they
are taken for is counted. With --work the splats are kept there, and a second call goes on. Writes
benchmarks/results/image_job-KIND.json and, beside it, a picture: of each model the truth from four sides, and
below it the splat.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, made, write_result
from fits import PRIOR, SIDE, album, held_out_nouns, look, model_views, on_white, shelf
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.config.load import resolve
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.guidance.core import sample
from splatdistill.measure.claims.base import share
from splatdistill.measure.jury import Jury, around
from splatdistill.measure.metrics import bootstrap_interval, psnr
from splatdistill.priors import load_prior
from splatdistill.priors.base import cfg
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.pictures import Reference

ELEVATION, DISTANCE, FOV = 15.0, 3.0, 40.0  # of all views; the first is that of the picture
VIEWS, SIZE = 8, 128
LOOKS, SEED = 100, 7  # models of each kind that are looked at from anywhere
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


def pictured(rgba: Tensor, camera: Cameras) -> Reference:
    """Return the picture [4, S, S], color times alpha, that a camera took."""
    return Reference(rgba[:3] / rgba[3:].clamp(min=1e-3), rgba[3:], camera)


@torch.no_grad()
def sampled(prior: Any, seed: int) -> Tensor:
    """Return what the teacher draws of all views from the picture that it was told, [VIEWS, 3, S, S]."""
    order = torch.arange(VIEWS).view(prior.group, -1).T.flatten()  # each group's views are evenly around
    nothing = prior.embed([""] * VIEWS)
    cond = prior.with_cameras(cfg(nothing, nothing, GUIDANCE), circle()[order], torch.ones(VIEWS, 3))
    noise = torch.randn(VIEWS, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    drawn = prior.decode(sample(prior, cond, noise, steps=50)).clamp(0, 1).float()
    return drawn[order.argsort()]


def taken(prior: Any, bundle: Path, held_out: bool) -> dict[str, Any]:
    """Return what models are taken for, each seen by a camera of its own, at its own size and light.

    right: of those that are taken for something known, the share whose page it is, and of them
    within_10_degrees the share whose azimuth is right; known: the share that is taken for something.
    """
    from splatdistill.teaching.renderer import Light

    models, rng = shelf(bundle, SIDE, held_out), random.Random(SEED)
    entries = [entry for entry in models.entries if (entry.id in album().ids) is not held_out]
    known, right, near = [], [], []
    for entry in rng.sample(entries, min(LOOKS, len(entries))):
        azimuth, elevation = rng.uniform(0, 360), rng.uniform(-10, 50)
        camera = orbit([azimuth], elevation, rng.uniform(2.8, 3.5), rng.uniform(35, 50), SIDE, SIDE)
        light = Light(ambient=rng.uniform(0.35, 0.65), lamp=rng.uniform(0.2, 0.6), head=0.15)
        mesh = models.take(entry, np.random.default_rng(0), tint=0.0)[0].fitted(0.78 * rng.uniform(0.7, 1.0))
        rgba = torch.from_numpy(models.renderer.draw(mesh, camera, light)[0]).permute(2, 0, 1).float() / 255
        seen = prior.condition_on(pictured(rgba, camera)).sighting
        known.append(seen is not None)
        if seen is None:
            continue
        right.append(album().ids[seen.number] == entry.id)
        if right[-1]:
            near.append(math.cos(seen.azimuth - math.radians(azimuth)) > math.cos(math.radians(10.0)))
    told = {"known": share(known)}
    return told if held_out else told | {"right": share(right), "within_10_degrees": share(near)}


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of rows, with intervals."""
    summary: dict[str, Any] = {"pictures": len(rows)}
    for name in (key for key in rows[0] if key.startswith("psnr")):
        values = torch.tensor([row[name] for row in rows])
        summary[name] = [values.mean().item(), *bootstrap_interval(values)]
    return summary | {"named": share([bool(row["named"]) for row in rows])}


def compared(prior: Any, drawn: Tensor, splat: ParameterDict, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of one model, drawn [VIEWS, 4, S, S], and a picture of it above its splat."""
    truth, shown = on_white(drawn), look(splat, circle())
    without = copy.copy(prior)
    without.album = None
    told = [one.condition_on(pictured(drawn[0], circle()[0])) for one in (prior, without)]
    of_splat, of_teacher, of_picture = (
        psnr(x, truth) for x in (shown, *(sampled(one, seed) for one in told))
    )
    seen = told[0].sighting
    row = {
        "taken_for": None if seen is None else seen.noun,
        "psnr_db": of_splat[1:].mean().item(),
        "psnr_of_the_picture_db": of_splat[0].item(),
        "psnr_of_samples_db": of_teacher[1:].mean().item(),
        "psnr_of_samples_without_album_db": of_picture[1:].mean().item(),
    }
    return row, torch.cat([torch.cat(list(x[::2]), 2) for x in (truth, shown)], 1)


def main() -> None:
    """Reconstruct and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("never_seen", "taught"))
    parser.add_argument("--assets", type=Path, required=True, help="the bundle of models")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--work", type=Path, help="folder that keeps the splats")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    prior, jury, nouns = load_prior(PRIOR), Jury.of(PRIOR), held_out_nouns(options.assets)
    assert jury is not None
    held_out = options.kind == "never_seen"
    rows, strips = [], []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for index in range(options.pictures):
            noun = nouns[index * len(nouns) // options.pictures]
            drawn = model_views(noun, circle(), options.assets, held_out=held_out)
            path = work / f"{noun.replace(' ', '-')}-{options.kind}.ply"
            splat = reconstructed(drawn[0], path, options.overrides)
            row, strip = compared(prior, drawn, splat, index)
            said = jury.verdict(f"a {noun}", *around(splat))
            rows.append({"thing": noun, **row, "named": said["object"], "called": said["called"][0]})
            strips.append(strip)
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    summary = {**figures(rows), "from_anywhere": taken(prior, options.assets, held_out)}
    print(summary)
    write_result(f"image_job-{options.kind}", {**summary, "runs": rows})
    strips += [torch.ones_like(strips[0])] * (-len(strips) % 2)
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    picture = Image.fromarray((pixels * 255).round().byte().numpy())
    picture.save(RESULTS / f"image_job-{options.kind}.png")


if __name__ == "__main__":
    main()
