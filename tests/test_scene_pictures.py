"""Pictures from files: alpha, plain backgrounds, margins, and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from splatdistill.errors import UserError
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import Reference, read_picture


def disc(mode: str, background: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A red disc with a white hole of the background's colour in the middle."""
    picture = Image.new(mode, size, background)  # pyright: ignore[reportArgumentType]
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 31, 31), fill=(200, 20, 20))
    draw.ellipse((17, 17, 22, 22), fill=(255, 255, 255))
    return picture


def test_a_plain_background_is_taken_away_and_what_it_encloses_is_kept(tmp_path: Path) -> None:
    disc("RGB", (255, 255, 255)).save(tmp_path / "disc.png")
    rgb, alpha = read_picture(tmp_path / "disc.png")
    assert alpha[0, 0, 0] == 0 and alpha[0, 20, 10] == 1
    assert alpha[0, 20, 20] == 1  # white inside the disc is part of the thing
    assert abs(alpha.mean().item() - 24 * 24 * 0.785 / 1600) < 0.02
    torch.testing.assert_close(rgb[:, 20, 10], torch.tensor([200, 20, 20]) / 255)


def test_noise_of_a_jpeg_is_background_too(tmp_path: Path) -> None:
    disc("RGB", (128, 128, 128), (80, 80)).save(tmp_path / "disc.jpg", quality=85)
    alpha = read_picture(tmp_path / "disc.jpg")[1]
    assert alpha[0, :4].max() == 0 and alpha[0, 20, 10] == 1


def test_an_alpha_channel_is_used_as_it_is(tmp_path: Path) -> None:
    picture = disc("RGB", (255, 255, 255))
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "disc.png")
    alpha = read_picture(tmp_path / "disc.png")[1]
    assert alpha[0, 0].max() < 0.05 and alpha[0, -1].min() > 0.95 and 0.4 < alpha.mean() < 0.6


def test_a_wide_picture_becomes_square_with_the_thing_in_the_middle(tmp_path: Path) -> None:
    disc("RGB", (0, 0, 0), (40, 60)).save(tmp_path / "tall.png")
    rgb, alpha = read_picture(tmp_path / "tall.png")
    assert rgb.shape == (3, 60, 60) and alpha[0, :, :10].max() == 0 and alpha[0, 20, 20] == 1


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.write_bytes(b"not a picture"), "cannot read"),
        (lambda path: Image.new("RGB", (16, 16), "red").save(path), "shows nothing"),
        (lambda path: Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(path), "shows nothing"),
        (lambda path: Image.new("L", (5000, 1)).save(path), "at most"),
        (lambda path: None, "cannot read"),
    ],
)
def test_what_is_no_picture_of_a_thing_is_a_users_error(tmp_path: Path, make, word: str) -> None:
    make(tmp_path / "it.png")
    with pytest.raises(UserError, match=word):
        read_picture(tmp_path / "it.png")


def test_a_saved_reference_reads_back_the_same(tmp_path: Path) -> None:
    disc("RGB", (255, 255, 255)).save(tmp_path / "disc.png")
    rgb, alpha = read_picture(tmp_path / "disc.png")
    Reference(rgb, alpha, orbit(0.0, 15.0, 3.0, 40.0, 40, 40)).save(tmp_path / "copy.png")
    again = read_picture(tmp_path / "copy.png")
    assert torch.equal(again[0], rgb) and torch.equal(again[1], alpha)


def test_resizing_does_not_mix_in_the_hidden_colour(tmp_path: Path) -> None:
    rgb = torch.zeros(3, 8, 8)
    rgb[0, :, :4], rgb[1, :, 4:] = 1.0, 1.0  # red where it is seen, green where not
    alpha = torch.zeros(1, 8, 8)
    alpha[:, :, :4] = 1.0
    small = Reference(rgb, alpha, orbit(0.0, 0.0, 3.0, 40.0, 8, 8)).resized(3)
    shown = small.before(torch.tensor([[0.0, 0.0, 1.0]]))
    assert shown[:, 1].max() < 1e-4 and small.camera.width == 3
    torch.testing.assert_close(shown[0, 0] + shown[0, 2], torch.ones(3, 3), atol=1e-4, rtol=0)
