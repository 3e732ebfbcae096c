"""Measure whether an edit with a mask adds a thing where it was asked for, and touches nothing else.

`python benchmarks/edit_part.py [--edits N] [--method sdi] [key=value ...]` takes held-out scenes of one thing
on top of another, fits a splat to the lower one alone, and asks `python -m splatdistill.edit --mask box:...`
for the upper one, in a box a little larger than that should be. The scorer names both things and their
colors, among all that the teacher knows, from twelve views, and those of the true scene, which it should name
too. Outside the box every row of the file must have kept its bytes, and where the box is not in sight the
pictures are compared. A scene that is done stays in build/, so that a stopped campaign goes on. Writes
benchmarks/results/edit_part.json and, beside it, a picture: for each edit the splat before it, after it, and
the scene that was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, made, write_result
from edit_job import SIZE, VIEWS, look, photographed, photographs
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.edit import configure, parse
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.metrics import psnr, psnr_of_error, wilson_interval
from splatdistill.measure.runs import right_names
from splatdistill.priors import words as grammar
from splatdistill.priors.clip import Scorer
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, turntable
from splatdistill.scene.gaussians import NAMES
from splatdistill.teaching import scenes
from splatdistill.teaching.solids import Solids, raycast

SEED = 98_000  # far from the teachers', the scorer's and edit_job's
EDITS = (  # what is to be added, on what
    (("cone", "cube"), ("red", "blue")),
    (("duck", "cylinder"), ("yellow", "green")),
    (("mushroom", "table"), ("red", "brown")),
    (("penguin", "cake"), ("black", "pink")),
    (("sphere", "cube"), ("orange", "purple")),
    (("teddy bear", "car"), ("brown", "red")),
    (("cactus", "cylinder"), ("green", "yellow")),
    (("robot", "cube"), ("gray", "cyan")),
    (("snowman", "house"), ("white", "yellow")),
    (("rocket", "cylinder"), ("blue", "orange")),
)
MARGIN, BELOW = 0.15, 0.02  # of the box around what is asked for: of its sides and top, and under it


def tables(index: int, things: tuple[str, ...], colors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the solids of a scene's upper thing, and those of its lower one."""
    whole = scenes.build(things, 1, np.random.default_rng((SEED, index)), 1.0, colors).table
    upper = scenes.build(things[:1], 1, np.random.default_rng((SEED, index)), 1.0, colors[:1]).table
    return whole[:, : upper.shape[1]], whole[:, upper.shape[1] :]


def drawn(table: np.ndarray, cameras: Cameras) -> Tensor:
    """Return RGBA pictures [V, 4, S, S], color times alpha."""
    pictures = raycast(np.repeat(table, len(cameras), axis=0), cameras)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def box_around(table: np.ndarray) -> tuple[list[float], str]:
    """Return the corners of a box around solids [1, P, 17], as numbers and as --mask takes them."""
    solids = Solids(1, np.random.default_rng(0))
    for row in table[0].astype(float):
        inverse = row[2:14].reshape(3, 4)
        axes = np.linalg.inv(inverse[:, :3])
        solids.kinds.append(round(row[0]))
        solids.parameters.append(row[1:2])
        solids.axes.append(axes[None])
        solids.centers.append(-(axes @ inverse[:, 3])[None])
    low, high = (corner[0] for corner in solids.extent())
    margin = MARGIN * (high - low)
    corners = [round(float(v), 3) for v in (*(low - margin)[:2], low[2] - BELOW, *(high + margin))]
    return corners, "box:" + ",".join(map(str, corners))


def out_of_sight(corners: list[float], cameras: Cameras) -> Tensor:
    """Return where no ray meets the box, two pixels around included: [V, 1, S, S] bool."""
    low, high = torch.tensor(corners[:3]), torch.tensor(corners[3:])
    ys, xs = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys, torch.ones_like(xs)], -1).double()  # [S, S, 3]
    rays = pixels @ torch.linalg.inv(cameras.Ks.double())[:, None].mT
    poses = cameras.camtoworlds.double()
    rays = rays @ poses[:, None, :3, :3].mT  # [V, S, S, 3]
    start = poses[:, None, None, :3, 3]
    near, far = (low - start) / rays, (high - start) / rays
    enters, leaves = torch.minimum(near, far).amax(-1), torch.maximum(near, far).amin(-1)
    hit = (enters <= leaves).float()[:, None]
    return F.max_pool2d(hit, 5, 1, 2) < 0.5


