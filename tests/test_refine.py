"""The refining verb, and whole runs from a splat, a point cloud or a mesh, on a tiny random pipeline."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import SMALL, stop_after

from splatdistill import refine, train
from splatdistill.config.load import load
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.gaussians import init_blob, moved

TINY = ["--steps", "4", "--method", "sds", *SMALL, "prior.dtype=float32"]  # what costs least
pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


def words(teacher: str, *more: str) -> list[str]:
    return ["--splat", "in.ply", "--prompt", "a red dog", "--prior", teacher, *TINY, *more]


def blob(count: int = 60, degree: int = 1) -> torch.nn.ParameterDict:
    return init_blob(count, opacity=0.6, sh_degree=degree, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["sdi", "sds"])
def test_a_splat_is_refined_in_its_own_place(teacher, method):
    write_ply("in.ply", moved(moved(blob(), (0.0, 0.0, 0.0), 40.0), (300.0, -20.0, 7.0), 1.0))
    assert refine.main(words(teacher, "--method", method, "--strength", "0.3", "--out", "run")) == 0
    refined, comments = read_ply("run/splat.ply")
    assert comments["method"] == method and refined["shN"].shape[1] == 3
    middle = refined["means"].detach().median(0).values
    assert torch.allclose(middle, torch.tensor([300.0, -20.0, 7.0]), atol=10.0)
    config = load(Path("run/config.yaml"))
    assert config.method.timesteps.range(0.0) == (0.3, 0.3) and config.hold.alpha > 0.0
    assert config.method.timesteps.range(1.0) == pytest.approx((0.02, 0.02))
    assert config.densification.kind != "none"
    assert Image.open("run/before_after.png").size == (4 * 16, 2 * 16)


def test_a_refining_run_resumes_exactly_and_brings_its_own_splat(teacher, monkeypatch):
    write_ply("in.ply", blob())
    dense = ["densification.start=1", "densification.every=1", "densification.grow_grad2d=0"]
    assert refine.main(words(teacher, *dense, "--out", "whole")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert refine.main(words(teacher, *dense, "--out", "stopped")) == 130
    Path("in.ply").unlink()
    assert train.main(["--resume", "stopped"]) == 0
    assert Path("stopped/splat.ply").read_bytes() == Path("whole/splat.ply").read_bytes()
    assert len(read_ply("whole/splat.ply")[0]["means"]) > 60


def test_a_run_is_refined_under_its_own_prompt(teacher):
    start = ["--prompt", "a red dog", "--prior", teacher, "--out", "start", *TINY]
    assert train.main(start) == 0
    assert refine.main(["--splat", "start", "--prior", teacher, *TINY, "--out", "run"]) == 0
    assert load(Path("run/config.yaml")).prompt == "a red dog"


def distance(run: str, source: torch.nn.ParameterDict) -> float:
    """Return how far the centers moved, for a run without densification."""
    means = read_ply(f"{run}/splat.ply")[0]["means"].detach()
    return (means - source["means"].detach()).norm(dim=1).mean().item()


@pytest.mark.parametrize("name", ["means", "rgb"])
def test_the_more_it_is_held_the_less_it_changes(teacher, name):
    source = blob()
    write_ply("in.ply", source)
    alone = ["densification.kind=none", "gaussians.final_floaters=0", "--steps", "12"]
    free = [f"hold.{key}=0" for key in ("rgb", "alpha", "means", "colors")]
    assert refine.main(words(teacher, *alone, *free, "--out", "free")) == 0
    assert refine.main(words(teacher, *alone, *free, f"hold.{name}=1e7", "--out", "held")) == 0
    assert distance("held", source) < 0.7 * distance("free", source)


def test_only_what_a_mask_covers_is_refined(teacher):
    write_ply("in.ply", blob())
    assert refine.main(words(teacher, "--mask", "box:-1,-1,0,1,1,1", "--out", "run")) == 0
    before, after = read_ply("in.ply")[0], read_ply("run/splat.ply")[0]
    below = before["means"].detach()[:, 2] < 0
    kept = {tuple(row) for row in after["means"].detach().tolist()}
    assert {tuple(row) for row in before["means"].detach()[below].tolist()} <= kept
    assert not {tuple(row) for row in before["means"].detach()[~below].tolist()} & kept


def test_a_whole_run_starts_from_a_splat_points_or_a_mesh(teacher):
    write_ply("in.ply", blob(degree=3))
    lines = ["v 0 0 0", "v 1 0 0", "v 0 1 0", "v 0 0 1", "f 1 2 3", "f 1 2 4", "f 1 3 4", "f 2 3 4"]
    Path("in.obj").write_text("\n".join(lines))
    for file, count in (("in.ply", 60), ("in.obj", 20_000)):
        begin = ["--prompt", "a red dog", "--prior", teacher, *TINY, "--steps", "2", "--init", file]
        begin += ["--method", "sdi"]
        assert train.main([*begin, "gaussians.final_opacity=0", "--out", file[-3:]]) == 0
        assert len(read_ply(f"{file[-3:]}/source.ply")[0]["means"]) == count
        assert load(Path(file[-3:]) / "config.yaml").method.timesteps.range(0.0) == (0.98, 0.98)


def test_mistakes_are_one_line(teacher, capfd):
    write_ply("in.ply", blob())
    cases = [
        (["--splat", "in.ply", "--prior", teacher], "--prompt"),
        (words(teacher, "--strength", "2"), "--strength"),
        (words(teacher, "--method", "pds"), "splatdistill.edit"),
        ([*words(teacher), "--splat", "none.ply"], "none.ply"),
        (words(teacher, "--from", "blender"), "blender"),
        (words(teacher, "--preview-mask", "mask.png"), "--mask"),
        (words(teacher, "--mask", "box:1,2"), "x0,y0,z0"),
        (words(teacher, "hold.rgb=-1"), "hold.rgb"),
    ]
    for given, said in cases:
        assert refine.main(given) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    with pytest.raises(SystemExit, match="2"):
        refine.main(words(teacher, "--from", "trellis", "--from-up", "y"))
    assert "not allowed with argument --from" in capfd.readouterr().err
    assert train.main(["--prompt", "a red dog", "--from-up", "y"]) == 2
    assert "--init" in capfd.readouterr().err
