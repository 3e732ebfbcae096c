"""The public names, and the library in ten lines as docs/LIBRARY.md has it."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gsplat
import pytest
import torch
from torch import Tensor

import splatdistill as sd
from splatdistill.ops import native
from splatdistill.priors.base import ToyPrior
from splatdistill.reference import raster as reference
from splatdistill.scene.cameras import orbit, turntable
from splatdistill.scene.gaussians import activated, init_blob

PAGE = Path(__file__).parents[1] / "docs" / "LIBRARY.md"


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(sd, name) is not None for name in sd.__all__)
    assert set(sd.__all__) <= set(dir(sd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sd.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "('torch', 'gsplat', 'diffusers', 'numpy')"
    code = f"import sys, splatdistill; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.skipif(not native.available(), reason="needs the native extension")
def test_waiting_threads_do_not_spin_unless_the_user_says_so() -> None:
    code = "from splatdistill import _C"  # which loads OpenMP, as torch does
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")):
        others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        told = {**others, "OMP_DISPLAY_ENV": "true", **given}  # OpenMP prints what it has read
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=told)
        assert re.search(rf"OMP_WAIT_POLICY *= *'{expected}'", run.stderr), run.stderr


def test_the_package_is_typed() -> None:
    assert (Path(sd.__file__).parent / "py.typed").is_file()


def example() -> str:
    """Return the ten lines of the page."""
    block = re.search(r"```python\n(import splatdistill as sd\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    return block[1]


@pytest.mark.parametrize("views", ["perp_neg", "view"])
def test_the_ten_lines_of_the_page_run_and_pull_the_scene_toward_the_prompt(views: str) -> None:
    """As written, but for the teacher, a small size, and gsplat's rasterizer, which wants a GPU."""
    code = example()
    for written, small in {
        'sd.load_prior("sd21", "cuda")': "prior",
        "gsplat.rasterization": "sd.rasterize",
        'views="perp_neg"': f'views="{views}"',
        "steps, size = 1000, 512": "steps, size = 4, 32",
        "guide.pt": "/dev/null",
    }.items():
        assert written in code
        code = code.replace(written, small)
    means = {"red": torch.tensor([0.8, -0.8, -0.8])}
    prior = ToyPrior(means["red"].view(3, 1, 1).expand(3, 8, 8).contiguous(), 0.1, image_size=32)
    names: dict[str, object] = {"prior": prior, "torch": torch}
    exec(code, names)
    scene, losses = names["scene"], names["losses"]
    assert isinstance(losses, list) and len(losses) == 4 and losses[-1] < losses[0]
    assert isinstance(scene, torch.nn.ParameterDict)
    assert all(parameter.grad is not None for name, parameter in scene.items() if name != "shN")


def test_from_gsplat_finds_the_orbit_that_made_the_matrices() -> None:
    made = orbit([10.0, 200.0, -90.0], [0.0, 40.0, 85.0], [2.5, 3.0, 4.0], 50.0, 64, 48)
    found = sd.Cameras.from_gsplat(made.viewmats, made.Ks, 64, 48)
    turned = (found.azimuth_deg - made.azimuth_deg + 180.0) % 360.0 - 180.0
    torch.testing.assert_close(turned, torch.zeros(3), atol=1e-3, rtol=0.0)
    for name in ("elevation_deg", "distance", "fov_deg"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(made, name).double(), atol=1e-3, rtol=0.0
        )


