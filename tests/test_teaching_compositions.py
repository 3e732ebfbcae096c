import numpy as np
import pytest

from splatdistill.teaching import compositions, meshes
from splatdistill.teaching.meshes import plain, unit_solid
from splatdistill.teaching.solids import KINDS

BOX = plain(unit_solid(KINDS["box"], 0.0), np.ones(4)).grounded()


def test_the_upper_thing_stands_on_the_surface_under_it():
    slab = BOX.moved(np.diag([1.0, 1.0, 0.1]))
    leg = BOX.moved(np.diag([0.1, 0.1, 1.0]), np.array([0.45, 0.45, 0]))  # taller than the slab, beside it
    table = meshes.joined([slab, leg])
    small = BOX.moved(np.eye(3) * 0.3)
    both = compositions.stacked(small, table)
    upper = both.positions[: len(small.positions)]
    assert upper[:, 2].min() == pytest.approx(0.1, abs=1e-5)


def test_what_is_too_wide_for_its_support_is_made_smaller():
    wide = BOX.moved(np.diag([1.0, 4.0, 1.0]))
    both = compositions.stacked(wide, BOX)
    assert np.ptp(both.positions[: len(wide.positions), 1]) < 4.0


def test_height_at_nothing_is_the_top():
    assert compositions.height_at(BOX, np.array([[9.0, 9.0]])) == pytest.approx(1.0)


def test_the_first_of_two_is_on_the_left_seen_from_the_front():
    both = compositions.beside(BOX, BOX)
    first, second = both.positions[: len(BOX.positions)], both.positions[len(BOX.positions) :]
    assert first[:, 1].max() < second[:, 1].min()  # at azimuth 0 the right of the picture is +Y


def test_cameras_of_a_scene_ring_it_and_one_is_free():
    cameras = compositions.draw_cameras(32, np.random.default_rng(1))
    assert len(cameras) == compositions.VIEWS
    turns = (cameras.azimuth_deg[1:4] - cameras.azimuth_deg[:3]).numpy() % 360
    np.testing.assert_allclose(turns, 90, atol=1e-3)
    assert np.ptp(cameras.elevation_deg[:4].numpy()) == 0


def test_a_background_stands_out():
    white = np.full((1, 8, 8, 4), 255, np.uint8)
    for seed in range(30):
        color = compositions.draw_background(white, np.random.default_rng(seed))
        assert np.linalg.norm(color - 1) > compositions.CONTRAST


def test_before_keeps_what_covers_and_shows_the_rest():
    rgba = np.array([[[[100, 0, 0, 255], [0, 0, 0, 0], [50, 0, 0, 128]]]], np.uint8)
    seen = compositions.before(rgba, np.array([0.0, 1.0, 0.0]))
    assert seen[0, 0].tolist() == [[100, 0, 0], [0, 255, 0], [50, 127, 0]]
