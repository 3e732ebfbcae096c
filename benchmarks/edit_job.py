"""Measure how well an edit preserves what it does not name, in splats trained by other code.

`python benchmarks/edit_job.py [--edits N] [--method pds] [key=value ...]` fits splats of SH degree 3 to
renders of held-out scenes, as photographs are fitted, writes them with plyfile in the layout of the Gaussian
splatting papers, five times as large and away from the origin, and runs what `python -m splatdistill.edit`
runs on each. The same scene in other colors is what the edit should give: where the two differ, two pixels
around included, is the true mask. Writes benchmarks/results/edit_job.json and, beside it, a picture: for each
edit the splat before it, after it, and the scene that was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import torch
import torch.nn.functional as F
from common import RESULTS, write_result
from judge import COLORS, THINGS, load_judge
from PIL import Image
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.edit import main as edit
from splatdistill.formats.ply import read_ply
from splatdistill.measure.metrics import psnr, psnr_of_error
from splatdistill.priors import words as grammar
from splatdistill.scene.cameras import EVALUATION_VIEW, Cameras, orbit, turntable
from splatdistill.scene.gaussians import init_blob, moved
from splatdistill.scene.rendering import render
from splatdistill.teaching import scenes
from splatdistill.teaching.solids import raycast

SEED = 99_000  # far from the teachers' and the scorer's
SIZE, VIEWS = 64, 12
EDITS = (  # things, their colors, and the first one's new color
    (("car",), ("red",), "blue"),
    (("duck",), ("yellow",), "red"),
    (("house",), ("yellow",), "cyan"),
    (("penguin",), ("black",), "purple"),
    (("teddy bear",), ("brown",), "pink"),
    (("mug", "cube"), ("orange", "green"), "blue"),
    (("dog", "cylinder"), ("brown", "cyan"), "yellow"),
    (("chair", "cube"), ("purple", "yellow"), "red"),
    (("rocket", "cylinder"), ("blue", "pink"), "orange"),
    (("car", "cube"), ("green", "red"), "yellow"),
)
RATES = {"means": 2e-3, "quats": 5e-3, "scales": 1e-2, "opacities": 5e-2, "sh0": 1e-2, "shN": 2e-3}


def scene(index: int, things: tuple[str, ...], colors: tuple[str, ...], cameras: Cameras) -> Tensor:
    """Return a held-out scene, RGBA [V, 4, S, S] with color times alpha: one shape in any colors."""
    batch = scenes.build(things, 1, np.random.default_rng((SEED, index)), 1.0, colors)
    drawn = raycast(np.repeat(batch.table, len(cameras), axis=0), cameras)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255


def photographs() -> Cameras:
    """Return the 60 views that a splat is fitted to."""
    elevations = [-10.0 + 30.0 * (k // 20) for k in range(60)]
    return orbit([360.0 / 20 * k for k in range(60)], elevations, 3.0, 40.0, SIZE, SIZE)


def photographed(
    index: int, drawn: Tensor, steps: int, count: int = 6_000, sh_degree: int = 3
) -> ParameterDict:
    """Return a splat fitted to the `photographs` of a scene, RGBA [V, 4, S, S], on random backgrounds."""
    generator, cameras = torch.Generator().manual_seed(index), photographs()
    truth = drawn.permute(0, 2, 3, 1)  # [V, S, S, 4]
    gaussians = init_blob(count, 0.6, sh_degree=sh_degree, generator=generator)
    groups = [{"params": [gaussians[name]], "lr": rate} for name, rate in RATES.items()]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, RATES.values()):
            group["lr"] = rate * 0.05 ** (step / steps)
        chosen = torch.randperm(60, generator=generator)[:4]
        background = torch.rand(4, 3, generator=generator)
        seen = render(gaussians, cameras[chosen], background)
        wanted = truth[chosen][..., :3] + (1 - truth[chosen][..., 3:]) * background[:, None, None]
        loss = F.l1_loss(seen.rgb, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return gaussians


def write_foreign(path: Path, gaussians: ParameterDict) -> None:
    """Return the layout of the original 3DGS code, written by plyfile."""
    n, numbers = len(gaussians["means"]), {name: value.detach() for name, value in gaussians.items()}
    columns: dict[str, Tensor] = dict(zip("xyz", numbers["means"].T))
    columns |= {name: torch.zeros(n) for name in ("nx", "ny", "nz")}
    columns |= {f"f_dc_{i}": x for i, x in enumerate(numbers["sh0"].reshape(n, 3).T)}
    rest = numbers["shN"].transpose(1, 2).reshape(n, 45)  # channel-major
    columns |= {f"f_rest_{i}": x for i, x in enumerate(rest.T)}
    columns |= {"opacity": numbers["opacities"].reshape(n)}
    columns |= {f"scale_{i}": x for i, x in enumerate(numbers["scales"].T)}
    columns |= {f"rot_{i}": x for i, x in enumerate(numbers["quats"].T)}
    table = np.empty(n, dtype=[(name, "f4") for name in columns])
    for name, column in columns.items():
        table[name] = column.numpy()
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(path)


def look(gaussians: ParameterDict, cameras: Cameras) -> Tensor:
    """Pictures on white, [V, 3, S, S]."""
    with torch.no_grad():
        return render(gaussians, cameras, torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)


def main() -> None:
    """Fit, edit, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=len(EDITS))
    parser.add_argument("--method", default="pds")
    parser.add_argument("--fit-steps", type=int, default=500)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    judge, cameras = load_judge(), turntable(VIEWS, *EVALUATION_VIEW, SIZE)
    rows: list[dict[str, Any]] = []
    strips = []
    for index, (things, colors, new) in enumerate(EDITS[: options.edits]):
        wanted = (new, *colors[1:])
        source, target = grammar.describe(things, colors), grammar.describe(things, wanted)
        truth = [scene(index, things, shown, cameras) for shown in (colors, wanted)]
        truth = [drawn[:, :3] + 1.0 - drawn[:, 3:] for drawn in truth]
        changes = ((truth[0] - truth[1]).abs().amax(1, keepdim=True) > 0.03).float()
        outside = (F.max_pool2d(changes, 5, 1, 2) < 0.5).expand_as(truth[0])
        far, scale = (3.0, -2.0, 1.0), 5.0
        seen = scene(index, things, colors, photographs())
        foreign = moved(photographed(index, seen, options.fit_steps), far, scale)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "foreign.ply"
            write_foreign(path, foreign)
            before, begin = read_ply(path)[0], time.perf_counter()
            words = ["--source-prompt", source, "--target-prompt", target, "--method", options.method]
            status = edit(["--splat", str(path), *words, "--out", f"{folder}/run", *options.overrides])
            if status:
                raise SystemExit(status)
            seconds = time.perf_counter() - begin
            after = read_ply(Path(folder) / "run" / "splat.ply")[0]
        x, y, z = (-scale * at for at in far)
        pictures = [look(moved(splat, (x, y, z), 1 / scale), cameras) for splat in (before, after)]
        error = (pictures[1] - pictures[0])[outside].square().mean()
        said = [int(p.mean(0).argmax()) for p in judge.name(pictures[1])]
        row = {
            "edit": f"{source} -> {target}",
            "outside_db": float(psnr_of_error(error)),
            "share_outside": outside.float().mean().item(),
            "object": THINGS[said[0]] == things[0],
            "color": COLORS[said[1]] == new,
            "to_the_true_edit_db": psnr(pictures[1], truth[1]).mean().item(),
            "of_the_fit_db": psnr(pictures[0], truth[0]).mean().item(),
            "sh_degree": 3,
            "gaussians": len(after["means"]),
            "seconds": round(seconds, 1),
        }
        rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        strips.append(torch.cat([torch.cat(list(x[::3]), 2) for x in (*pictures, truth[1])], 1))
    means = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("outside_db", "object", "color", "seconds")
    }
    means["least_outside_db"] = min(row["outside_db"] for row in rows)
    print(means)
    name = "edit_job" if options.method == "pds" else f"edit_job-{options.method}"
    write_result(name, {**means, "runs": rows})
    strips += [torch.ones_like(strips[0])] * (-len(strips) % 2)
    pixels = torch.cat([torch.cat(strips[k::2], 1) for k in range(2)], 2).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
