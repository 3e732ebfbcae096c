"""What a box or a stroke on the picture chooses."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from splatdistill.scene.gaussians import init_blob
from splatdistill.viewer.drawing import Pose
from splatdistill.viewer.picking import Box, Stroke, covered

FRONT = Pose((0.5, -0.5, -0.5, 0.5), (3.0, 0.0, 0.0), 0.8, 2.0)  # looks along -X; +Y is to the right


def four():
    """Return a scene of four opaque balls: left, right, in the middle, and behind that."""
    scene = init_blob(4, scale=0.2, opacity=0.99)
    with torch.no_grad():
        places = [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0], [-2.0, 0.0, 0.0]]
        scene["means"].copy_(torch.tensor(places))
    return scene


@pytest.mark.parametrize(
    "box, expected",
    [
        (Box((0.0, 0.0), (0.5, 1.0)), [True, False, False, False]),
        (Box((1.0, 1.0), (0.51, 0.0)), [False, True, False, False]),  # drawn from any corner
        (Box((0.45, 0.45), (0.55, 0.55)), [False, False, True, True]),
        (Box((-1.0, -1.0), (2.0, 2.0)), [True] * 4),
    ],
)
def test_a_box_chooses_the_centers_in_it(box, expected):
    scene = four()
    with torch.no_grad():
        scene["means"][2:, 1] = 0.02
    assert covered(scene, FRONT, box, seen_only=False).tolist() == expected


def test_what_something_hides_is_not_seen():
    everything = Box((0.0, 0.0), (1.0, 1.0))
    assert covered(four(), FRONT, everything, seen_only=True).tolist() == [True, True, True, False]


def test_what_is_behind_the_camera_is_in_no_box():
    scene = four()
    with torch.no_grad():
        scene["means"][0] = torch.tensor([4.0, 0.0, 0.0])
    assert not covered(scene, FRONT, Box((-9.0, -9.0), (9.0, 9.0)), seen_only=False)[0]


def test_a_stroke_reaches_its_radius_on_both_sides():
    stroke = Stroke(((0.2, 0.5), (0.8, 0.5)), 0.1)
    points = torch.tensor([[0.5, 0.5], [0.5, 0.59], [0.5, 0.61], [0.16, 0.5], [0.14, 0.5], [0.9, 0.9]])
    assert stroke.covers(points, 2.0).tolist() == [True, True, False, True, False, False]


def test_a_dab_is_a_disk_in_pixels():
    dab = Stroke(((0.5, 0.5),), 0.2)
    points = torch.tensor([[0.59, 0.5], [0.61, 0.5], [0.5, 0.69], [0.5, 0.71]])
    assert dab.covers(points, 2.0).tolist() == [True, False, True, False]


def test_a_long_stroke_is_the_sum_of_its_parts():
    rng = np.random.default_rng(0)
    line = [(float(x), float(y)) for x, y in rng.random((50, 2))]
    points = torch.from_numpy(rng.random((500, 2))).float()
    whole = Stroke(tuple(line), 0.01).covers(points, 1.3)
    parts = [Stroke((a, b), 0.01).covers(points, 1.3) for a, b in pairwise(line)]
    assert torch.equal(whole, torch.stack(parts).any(0)) and whole.any() and not whole.all()
