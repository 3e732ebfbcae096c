"""Measure whether an edit with a mask adds a thing where it was asked for, and touches nothing else.

`python benchmarks/edit_part.py [--edits N] [--method sdi] [key=value ...]` fits a splat to the album's
pictures of one model, and asks `python -m splatdistill.edit --mask above` for another thing on top of it.
The judge in the teacher's folder, which has to name both things among all that it knows, each in a part of
the views, looks at the result; and at the teacher's own collage of the two, which it should name too.
Outside the box every row of the file must have kept its bytes, and where the box is not in sight the
pictures are compared. A scene that is done stays in build/, so that a stopped campaign goes on. Writes
benchmarks/results/edit_part.json and, beside it, a picture: for each edit the splat before it, after it,
and the collage.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, made, write_result
from fits import BUILD, PRIOR, album, fitted, look, on_white, page_cameras, page_views
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.edit import configure, parse
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.jury import SIZE, VIEWS, Jury, around
from splatdistill.measure.metrics import psnr_of_error, wilson_interval
from splatdistill.priors.album import RINGS, together
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, turntable
from splatdistill.scene.gaussians import NAMES, moved
from splatdistill.scene.masks import Mask, read_mask

EDITS = (  # what is to be added, on what
    ("hamburger", "table"),
    ("cat", "pillow"),
    ("pumpkin", "barrel"),
    ("skull", "treasure chest"),
    ("watermelon", "crate"),
    ("rabbit", "tree stump"),
    ("cake", "coffee table"),
    ("teddy bear", "stool"),
    ("gift", "bed"),
    ("television", "desk"),
)
RING = range(RINGS[0][1], RINGS[0][1] + RINGS[1][1])  # the pictures of a page from one height


def out_of_sight(region: Mask, cameras: Cameras) -> Tensor:
    """Return where no ray meets a box, two pixels around included: [V, 1, S, S] bool."""
    low, high = region.middle - region.half, region.middle + region.half
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


def same_outside(before: ParameterDict, after: ParameterDict, region: Mask) -> bool:
    """Return whether all Gaussians outside the region are in the result, in their order, bit by bit."""
    rows = [torch.cat([g[name].detach().flatten(1) if g[name].ndim > 1 else g[name].detach()[:, None]
                       for name in NAMES], 1) for g in (before, after)]  # fmt: skip
    kept = [row.numpy().tobytes() for row in rows[0][~region.holds(before["means"].detach())]]
    left = iter(row.numpy().tobytes() for row in rows[1])
    return all(row in left for row in kept)  # an iterator: their order too


def lower(noun: str, steps: int) -> ParameterDict:
    """Return the splat of the album's first model of a noun, which is fitted once and kept in build/."""
    path = BUILD / f"album-{noun.replace(' ', '-')}-{steps}.ply"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        page = album().page(album().of_noun[noun][0])
        write_ply(path, fitted(page_views(page), page_cameras(), steps))
    return read_ply(path)[0]


def collage(things: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Return the teacher's own pictures of a pair from all around, and their coverage."""
    first, second = (album().page(album().of_noun[noun][0]) for noun in things)
    views = page_views(together(first, second, "on top of", RING))
    return on_white(views).clamp(0, 1), views[:, 3:]


def edited(
    things: tuple[str, str], options: argparse.Namespace
) -> tuple[dict[str, Any], Tensor, ParameterDict]:
    """Fit and edit a scene; return figures, pictures before and after, and the result in the run's frame."""
    target = "a {} on top of a {}".format(*things)
    with tempfile.TemporaryDirectory() as folder:
        write_ply(f"{folder}/in.ply", lower(things[1], options.fit_steps))
        before, begin = read_ply(f"{folder}/in.ply")[0], time.perf_counter()
        told = ["--target-prompt", target, "--source-prompt", f"a {things[1]}", "--method", options.method]
        told += ["--splat", f"{folder}/in.ply", "--mask", "above"]
        config = configure(parse([*told, *options.overrides]))
        write_ply(f"{folder}/out.ply", made(config))
        seconds, after = time.perf_counter() - begin, read_ply(f"{folder}/out.ply")[0]
    region, place = read_mask(config.edit.mask, before), (config.edit.shift, config.edit.scale)
    cameras = turntable(VIEWS, *EVALUATION_VIEW, SIZE)
    pictures = [look(moved(splat, *place), cameras) for splat in (before, after)]
    unseen = out_of_sight(region.moved(*place), cameras).expand_as(pictures[0])
    row = {
        "edit": target,
        "mask": config.edit.mask,
        "bytes_outside": same_outside(before, after, region),
        "outside_db": float(psnr_of_error((pictures[1] - pictures[0])[unseen].square().mean())),
        "share_out_of_sight": unseen.float().mean().item(),
        "gaussians": [len(before["means"]), len(after["means"])],
        "seconds": round(seconds, 1),
    }
    return row, torch.stack(pictures), moved(after, *place)


def kept(
    things: tuple[str, str], options: argparse.Namespace
) -> tuple[dict[str, Any], Tensor, ParameterDict]:
    """Return what `edited` does, of a scene that an earlier call with the same words did from build/."""
    path = BUILD / f"{options.name}-{'-'.join(things).replace(' ', '-')}.pt"
    words = [options.method, options.fit_steps, *options.overrides]
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["words"] == words:
            return found["row"], found["pictures"], ParameterDict(found["splat"])
    row, pictures, splat = edited(things, options)
    path.parent.mkdir(exist_ok=True)
    values = {name: splat[name].detach() for name in NAMES}
    torch.save({"words": words, "row": row, "pictures": pictures, "splat": values}, path)
    return row, pictures, splat


def judged(jury: Jury, target: str, rgb: Tensor, alpha: Tensor) -> dict[str, Any]:
    """Return what the judge says of views of a pair."""
    said = jury.verdict(target, rgb, alpha)
    return {name: said[name] for name in ("object", "object_first_five", "called")}


def main() -> None:
    """Fit, edit, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=len(EDITS))
    parser.add_argument("--pairs", help="others than the measured ones: crown/pillow,duck/crate")
    parser.add_argument("--method", default="sdi")
    parser.add_argument("--fit-steps", type=int, default=400)
    parser.add_argument("--name", default="edit_part", help="of the files in benchmarks/results")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    pairs = [tuple(pair.split("/")) for pair in options.pairs.split(",")] if options.pairs else EDITS
    jury, rows, strips = Jury.of(PRIOR), [], []
    assert jury is not None
    for things in pairs[: options.edits]:
        row, pictures, splat = kept(things, options)
        row |= judged(jury, row["edit"], *around(splat))
        asked = collage(things)
        row["collage"] = judged(jury, row["edit"], *asked)
        rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        strips.append(torch.cat([torch.cat(list(x[1::3]), 2) for x in (*pictures, asked[0])], 1))
        right = sum(row["object"] for row in rows)
        summary = {"edits": len(rows), "right": right, "interval": wilson_interval(right, len(rows))}
        summary |= {"right_of_the_collages": sum(row["collage"]["object"] for row in rows)}
        summary |= {"bytes_outside": all(row["bytes_outside"] for row in rows)}
        summary |= {"least_outside_db": min(row["outside_db"] for row in rows)}
        write_result(options.name, {**summary, "runs": rows}, BUILD if options.pairs else RESULTS)
        print(summary, flush=True)
    strips += [torch.ones_like(strips[0])] * (-len(strips) % 2)
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    folder = BUILD if options.pairs else RESULTS
    Image.fromarray((pixels * 255).round().byte().numpy()).save(folder / f"{options.name}.png")


if __name__ == "__main__":
    main()