def same_outside(before: ParameterDict, after: ParameterDict, corners: list[float]) -> bool:
    """Return whether all Gaussians outside the box are in the result, in their order, bit by bit."""
    means, low, high = before["means"].detach(), torch.tensor(corners[:3]), torch.tensor(corners[3:])
    outside = ~((means >= low) & (means <= high)).all(1)
    rows = [
        torch.cat(
            [
                g[name].detach().flatten(1) if g[name].ndim > 1 else g[name].detach()[:, None]
                for name in NAMES
            ],
            1,
        )
        for g in (before, after)
    ]
    kept = [row.numpy().tobytes() for row in rows[0][outside]]
    left = iter(row.numpy().tobytes() for row in rows[1])
    return all(row in left for row in kept)  # an iterator: their order too


def true_views(index: int, cameras: Cameras) -> Tensor:
    """Return pictures on white of the scene that an edit asks for, [V, 3, S, S]."""
    truth = drawn(np.concatenate(tables(index, *EDITS[index]), 1), cameras)
    return truth[:, :3] + 1.0 - truth[:, 3:]


def edited(
    index: int, scorer: Scorer, cameras: Cameras, options: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """Fit, edit and judge one scene; return its figures, and its pictures before, after and as asked for."""
    things, colors = EDITS[index]
    upper, lower = tables(index, things, colors)
    truth = true_views(index, cameras)
    fitted = photographed(index, drawn(lower, photographs()), options.fit_steps, 3_000, 1)
    corners, box = box_around(upper)
    target = grammar.describe(things, colors)
    with tempfile.TemporaryDirectory() as folder:
        write_ply(f"{folder}/in.ply", fitted)
        before, begin = read_ply(f"{folder}/in.ply")[0], time.perf_counter()
        told = ["--source-prompt", grammar.describe(things[1:], colors[1:]), "--target-prompt", target]
        told += ["--splat", f"{folder}/in.ply", "--mask", box, "--method", options.method]
        write_ply(f"{folder}/out.ply", made(configure(parse([*told, *options.overrides]))))
        seconds, after = time.perf_counter() - begin, read_ply(f"{folder}/out.ply")[0]
    pictures = [look(splat, cameras) for splat in (before, after)]
    unseen = out_of_sight(corners, cameras).expand_as(truth)
    named, colored = right_names(scorer, scorer.images(pictures[1]), target)
    row = {
        "edit": target,
        "mask": box,
        "things": named,
        "colors": colored,
        "bytes_outside": same_outside(before, after, corners),
        "outside_db": float(psnr_of_error((pictures[1] - pictures[0])[unseen].square().mean())),
        "share_out_of_sight": unseen.float().mean().item(),
        "to_the_true_scene_db": psnr(pictures[1], truth).mean().item(),
        "before_to_the_true_scene_db": psnr(pictures[0], truth).mean().item(),
        "gaussians": [len(before["means"]), len(after["means"])],
        "seconds": round(seconds, 1),
    }
    return row, torch.cat([torch.cat(list(x[::3]), 2) for x in (*pictures, truth)], 1)


def kept(
    index: int, scorer: Scorer, cameras: Cameras, options: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """Return what `edited` does, of a scene that an earlier call with the same words did from build/."""
    path = RESULTS.parents[1] / "build" / f"{options.name}-{index}.pt"
    words = [options.method, options.fit_steps, *options.overrides]
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["words"] == words:
            return found["row"], found["strip"]
    row, strip = edited(index, scorer, cameras, options)
    path.parent.mkdir(exist_ok=True)
    torch.save({"words": words, "row": row, "strip": strip}, path)
    return row, strip


def main() -> None:
    """Fit, edit, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=len(EDITS))
    parser.add_argument("--method", default="sdi")
    parser.add_argument("--fit-steps", type=int, default=400)
    parser.add_argument("--name", default="edit_part", help="of the files in benchmarks/results")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    scorer, cameras = Scorer.load("embedded"), turntable(VIEWS, *EVALUATION_VIEW, SIZE)
    rows: list[dict[str, Any]] = []
    strips = []
    for index in range(options.edits):
        row, strip = kept(index, scorer, cameras, options)
        asked = right_names(scorer, scorer.images(true_views(index, cameras)), row["edit"])
        rows.append(row | dict(zip(("things_of_the_true_scene", "colors_of_the_true_scene"), asked)))
        strips.append(strip)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        right = sum(bool(row["things"] and row["colors"]) for row in rows)
        summary = {"edits": len(rows), "right": right, "interval": wilson_interval(right, len(rows))}
        fit = sum(bool(row["things_of_the_true_scene"] and row["colors_of_the_true_scene"]) for row in rows)
        summary["right_of_the_true_scenes"] = fit  # as far as the scorer can tell
        summary |= {"bytes_outside": all(row["bytes_outside"] for row in rows)}
        summary |= {"least_outside_db": min(row["outside_db"] for row in rows)}
        write_result(options.name, {**summary, "runs": rows})
        print(summary, flush=True)
    strips += [torch.ones_like(strips[0])] * (-len(strips) % 2)
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
