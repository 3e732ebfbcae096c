"""The editing verb, end to end on a tiny random pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, stop_after

from splatdistill import edit, train
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.gaussians import init_blob, moved, placement
from splatdistill.scene.masks import read_mask

TINY = ["--steps", "4", *SMALL, "prior.dtype=float32"]


pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


def words(teacher: str, *more: str) -> list[str]:
    prompts = ["--source-prompt", "a red dog", "--target-prompt", "a red mushroom"]
    return ["--splat", "in.ply", *prompts, "--prior", teacher, *TINY, *more]


@pytest.mark.parametrize("method", ["pds", "dds", "dreamcatalyst", "sds"])
def test_a_file_of_degree_three_is_edited(teacher, method):
    write_ply("in.ply", init_blob(40, sh_degree=3))
    before = Path("in.ply").read_bytes()
    assert edit.main(words(teacher, "--method", method, "--out", "run")) == 0
    edited, comments = read_ply("run/splat.ply")
    assert edited["shN"].shape[1] == 15 and comments["method"] == method
    assert comments["prompt"] == "a red mushroom"
    assert Path("in.ply").read_bytes() == before
    assert Image.open("run/before_after.png").size == (4 * 16, 2 * 16)


def test_a_run_brings_its_own_source_prompt_and_resumes_exactly(teacher, monkeypatch):
    start = ["--prompt", "a red dog", "--prior", teacher, "--method", "sds", "--out", "start", *TINY]
    assert train.main(start) == 0
    change = ["--splat", "start", "--target-prompt", "a red mushroom", "--prior", teacher, *TINY]
    assert edit.main([*change, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert edit.main([*change, "--out", "stopped"]) == 130
    Path("start/splat.ply").unlink()  # the run has its own
    assert train.main(["--resume", "stopped"]) == 0
    assert Path("stopped/splat.ply").read_bytes() == Path("whole/splat.ply").read_bytes()


def test_mistakes_are_one_line(teacher, capfd):
    write_ply("in.ply", init_blob(10))
    Path("broken.ply").write_bytes(b"ply\nnothing")
    cases = [
        (["--splat", "in.ply", "--target-prompt", "a red mushroom", "--prior", teacher], "--source-prompt"),
        ([*words(teacher), "--splat", "broken.ply"], "broken.ply"),
        ([*words(teacher), "--splat", "none.ply"], "none.ply"),
        ([*words(teacher), "--method", "csd"], "invalid choice"),
        ([*words(teacher), "--method", "sdi"], "--mask"),
        (words(teacher, "--mask", "box:1,2"), "x0,y0,z0"),
        (words(teacher, "--mask", "none.npy"), "none.npy"),
        (["--splat", "in.ply"], "--target-prompt"),
        (["--splat", "in.ply", "--target-prompt", ""], "--target-prompt"),
    ]
    for given, said in cases:
        try:
            status = edit.main(given)
        except SystemExit as stop:
            status = stop.code
        lines = capfd.readouterr().err.strip().splitlines()
        assert status == 2 and len(lines) == 1 and said in lines[0], lines


def test_a_method_that_edits_needs_a_splat(capfd):
    assert train.main(["--prompt", "a red dog", "--method", "pds"]) == 2
    assert "splatdistill.edit" in capfd.readouterr().err


def test_a_splat_from_elsewhere_is_edited_in_the_middle_and_goes_back(teacher, capfd):
    near = init_blob(200, opacity=0.5)
    far = moved(moved(near, (0.0, 0.0, 0.0), 40.0), (300.0, -20.0, 7.0), 1.0)
    write_ply("in.ply", far)
    assert edit.main(words(teacher, "--out", "run")) == 0
    assert "times its size" in capfd.readouterr().err
    edited, _ = read_ply("run/splat.ply")
    middle = edited["means"].detach().median(0).values
    assert torch.allclose(middle, torch.tensor([300.0, -20.0, 7.0]), atol=10.0)
    assert edited["means"].detach().std(0).min() > 5.0


def test_a_splat_in_its_place_stays_there():
    assert placement(init_blob(200, opacity=0.5)) == ((0.0, 0.0, 0.0), 1.0)
    shift, scale = placement(moved(init_blob(2000, radius=0.6, opacity=0.5), (5.0, 0.0, 0.0), 2.0))
    assert shift[0] == pytest.approx(-10.0, abs=0.2) and scale == pytest.approx(0.78 / 1.2, rel=0.1)


def test_a_region_beside_the_splat_counts_in_its_place():
    low = moved(init_blob(2000, radius=0.3, opacity=0.5), (0.0, 0.0, -0.4), 1.0)
    assert placement(low)[1] > 1.2  # alone it would fill the view
    tips = read_mask("box:-0.3,-0.3,0,0.3,0.3,0.8", low).tips
    assert tips.shape == (6, 3) and tips[:, 2].max() == pytest.approx(0.8)
    assert placement(low, besides=tips) == ((0.0, 0.0, 0.0), 1.0)
    shift, scale = placement(moved(low, (0.0, 0.0, 0.0), 10.0), besides=10.0 * tips)
    assert shift[2] == pytest.approx(-0.5, abs=0.2) and scale == pytest.approx(0.78 / 7.5, rel=0.15)


def test_an_edit_to_the_same_prompt_returns_the_same_splat(teacher):
    """Its colors of every degree, its haze and its outliers too: what is not edited is not touched."""
    generator = torch.Generator().manual_seed(0)
    scene = init_blob(60, sh_degree=3, generator=generator)
    with torch.no_grad():
        scene["shN"].normal_(0.0, 0.2, generator=generator)
        scene["opacities"][:20] = -3.0  # an opacity of .05
        scene["means"][0] = torch.tensor([1.4, 0.0, 0.0])
        scene["scales"][1] = 0.0  # a standard deviation of 1
    far = moved(moved(scene, (0.0, 0.0, 0.0), 40.0), (300.0, -20.0, 7.0), 1.0)
    write_ply("in.ply", far)
    same = ["--source-prompt", "a red dog", "--target-prompt", "a red dog"]
    assert edit.main(["--splat", "in.ply", *same, "--prior", teacher, *TINY, "--out", "run"]) == 0
    before, after = read_ply("in.ply")[0], read_ply("run/splat.ply")[0]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-3, rtol=1e-4, msg=name)


def test_what_no_renderer_shows_is_left_out_of_an_edited_splat(teacher):
    scene = init_blob(60)
    with torch.no_grad():
        scene["opacities"][:20] = -7.0  # an opacity of .0009
    write_ply("in.ply", scene)
    assert edit.main(words(teacher, "--out", "run")) == 0
    assert len(read_ply("run/splat.ply")[0]["means"]) == 40


def rows_of(path: str) -> np.ndarray:
    """Return the vertices of a .ply as bytes, one row each."""
    content = Path(path).read_bytes()
    table = content[content.index(b"end_header\n") + len(b"end_header\n") :]
    return np.frombuffer(table, f"V{4 * (17 + 45)}")


@pytest.mark.parametrize("method", ["sdi", "sds", "pds", "dreamcatalyst"])
@pytest.mark.parametrize("mask", ["box:305,-50,-30,340,10,40", "chosen.npy"])
def test_what_is_outside_a_mask_keeps_every_byte(teacher, method, mask):
    generator = torch.Generator().manual_seed(0)
    scene = init_blob(60, sh_degree=3, opacity=0.5, generator=generator)
    with torch.no_grad():
        scene["shN"].normal_(0.0, 0.2, generator=generator)
        scene["opacities"][:20] = -7.0  # what no renderer shows stays too
    write_ply("in.ply", moved(moved(scene, (0.0, 0.0, 0.0), 40.0), (300.0, -20.0, 7.0), 1.0))
    x = read_ply("in.ply")[0]["means"].detach()[:, 0]
    inside = (x >= 305).numpy()
    np.save("chosen.npy", inside.nonzero()[0])
    dense = ["densification.kind=default", "densification.start=1", "densification.every=1"]
    more = ["--mask", mask, "--method", method, *dense, "densification.grow_grad2d=0", "edit.seeds=7"]
    assert edit.main(words(teacher, *more, "--out", "run")) == 0
    before, after = rows_of("in.ply"), rows_of("run/splat.ply")
    kept = np.isin(after, before)
    assert (after[kept] == before[~inside]).all() and len(after) > len(before)
    born = read_ply("run/splat.ply")[0]["means"].detach()[torch.from_numpy(~kept)]
    low, high = born.amin(0), born.amax(0)
    assert low[0] >= 305 - 5 and high[2] <= 50


def test_a_part_grows_where_there_was_nothing(teacher):
    write_ply("in.ply", init_blob(40, radius=0.3))
    more = ["--mask", "sphere:0,0,0.6,0.2", "edit.seeds=30", "gaussians.final_opacity=0"]
    assert edit.main(words(teacher, *more, "--out", "run")) == 0
    after = read_ply("run/splat.ply")[0]["means"].detach()
    assert len(after) >= 70 and ((after - torch.tensor([0, 0, 0.6])).norm(dim=1) < 0.201).sum() >= 30


def test_an_edit_with_a_mask_resumes_exactly_without_its_files(teacher, monkeypatch):
    write_ply("in.ply", init_blob(40))
    np.save("chosen.npy", np.arange(10))
    change = words(teacher, "--mask", "chosen.npy", "edit.seeds=5")
    assert edit.main([*change, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert edit.main([*change, "--out", "stopped"]) == 130
    Path("chosen.npy").unlink()
    Path("in.ply").unlink()
    assert train.main(["--resume", "stopped"]) == 0
    assert Path("stopped/splat.ply").read_bytes() == Path("whole/splat.ply").read_bytes()


def test_a_mask_of_words_is_shown_before_it_is_used(teacher, capfd):
    write_ply("in.ply", init_blob(200, opacity=0.5))
    assert edit.main(words(teacher, "--mask", "the dog", "--preview-mask", "mask.png")) == 0
    assert "of 200 Gaussians" in capfd.readouterr().err and not Path("outputs").exists()
    pixels = np.asarray(Image.open("mask.png")).astype(int)
    above, below = pixels[:16], pixels[16:]
    assert pixels.shape == (32, 64, 3)
    redder = (below[..., 0] - below[..., 2]) - (above[..., 0] - above[..., 2])
    assert redder.max() > 30 and redder.min() >= -2
    assert edit.main(words(teacher, "--mask", "the dog", "--out", "run")) == 0
    assert 0 < len(np.load("run/mask.npy")) < 200


def test_a_foreign_splat_is_set_upright(teacher):
    write_ply("in.ply", init_blob(60, opacity=0.5))
    same = ["--source-prompt", "a red dog", "--target-prompt", "a red dog", "--method", "dds"]
    begin = ["--splat", "in.ply", *same, "--prior", teacher, *TINY]
    assert edit.main([*begin, "--from", "trellis", "--out", "named"]) == 0
    assert edit.main([*begin, "--from-up", "-y", "--out", "up"]) == 0
    y = read_ply("in.ply")[0]["means"].detach()[:, 1]
    for run in ("named", "up"):
        torch.testing.assert_close(
            read_ply(f"{run}/splat.ply")[0]["means"].detach()[:, 2], -y, atol=1e-4, rtol=0
        )