@pytest.mark.parametrize(
    ("viewmats", "Ks", "match"),
    [
        (torch.eye(4), torch.eye(3)[None], "viewmats"),
        (torch.eye(4)[None], torch.eye(3).repeat(2, 1, 1), "Ks"),
        (torch.full((1, 4, 4), torch.nan), torch.eye(3)[None], "finite"),
    ],
)
def test_from_gsplat_refuses_other_shapes(viewmats: Tensor, Ks: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sd.Cameras.from_gsplat(viewmats, Ks, 8, 8)


def inputs(size: int = 24) -> dict[str, Any]:
    """Return arguments of both rasterizers, but for the colors, by name."""
    scene = activated(init_blob(40, sh_degree=1, generator=torch.Generator().manual_seed(0)))
    cameras = turntable(2, 15.0, 3.0, 40.0, size)
    names = ("means", "quats", "scales", "opacities", "sh")
    views = {"viewmats": cameras.viewmats, "Ks": cameras.Ks, "width": size, "height": size}
    return dict(zip(names, scene, strict=True)) | views


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_rasterize_has_gsplats_modes(mode: str) -> None:
    given = inputs()
    rgb, alpha_, depth, _, _ = reference.rasterize(**given, backgrounds=None, sh_degree=1)
    image, alpha, meta = sd.rasterize(colors=given.pop("sh"), **given, sh_degree=1, render_mode=mode)
    parts = {"RGB": rgb, "ED": depth, "D": depth * alpha_}
    expected = torch.cat([parts[name] for name in mode.split("+")], dim=-1)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(alpha, alpha_, atol=1e-4, rtol=1e-3)
    assert meta["means2d"].shape == (2, 40, 2) and meta["radii"].shape == (2, 40, 2)


def test_rasterize_takes_plain_colors_as_gsplat_does() -> None:
    given, white = inputs(), torch.ones(2, 3)
    colors = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    given["sh"] = ((colors - 0.5) / 0.28209479177387814)[:, None]
    expected, *_ = reference.rasterize(**given, backgrounds=white, sh_degree=0)
    del given["sh"]
    image, _, _ = sd.rasterize(colors=colors, **given, backgrounds=white)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-3)


def test_rasterize_has_gsplats_argument_names() -> None:
    theirs = inspect.signature(gsplat.rasterization).parameters
    ours = [name for name in inspect.signature(sd.rasterize).parameters if name != "options"]
    assert set(ours) <= set(theirs)


@pytest.mark.parametrize("options", [{"render_mode": "N"}, {"rasterize_mode": "antialiased"}])
def test_rasterize_says_what_the_cpu_does_not_have(options: dict[str, Any]) -> None:
    given = inputs(8)
    with pytest.raises(ValueError, match="on the CPU"):
        sd.rasterize(colors=given.pop("sh"), **given, sh_degree=1, **options)


def test_the_state_of_a_guide_saves_and_loads() -> None:
    prior = ToyPrior(torch.zeros(3, 4, 4), image_size=16)
    first, second = (sd.Guide(prior, sd.DSD(), "a car", views="plain", seed=seed) for seed in (1, 2))
    pictures = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))

    def loss(guide: sd.Guide) -> Tensor:
        return guide(pictures, 0.5, generator=torch.Generator().manual_seed(3)).loss

    assert not torch.equal(loss(first), loss(second))
    second.load_state_dict(first.state_dict())
    assert torch.equal(loss(first), loss(second))


def test_an_edit_takes_its_source_as_pictures() -> None:
    prior = ToyPrior(
        {"": torch.zeros(3, 4, 4), "a car": torch.ones(3, 4, 4), "a bus": -torch.ones(3, 4, 4)}, image_size=16
    )
    guide = sd.Guide(prior, sd.DDS(), "a bus", source_prompt="a car", views="plain")
    pictures = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    same = sd.Guide(prior, sd.DDS(), "a car", source_prompt="a car", views="plain")
    draw = torch.Generator
    edit = guide(pictures, 0.5, source=pictures, generator=draw().manual_seed(3))
    none = same(pictures, 0.5, source=pictures, generator=draw().manual_seed(3))
    assert none.loss < 1e-8 < edit.loss
    with pytest.raises(ValueError, match="source"):
        guide(pictures, 0.5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rgb": torch.zeros(2, 3, 8, 8)}, "rgb"),
        ({"rgb": torch.zeros(2, 8, 8, 3), "cameras": turntable(3, 0.0, 3.0, 40.0, 8)}, "cameras"),
        ({"rgb": torch.zeros(2, 8, 8, 3)}, "view"),
    ],
)
def test_a_guide_says_what_does_not_fit(arguments: dict, match: str) -> None:
    guide = sd.Guide(ToyPrior(torch.zeros(3, 4, 4), image_size=8), sd.SDS(), "a car")
    with pytest.raises(ValueError, match=match):
        guide(progress=0.5, **arguments)
