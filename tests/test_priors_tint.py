import numpy as np
import pytest

from splatdistill.priors import tint
from splatdistill.priors.words import COLORS

BROWN, GRAY, BLUE = np.array([0.45, 0.26, 0.12]), np.full(3, 0.5), np.array([0.1, 0.2, 0.9])


def picture(*parts: tuple[np.ndarray, float], alpha: float = 1.0) -> np.ndarray:
    """Return [32, 32, 4] uint8, premultiplied: columns of colors with their shares, darker row by row."""
    shade = np.linspace(1.0, 0.6, 32)[:, None, None]
    widths = [round(32 * share) for _, share in parts]
    rgb = np.concatenate([np.broadcast_to(color, (32, n, 3)) for (color, _), n in zip(parts, widths)], 1)
    rgba = np.concatenate([rgb * shade, np.ones((*rgb.shape[:2], 1))], 2) * alpha
    return (rgba * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("main", [BROWN, GRAY, BLUE])
@pytest.mark.parametrize("name", COLORS)
def test_most_of_it_takes_the_color_and_keeps_its_shades(main, name):
    other = BLUE if main is not BLUE else BROWN
    before = picture((main, 0.75), (other, 0.25))
    after = tint.recolored(before, COLORS[name])
    assert np.array_equal(after[:, 24:], before[:, 24:]) and np.array_equal(after[..., 3], before[..., 3])
    seen = after[:, 0, :3].astype(float)
    brightest = COLORS[name] / np.max(COLORS[name])
    np.testing.assert_allclose(
        seen / seen.max(1, keepdims=True), np.broadcast_to(brightest, (32, 3)), atol=0.12
    )
    assert (np.diff(seen.sum(1)) <= 0).all() and seen[0].sum() > 1.2 * seen[-1].sum()


def test_a_thing_of_many_colors_stays_as_it_is():
    before = picture(
        *((np.array(COLORS[name]), 0.2) for name in ("red", "yellow", "green", "blue", "purple"))
    )
    assert tint.recolored(before, COLORS["pink"]) is before


def test_what_can_be_seen_through_stays_premultiplied():
    half = tint.recolored(
        np.concatenate([picture((BROWN, 1.0)), picture((BROWN, 1.0), alpha=0.5)]), (1, 0, 0)
    )
    assert (half[..., :3] <= half[..., 3:]).all() and (half[..., 1:3] == 0).all()
    np.testing.assert_allclose(half[32:, :, 0], half[:32, :, 0] / 2, atol=2)


def test_nothing_at_all_stays_nothing():
    blank = np.zeros((2, 4, 4, 4), np.uint8)
    assert not tint.recolored(blank, (1, 0, 0)).any()
