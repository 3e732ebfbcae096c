"""The place of a splat on which something is put."""

import pytest
import torch

from splatdistill.edit import configure, parse
from splatdistill.formats.ply import write_ply
from splatdistill.scene.gaussians import extent, init_blob, moved
from splatdistill.scene.masks import read_mask
from splatdistill.training.framing import drawn_on_top

TARGET = "a hamburger on top of a table"


@pytest.fixture
def ball(tmp_path):
    blob = init_blob(300, 0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))
    ball = moved(blob, (1.0, 0.0, 2.0), 3.0)
    write_ply(tmp_path / "ball.ply", ball)
    return ball, str(tmp_path / "ball.ply")


def drawn():
    boxes = drawn_on_top("real", TARGET, 0)
    assert boxes is not None
    return boxes


def configured(path: str, mask: str, target: str = TARGET):
    told = ["--splat", path, "--target-prompt", target, "--source-prompt", "a table", "--prior", "real"]
    return configure(parse([*told, "--mask", mask])).edit


def test_what_is_put_on_top_is_where_the_teacher_draws_it(ball):
    splat, path = ball
    (middle, half), (_, below) = drawn()
    edit = configured(path, "above")
    region = read_mask(edit.mask, splat).moved(edit.shift, edit.scale)
    torch.testing.assert_close(region.middle[:2], middle[:2], atol=1e-2, rtol=0)
    assert float(region.middle[2] - region.half[2]) == pytest.approx(float(middle[2] - half[2]), abs=1e-2)
    assert bool((region.half > half).all())
    low, high = extent(moved(splat, edit.shift, edit.scale))
    assert float((high - low).max()) == pytest.approx(2 * float(below.max()), rel=1e-3)


def test_a_box_of_ones_own_is_kept_and_what_is_added_stands_on_its_bottom(ball):
    splat, path = ball
    low, high = extent(splat)
    x, y, z = ((low + high) / 2).tolist()[:2] + [float(high[2])]
    edit = configured(path, mask := f"box:{x - 1},{y - 1},{z},{x + 1},{y + 1},{z + 2}")
    (middle, half), _ = drawn()
    region = read_mask(mask, splat).moved(edit.shift, edit.scale)
    assert edit.mask == mask and bool((region.half >= half - 1e-4).all())
    assert float(region.middle[2] - region.half[2]) == pytest.approx(float(middle[2] - half[2]), abs=1e-4)


def test_other_edits_are_left_as_they_are(ball):
    _, path = ball
    assert drawn_on_top("real", "a red table", 0) is None
    one, pair = (configured(path, "sphere:3,0,6,0.1", text) for text in ("a red table", TARGET))
    assert (one.shift, one.scale) == (pair.shift, pair.scale)  # too small a region: the splat would be huge
    assert configured(path, "above", "a red table").mask == "above"
