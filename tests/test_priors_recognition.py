import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splatdistill.priors import album
from splatdistill.priors.album import AZIMUTHS, DISTANCE, ELEVATIONS, FOV, PICTURES, RINGS, SIDE, Album
from splatdistill.priors.recognition import LIKELIER, SURE, Sighting, likely, recognized

COLORS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))


def page(color: tuple[int, int, int]) -> album.Page:
    """Return pictures that all differ: a box whose place goes around, higher in each ring."""
    pictures = np.zeros((PICTURES, SIDE, SIDE, 4), np.uint8)
    for i in range(PICTURES):
        x, y = (int(64 + 16 * f(float(AZIMUTHS[i]))) for f in (math.cos, math.sin))
        up = 8 * next(
            r
            for r, (height, _) in enumerate(RINGS)
            if math.isclose(math.radians(height), ELEVATIONS[i], abs_tol=1e-6)
        )
        pictures[i, y - 24 - up : y + 24 - up, x - 24 : x + 24] = (*color, 255)
    return album.Page(pictures, np.ones(3))


@pytest.fixture(scope="module")
def boxes() -> Album:
    strips = [album.strip(page(color), 90) for color in COLORS]
    return Album(strips, np.ones((3, 3)), ("a", "b", "c"), ("x", "y", "z"), ("",) * 3)


def camera(number: int) -> torch.Tensor:
    return torch.tensor([float(ELEVATIONS[number]), DISTANCE, FOV])


def shown(boxes: Album, model: int, number: int) -> torch.Tensor:
    return torch.from_numpy(boxes.page(model).pictures[number]).permute(2, 0, 1).float() / 255


def larger(picture: torch.Tensor, times: float) -> torch.Tensor:
    theta = torch.tensor([[[1 / times, 0.0, 0.0], [0.0, 1 / times, 0.0]]])
    grid = F.affine_grid(theta, [1, 4, SIDE, SIDE], align_corners=False)
    return F.grid_sample(picture[None], grid, align_corners=False)[0]


def test_thumbnails_are_the_pictures_made_small(boxes):
    assert boxes.thumbnails.shape == (3, PICTURES, 4, album.THUMB, album.THUMB)
    small = F.avg_pool2d(shown(boxes, 1, 5)[None], SIDE // album.THUMB)[0]
    torch.testing.assert_close(boxes.thumbnails[1, 5] / 255.0, small, atol=0.03, rtol=0)


@pytest.mark.parametrize(("model", "number", "zoom"), [(0, 0, 0.0), (1, 7, 0.2), (2, 15, -0.3)])
def test_what_looks_most_like_the_picture_is_the_first_guess(boxes, model, number, zoom):
    first = likely(boxes, larger(shown(boxes, model, number), math.exp(zoom)), camera(number))[0]
    assert first.number == model
    assert first.azimuth == pytest.approx(float(AZIMUTHS[number])) and first.zoom == pytest.approx(zoom)


def test_a_camera_that_sees_things_larger_is_no_zoom(boxes):
    near = torch.tensor([float(ELEVATIONS[7]), DISTANCE / math.exp(0.3), FOV])
    assert likely(boxes, larger(shown(boxes, 1, 7), math.exp(0.3)), near)[0].zoom == 0.0


def test_between_two_pictures_the_azimuth_is_halfway(boxes):
    both = (shown(boxes, 2, 3) + shown(boxes, 2, 4)) / 2
    first = likely(boxes, both, camera(3))[0]
    assert (first.number, first.azimuth) == (2, pytest.approx(math.radians(105)))
    last = (shown(boxes, 2, 11) + shown(boxes, 2, 0)) / 2
    assert likely(boxes, last, camera(0))[0].azimuth == pytest.approx(math.radians(345))


def test_from_above_all_it_is_compared_with_the_highest_pictures(boxes):
    above = torch.tensor([math.radians(88.0), DISTANCE, FOV])
    guess = likely(boxes, shown(boxes, 0, 26), above)[0]
    assert (guess.number, guess.azimuth) == (0, pytest.approx(float(AZIMUTHS[26])))


def guesses(count: int = 6) -> list[Sighting]:
    return [Sighting(number, str(number // 2), 0.3 * number, 0.0) for number in range(count)]


def teacher(right: Sighting, alone: float):
    """Return errors that are least, .1, at the right page, azimuth and zoom."""
    asked: list[int] = []

    def error(one):
        turned = 0.2 * (1 - math.cos(one.azimuth - right.azimuth))
        return 0.1 + abs(one.number - right.number) + turned + abs(one.zoom - right.zoom)

    def surprise(seen, levels):
        asked.append(len(seen) * len(levels))
        return torch.tensor([alone if one is None else error(one) for one in seen])

    return surprise, asked


@pytest.mark.parametrize("azimuth", [0.0, 1.0, 2.5, 5.0])
def test_the_teacher_s_error_decides_the_page_the_azimuth_and_the_size(azimuth):
    surprise, asked = teacher(Sighting(3, "1", azimuth, 0.15), alone=1.0)
    found = recognized(guesses(), surprise)
    assert found is not None and found.number == 3
    assert math.cos(found.azimuth - azimuth) > math.cos(math.radians(2.6))
    assert found.zoom == pytest.approx(0.15)
    assert asked[1] == LIKELIER * 12 * 3


def test_what_no_page_explains_surely_is_not_known():
    """The nearest of another noun has an error of some 1.1."""
    least = 0.1**2 / SURE / 1.1
    for alone, known in ((1.1 * least, True), (0.9 * least, False)):
        surprise, _ = teacher(Sighting(2, "1", 0.6, 0.0), alone)
        assert (recognized(guesses(), surprise) is not None) is known


def test_models_of_one_noun_are_no_rivals():
    alike = [replace(guess, noun="x") for guess in guesses()]
    for alone, known in ((0.1 / SURE**0.5 * 1.1, True), (0.1 / SURE**0.5 * 0.9, False)):
        surprise, _ = teacher(Sighting(2, "x", 0.6, 0.0), alone)
        assert (recognized(alike, surprise) is not None) is known


def test_an_album_without_pages_knows_nothing():
    assert recognized([], lambda seen, levels: torch.zeros(len(seen))) is None
