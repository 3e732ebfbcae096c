"""Splats fitted to pictures of real models, for the measures of refining and of edits.

Models come from the album of the teacher of real things, whose 30 pictures with cameras anybody has, or,
held out of all teaching, from a bundle of models (`--assets FOLDER`; needs the extra `teaching`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.priors.album import AZIMUTHS, DISTANCE, ELEVATIONS, FILE, FOV, SIDE, Album, Page
from splatdistill.priors.loading import locate
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.densification import lonely_mask
from splatdistill.scene.gaussians import init_blob, select
from splatdistill.scene.rendering import render

if TYPE_CHECKING:
    from splatdistill.teaching.shelf import Shelf

PRIOR = "real"
BUILD = RESULTS.parents[1] / "build"  # what a campaign keeps, so that a stopped one goes on
FAINT, ALONE = 0.02, 8  # of a fit's Gaussians those that are not kept: of lower opacity, with fewer neighbors
RATES = {"means": 2e-3, "quats": 5e-3, "scales": 1e-2, "opacities": 5e-2, "sh0": 1e-2, "shN": 2e-3}


@cache
def album() -> Album:
    """Return the album of the teacher."""
    return Album.load(locate(PRIOR).root / FILE)


def page_cameras(size: int = SIDE) -> Cameras:
    """Return the cameras of a page's pictures."""
    azimuths, elevations = (x.rad2deg().tolist() for x in (AZIMUTHS, ELEVATIONS))
    return orbit(azimuths, elevations, DISTANCE, float(np.degrees(FOV)), size, size)


def page_views(page: Page) -> Tensor:
    """Return the pictures of a page, [V, 4, S, S] in [0, 1] with color times alpha."""
    return torch.from_numpy(page.pictures).permute(0, 3, 1, 2).float() / 255


def photographs(size: int = SIDE) -> Cameras:
    """Return the 60 views of a model of the bundle that a splat is fitted to."""
    elevations = [-10.0 + 30.0 * (k // 20) for k in range(60)]
    return orbit([360.0 / 20 * k for k in range(60)], elevations, 3.0, 40.0, size, size)


def shelf(bundle: Path, size: int, held_out: bool) -> Shelf:
    """Return the models that no teaching has seen, or those that it has."""
    from splatdistill.teaching.renderer import Renderer
    from splatdistill.teaching.shelf import Shelf
    from splatdistill.teaching.teach import all_entries

    return Shelf(tuple(all_entries(bundle)), bundle, BUILD / "meshes", Renderer(size)).split(held_out)


def held_out_nouns(bundle: Path) -> list[str]:
    """Return the nouns that have one model which no teaching has seen, in alphabetical order."""
    held = shelf(bundle, SIDE, True).by_noun
    return sorted(noun for noun, entries in held.items() if len(entries) == 1)


def model_views(noun: str, cameras: Cameras, bundle: Path, held_out: bool = True) -> Tensor:
    """Return pictures, as `page_views` does, of a noun's model that no teaching has seen, or of the first."""
    from splatdistill.teaching.pages import LIGHT

    models = shelf(bundle, cameras.width, held_out)
    entry = models.by_noun[noun][0]
    assert not held_out or entry.id not in album().ids
    mesh, _ = models.take(entry, np.random.default_rng(0), tint=0.0)
    drawn = models.renderer.draw(mesh.fitted(0.78), cameras, LIGHT)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255


def on_white(drawn: Tensor) -> Tensor:
    """Return pictures [V, 3, S, S] of some with coverage [V, 4, S, S], color times alpha."""
    return drawn[:, :3] + 1.0 - drawn[:, 3:]


def fitted(
    drawn: Tensor, cameras: Cameras, steps: int, count: int = 4_000, sh_degree: int = 1
) -> ParameterDict:
    """Return a splat fitted to pictures [V, 4, S, S] from cameras [V], on random backgrounds."""
    generator = torch.Generator().manual_seed(0)
    truth = drawn.permute(0, 2, 3, 1)  # [V, S, S, 4]
    gaussians = init_blob(count, 0.6, sh_degree=sh_degree, generator=generator)
    groups = [{"params": [gaussians[name]], "lr": rate} for name, rate in RATES.items()]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, RATES.values()):
            group["lr"] = rate * 0.05 ** (step / steps)
        chosen = torch.randperm(len(cameras), generator=generator)[:4]
        background = torch.rand(4, 3, generator=generator)
        seen = render(gaussians, cameras[chosen], background)
        wanted = truth[chosen][..., :3] + (1 - truth[chosen][..., 3:]) * background[:, None, None]
        loss = F.l1_loss(seen.rgb, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    solid = select(gaussians, gaussians["opacities"].detach().sigmoid() > FAINT)
    return select(solid, ~lonely_mask(solid, ALONE))


def look(gaussians: ParameterDict, cameras: Cameras) -> Tensor:
    """Return pictures of a splat on white, [V, 3, S, S]."""
    with torch.no_grad():
        return render(gaussians, cameras, torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)
