import math

import numpy as np
import pytest
import torch

from splatdistill.priors import album
from splatdistill.priors.album import PICTURES, SIDE, Album, Page
from splatdistill.priors.words import COLORS


def box(color: tuple[int, int, int], half=(0.5, 0.5, 0.5)) -> Page:
    """Make a page of a plain rectangle, about as a box of those half sizes looks."""
    size = np.array(half) * album.fit(np.array(half))
    focal = SIDE / 2 / math.tan(album.FOV / 2) / album.DISTANCE
    across, high = (round(float(focal * x)) for x in (size[:2].max(), size[2]))
    pictures = np.zeros((PICTURES, SIDE, SIDE, 4), np.uint8)
    middle = SIDE // 2
    pictures[:, middle - high : middle + high, middle - across : middle + across] = (*color, 255)
    return Page(pictures, np.array(half, np.float32))


def rows_of(picture: np.ndarray, channel: int) -> np.ndarray:
    """Rows in which a color is the strongest."""
    strongest = (picture[..., :3].argmax(-1) == channel) & (picture[..., 3] > 200)
    return np.flatnonzero(strongest.any(1))


def test_the_nearest_pictures_are_around_the_view_and_the_nearest_is_first():
    azimuth = torch.tensor([14.0, 359.0, 95.0]).deg2rad()
    elevation = torch.tensor([2.0, -5.0, 50.0]).deg2rad()
    chosen = album.nearest(azimuth, elevation)
    degrees = torch.stack([album.AZIMUTHS[chosen], album.ELEVATIONS[chosen]], -1).rad2deg().round().tolist()
    assert degrees[0][:2] == [[0, 2], [30, 2]]
    assert degrees[1] == [[0, 2], [330, 2], [0, 26]]
    assert degrees[2] == [[120, 52], [60, 52], [90, 26]]


def test_a_picture_before_a_background_is_that_picture():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (2, 2, 8, 8, 4), dtype=np.uint8)
    rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
    background = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    seen = album.before(torch.from_numpy(rgba), torch.zeros(2), background, 8)
    flat = torch.from_numpy(rgba).float() / 255
    expected = flat[..., :3] + (1 - flat[..., 3:]) * background[:, None, None, None]
    torch.testing.assert_close(seen, expected.permute(0, 1, 4, 2, 3), atol=1e-4, rtol=0)


def test_zoom_enlarges_as_the_camera_does():
    closer = album.zoom_of(torch.tensor([1.5]), torch.tensor([album.FOV]))
    assert float(closer.exp()) == pytest.approx(2.0)
    page = box((255, 0, 0))
    seen = album.before(
        torch.from_numpy(page.pictures[None, :1]), torch.tensor([0.5]).log(), torch.ones(1, 3)
    )
    covered = float((seen[0, 0, 1] < 0.5).sum() / (page.pictures[0, ..., 3] > 0).sum())
    assert covered == pytest.approx(0.25, rel=0.1)


def test_on_top_of_puts_one_above_the_other():
    red, blue = box((255, 0, 0)), box((0, 0, 255))
    both = album.together(red, blue, "on top of")
    upper, lower = rows_of(both.pictures[0], 0), rows_of(both.pictures[0], 2)
    assert upper.max() <= lower.max() and upper.mean() < lower.mean() and len(upper) > 10 < len(lower)
    np.testing.assert_allclose(both.half, [0.5, 0.5, 1.0], atol=1e-6)
    shrunk = album.together(red, box((0, 0, 255), (0.1, 0.1, 0.5)), "on top of")
    assert shrunk.half[0] == pytest.approx(0.5 * 0.45)  # too wide for what is below


def test_next_to_is_on_the_left_from_the_front_and_on_the_right_from_behind():
    both = album.together(box((255, 0, 0)), box((0, 0, 255)), "next to")
    front, back = both.pictures[0], both.pictures[6]

    def column(picture: np.ndarray, channel: int) -> float:
        strongest = (picture[..., :3].argmax(-1) == channel) & (picture[..., 3] > 200)
        return float(np.nonzero(strongest)[1].mean())

    assert column(front, 0) < SIDE / 2 < column(front, 2)
    assert column(back, 2) < SIDE / 2 < column(back, 0)


def test_only_what_is_chosen_is_made():
    parts = box((255, 0, 0)), box((0, 0, 255))
    whole = album.together(*parts, "on top of").pictures
    assert np.array_equal(album.together(*parts, "on top of", [3, 14]).pictures, whole[[3, 14]])


