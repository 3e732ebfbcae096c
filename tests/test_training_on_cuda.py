"""Whole runs on a device that is like CUDA: nothing mixes devices, and the host seldom waits."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from PIL import Image
from tiny import SMALL, Hooks, make_clip, make_pictured

from splatdistill.config.load import resolve
from splatdistill.config.schema import Config
from splatdistill.folder import METRICS
from splatdistill.formats.ply import write_ply
from splatdistill.guidance.registry import METHODS
from splatdistill.scene.gaussians import init_blob
from splatdistill.training.run import make_run

MOST_WAITS = 2  # of a step: gsplat counts intersections, the loop reads its numbers
GROWING = ["densification.start=1", "densification.every=1", "densification.grow_grad2d=0"]
GENERATORS = [name for name, method in METHODS.items() if not method.edits]


def settings(teacher: str, *words: str) -> Config:
    flags = {"prompt": "a red mushroom", "prior": {"name": teacher, "dtype": "float32"}, "steps": 3}
    return resolve(flags, words=[*SMALL, *words])


def trained(config: Config, out: Path, index: int = 0) -> bytes:
    """Run on the fake device; return the bytes of splat.ply."""
    with fake_cuda(index):
        assert make_run(config, out, device=f"cuda:{index}").finished
    return (out / "splat.ply").read_bytes()


def waits_of_steps(config: Config, out: Path) -> list[dict[tuple[str, str], int]]:
    """Return the waits within each step but the first, which captures and embeds."""
    seen = []
    with fake_cuda() as cuda:

        def on_step(step, metrics):
            seen.append(dict(cuda.waits))
            cuda.waits.clear()

        assert make_run(config, out, device="cuda", watch=lambda job: nullcontext(Hooks(on_step=on_step)))
    return seen[1:]


@pytest.mark.parametrize("mode", ["view", "perp_neg"])
def test_the_host_seldom_waits_in_a_step(teacher, tmp_path, mode):
    config = settings(teacher, "inversion.steps=10", f"guidance.mode={mode}", "checkpoint_every=100")
    for waits in waits_of_steps(config, tmp_path / "run"):
        assert sum(waits.values()) <= MOST_WAITS, waits


@pytest.mark.parametrize("method", ["sdi", "vsd"])
def test_the_shipped_layout_stays_on_the_device(views, tmp_path, method):
    config = settings(str(views), f"method={method}", "views.count=4", "checkpoint_every=100")
    for waits in waits_of_steps(config, tmp_path / "run"):
        assert sum(waits.values()) <= MOST_WAITS + 2, waits  # cameras and pages, for the album


def test_a_run_goes_as_on_the_cpu(teacher, tmp_path):
    """But for rounding: the networks' tensors are laid out otherwise there."""
    config = settings(teacher, *GROWING, "gaussians.sh_degree=1", "gaussians.sh_every=1")
    make_run(config, tmp_path / "cpu", device="cpu")
    trained(config, tmp_path / "cuda")
    lines = [(tmp_path / name / METRICS).read_text().splitlines() for name in ("cpu", "cuda")]
    for here, there in zip(*lines, strict=True):
        assert json.loads(there) == pytest.approx(json.loads(here), rel=0.02)
    assert json.loads(lines[0][-1])["gaussians"] > config.gaussians.count


def test_a_run_resumes_on_the_device_that_it_is_given(teacher, tmp_path):
    config = settings(teacher, *GROWING, "densification.kind=mcmc", "densification.cap_max=80")
    whole = trained(config, tmp_path / "whole", index=1)
    steps = []
    with fake_cuda(1) as cuda:
        hooks = Hooks(on_step=lambda step, metrics: steps.append(step), should_stop=lambda: len(steps) == 2)
        result = make_run(config, tmp_path / "run", device="cuda:1", watch=lambda job: nullcontext(hooks))
        assert not result.finished and result.step == 2
    torch.manual_seed(99)  # another process
    with fake_cuda(1) as cuda:
        assert make_run(config, tmp_path / "run", device="cuda:1", resume=True).finished
    assert set(cuda.generators) == {torch.device("cuda", 1)}
    assert (tmp_path / "run" / "splat.ply").read_bytes() == whole


@pytest.mark.parametrize("method", GENERATORS)
def test_every_method_stays_on_the_device(teacher, tmp_path, method):
    scorer = [f"method.scorer={make_clip(tmp_path)}"] if method == "clip" else []
    trained(settings(teacher, f"method={method}", "steps=2", *scorer), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [*GROWING, "densification.reset_every=1"],
        ["shading.start=0", "shading.lambertian=0.5", "shading.textureless=0.5"],
        ["losses.alpha_entropy=1", "losses.anisotropy=1", "losses.depth_smoothness=1"],
        ["method=sds", "backgrounds.colors={red: [1, 0, 0], blue: [0, 0, 1]}", "backgrounds.in_prompt=true"],
    ],
    ids=["reset", "shading", "losses", "backgrounds"],
)
def test_what_a_step_may_do_besides_stays_on_the_device(teacher, tmp_path, words):
    trained(settings(teacher, *words, "steps=2"), tmp_path / "run")


@pytest.mark.parametrize(
    "method", ["pds", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dds", "sds"))]
)
def test_an_edit_stays_on_the_device(teacher, tmp_path, method):
    write_ply(tmp_path / "in.ply", init_blob(40, generator=torch.Generator().manual_seed(0)))
    edit = ["edit.source_prompt=a dog", f"edit.splat={tmp_path / 'in.ply'}"]
    trained(settings(teacher, f"method={method}", "steps=2", *edit), tmp_path / "run")


def test_a_picture_is_held_to_on_the_device(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[8:24, 8:24] = (200, 30, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "thing.png")
    teacher = str(make_pictured(tmp_path))
    config = settings(teacher, f"image.path={tmp_path / 'thing.png'}", "checkpoint_every=100")
    for waits in waits_of_steps(config, tmp_path / "run"):
        assert sum(waits.values()) <= MOST_WAITS + 1, waits  # one more picture is rendered