def test_an_album_comes_back_from_its_file(tmp_path):
    pages = [box((250, 20, 20)), box((20, 20, 250), (0.2, 0.4, 0.5))]
    strips = [album.strip(page, 60) for page in pages]
    halves = np.stack([page.half for page in pages])
    made = Album(strips, halves, ("a", "b"), ("car", "car"), ("old red car", "blue van;wooden car"))
    with open(tmp_path / album.FILE, "wb") as file:
        made.save(file)
    again = Album.load(tmp_path / album.FILE)
    for number, page in enumerate(pages):
        read = again.page(number)
        assert np.abs(read.pictures.astype(int) - page.pictures).mean() < 1.0
        np.testing.assert_array_equal(read.half, page.half)
    assert again.find("car", ["wooden", "car"]) == [1] and again.find("car", ["car"]) == [0, 1]
    assert again.find("dog", []) == []


def test_numbers_tell_pages_and_pairs_apart():
    pages = [box((250, 20, 20)), box((20, 20, 250), (0.2, 0.4, 0.5)), box((20, 250, 20))]
    strips = [album.strip(page, 60) for page in pages]
    made = Album(strips, np.stack([page.half for page in pages]), ("a", "b", "c"), ("x",) * 3, ("",) * 3)
    numbers = [made.numbers([[a]], "", 0, 1)[0] for a in range(3)]
    for relation in album.BETWEEN:
        numbers += [made.numbers([[a], [b]], relation, 0, 1)[0] for a in range(3) for b in range(3)]
    assert len(set(numbers)) == 3 + 9 * len(album.BETWEEN)
    top = made.page(int(made.numbers([[1], [2]], "on top of", 0, 1)[0]))
    expected = album.together(made.page(1), made.page(2), "on top of")
    assert np.array_equal(top.pictures, expected.pictures)
    most = album.MOST + (album.MOST**2) * len(album.BETWEEN)
    assert float(torch.tensor(float(most), dtype=torch.float32)) == most


def test_a_thing_that_was_shown_in_all_colors_is_found_by_any():
    phrases = (f"wooden chair;{album.TINTED}", "blue office chair", "old chair")
    made = Album([b""] * 3, np.ones((3, 3)), ("a", "b", "c"), ("chair",) * 3, phrases)
    assert made.find("chair", ["blue", "chair"]) == [0, 1] and made.find("chair", ["red", "chair"]) == [0]
    assert made.find("chair", ["blue", "office", "chair"]) == [1]
    assert made.find("chair", ["red", "wooden", "chair"]) == made.find("chair", ["wooden", "chair"]) == [0]


def test_a_page_shows_a_thing_in_a_color_that_it_was_shown_in_and_lacks():
    pages = [box((250, 20, 20)), box((120, 120, 120), (0.2, 0.4, 0.5))]
    strips, halves = [album.strip(page, 90) for page in pages], np.stack([page.half for page in pages])
    phrases = (f"red car;{album.TINTED}", "gray cube")
    made = Album(strips, halves, ("a", "b"), ("car", "cube"), phrases)
    red, green = (list(COLORS).index(name) for name in ("red", "green"))

    def seen(*asked) -> np.ndarray:
        shown = made.page(*asked).pictures
        return shown[shown[..., 3] == 255][:, :3].mean(0)

    assert seen(0, (green, -1)).argmax() == 1 and seen(0, (-1, -1)).argmax() == 0
    assert np.array_equal(made.page(0, (red, -1)).pictures, made.page(0).pictures)  # it has that color
    assert np.array_equal(made.page(1, (green, -1)).pictures, made.page(1).pictures)  # never shown in another
    number = int(made.numbers([[1], [0]], "on top of", 0, 1)[0])
    plain = made.page(number).pictures
    assert not np.array_equal(made.page(number, (-1, green)).pictures, plain)
    assert np.array_equal(made.page(number, (green, -1)).pictures, plain)


def test_the_seed_chooses_where_there_is_a_choice():
    made = Album([b""] * 3, np.ones((3, 3)), ("a", "b", "c"), ("x",) * 3, ("",) * 3)
    assert [made.numbers([[0, 2]], "", seed, 1) for seed in range(3)] == [[0], [2], [0]]
    assert made.numbers([[0, 1, 2]], "", 1, 2) == [1, 2] and made.numbers([[0]], "", 5, 4) == [0]
    pairs = [made.numbers([[0, 1], [2]], "and", seed, 3) for seed in range(2)]
    assert len(pairs[0]) == 1 and pairs[0] != pairs[1]
    assert made.numbers([[0], []], "and", 0, 1) == made.numbers([], "", 0, 1) == [album.NOTHING]
