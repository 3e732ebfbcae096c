"""Pictures from files: modes, orientation, alpha, plain backgrounds, margins, and what is refused."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from splatdistill.errors import UserError
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import FORMATS, LONGEST, Reference, joined_to_edge, read_picture


def disc(mode: str, background: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a red disc with a white hole of the background's color in the middle."""
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


def landmarks(path: Path) -> tuple[tuple[float, float], ...]:
    """Return the middles (x, y) of the red and the blue spot of a picture, as shares of its side."""
    rgb, alpha = read_picture(path)
    spots = []
    for high, low in ((0, 2), (2, 0)):
        ys, xs = ((rgb[high] > 0.6) & (rgb[low] < 0.4) & (alpha[0] > 0.5)).nonzero(as_tuple=True)
        spots.append((xs.float().mean().item() / alpha.shape[-1], ys.float().mean().item() / alpha.shape[-1]))
    return tuple(spots)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_every_orientation_of_a_camera_is_brought_upright(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    picture = Image.new("RGB", (60, 80), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 10, 29, 29), fill=(220, 20, 20))
    draw.ellipse((20, 45, 49, 74), fill=(20, 20, 220))
    turn = Image.Transpose
    stored = {  # by the standard: where the first row and the first column of what is stored belong
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"it.{ending}"
    (picture.transpose(stored[orientation]) if orientation > 1 else picture).save(path, exif=exif)
    red, blue = landmarks(path)  # the square has margins of 10 at left and right
    assert red == pytest.approx((30 / 80, 20 / 80), abs=0.02)
    assert blue == pytest.approx((45 / 80, 60 / 80), abs=0.02)


def test_damaged_orientation_data_beside_a_sound_picture_is_left_out(tmp_path: Path) -> None:
    disc("RGB", (255, 255, 255)).save(tmp_path / "it.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_picture(tmp_path / "it.jpg")[1][0, 20, 10] == 1


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *[(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        *[
            (mode, "tif")
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "F", "CMYK", "LAB")
        ],
        *[(mode, "tif") for mode in ("YCbCr", "RGBX")],
        *[(mode, "jpg") for mode in ("L", "RGB", "CMYK", "YCbCr")],
        *[(mode, "gif") for mode in ("1", "L", "P", "RGB")],
        *[(mode, "webp") for mode in ("L", "RGB", "RGBA")],
        *[(mode, "bmp") for mode in ("1", "L", "P", "RGB")],
    ],
)
def test_every_mode_of_a_file_shows_the_same_gray_disc(tmp_path: Path, mode: str, ending: str) -> None:
    level = 0 if mode == "1" else 102
    gray = Image.new("L", (40, 40), 255)
    ImageDraw.Draw(gray).ellipse((8, 8, 31, 31), fill=level)
    values = np.asarray(gray)
    if mode.startswith("I;16"):
        picture = Image.fromarray(values.astype("<u2" if mode == "I;16" else ">u2") * 257)
    elif mode == "F":
        picture = Image.fromarray(values.astype(np.float32) / 255)
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        turned = ImageCms.profileToProfile(gray.convert("RGB"), *profiles, outputMode="LAB")
        assert turned is not None
        picture = turned
    else:
        picture = gray.convert("RGB").convert(mode)
    picture.save(tmp_path / f"it.{ending}")
    rgb, alpha = read_picture(tmp_path / f"it.{ending}")
    assert abs(alpha.mean().item() - 24 * 24 * 0.785 / 1600) < 0.03
    torch.testing.assert_close(rgb[:, 20, 20], torch.full((3,), level / 255), atol=0.02, rtol=0)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return the bytes of a PNG file, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


@pytest.mark.parametrize("kind", [0, 2, 4, 6])  # gray, rgb, gray with alpha, rgb with alpha
def test_sixteen_bits_a_channel_are_read_as_eight_are(tmp_path: Path, kind: int) -> None:
    disc("RGB", (255, 255, 255)).convert("L").save(tmp_path / "8.png")
    rgb, alpha = read_picture(tmp_path / "8.png")
    channels = [rgb[:1]] * (3 if kind & 2 else 1) + [alpha] * (kind >= 4)
    if kind < 4:  # without an alpha channel the white around it says where it is
        channels = [torch.where(alpha > 0, channel, 1.0) for channel in channels]
    values = (torch.cat(channels).permute(1, 2, 0) * 65535).round().numpy().astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "16.png").write_bytes(png(40, 40, 16, kind, rows))
    again, clear = read_picture(tmp_path / "16.png")
    torch.testing.assert_close(clear, alpha)
    torch.testing.assert_close(again * clear, rgb * alpha, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("depth", [8, 16])
def test_one_transparent_value_of_a_gray_picture_is_its_background(tmp_path: Path, depth: int) -> None:
    values = np.asarray(disc("RGB", (0, 0, 0)).convert("L")).astype(f">u{depth // 8}")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "it.png").write_bytes(png(40, 40, depth, 0, rows, (b"tRNS", b"\0\0")))
    alpha = read_picture(tmp_path / "it.png")[1]
    assert alpha[0, 0, 0] == 0 and alpha[0, 20, 10] == 1


def test_a_palette_with_a_transparent_color_is_read(tmp_path: Path) -> None:
    picture = disc("RGB", (255, 255, 255)).quantize(8)
    for ending in ("png", "gif"):
        picture.save(tmp_path / f"it.{ending}", transparency=picture.getpixel((0, 0)))
        alpha = read_picture(tmp_path / f"it.{ending}")[1]
        assert alpha[0, 0, 0] == 0 and alpha[0, 20, 10] == 1 and alpha[0, 20, 20] == 0


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path: Path) -> None:
    first, second = disc("RGB", (255, 255, 255)), Image.new("RGB", (40, 40), "blue")
    for ending in ("gif", "webp", "tif", "png"):
        first.save(tmp_path / f"it.{ending}", save_all=True, append_images=[second])
        assert 0.2 < read_picture(tmp_path / f"it.{ending}")[1].mean() < 0.35


def test_a_photograph_is_shrunk_and_the_thing_stays_where_it_is(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3000, 2250), (245, 245, 245))
    ImageDraw.Draw(picture).ellipse((1200, 825, 1799, 1424), fill=(200, 20, 20))
    picture.save(tmp_path / "it.jpg", quality=90)
    rgb, alpha = read_picture(tmp_path / "it.jpg")
    assert alpha.shape == (1, LONGEST, LONGEST)
    assert abs(alpha.mean().item() - 300 * 300 * np.pi / 3000**2) < 0.002
    torch.testing.assert_close(rgb[:, 512, 512], torch.tensor([200, 20, 20]) / 255, atol=0.02, rtol=0)


def test_what_is_joined_to_the_edge_is_found_around_corners() -> None:
    free = np.zeros((6, 6), bool)
    free[1, 0:5] = free[1:5, 4] = free[4, 2:5] = True  # in from the left, and round
    free[3, 2] = True  # joined to its end
    free[2, 1] = False
    assert (joined_to_edge(free) == free).all()
    free[1, 0] = False
    assert not joined_to_edge(free).any()


@pytest.mark.parametrize("size", [(40, 40), (30, 60), (60, 30)])
def test_a_photograph_without_a_plain_background_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    wall = Image.new("RGB", size, "white")  # a table before a wall: half of it is one color
    ImageDraw.Draw(wall).rectangle((0, size[1] // 2, *size), fill=(120, 80, 40))
    wall.save(tmp_path / "wall.png")
    Image.radial_gradient("L").resize(size).convert("RGB").save(tmp_path / "gradient.png")
    for name in ("noise", "wall", "gradient"):
        with pytest.raises(UserError, match=r"no plain background.*PNG with transparency"):
            read_picture(tmp_path / f"{name}.png")


@pytest.mark.parametrize("size", [(40, 40), (20, 60)])
def test_an_opaque_alpha_channel_hides_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGBA", size, (200, 20, 20, 252)).save(tmp_path / "it.png")
    with pytest.raises(UserError, match="shows nothing"):
        read_picture(tmp_path / "it.png")
    full = Image.new("RGBA", size, (200, 20, 20, 255))
    full.putpixel((0, 0), (0, 0, 0, 0))
    full.save(tmp_path / "full.png")
    with pytest.raises(UserError, match="no background"):
        read_picture(tmp_path / "full.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.write_bytes(b"not a picture"), "cannot read"),
        (lambda path: path.write_bytes(b""), "cannot read"),
        (lambda path: path.write_bytes(EPS), "cannot read"),
        (lambda path: path.mkdir(), "no picture"),
        (lambda path: os.mkfifo(path), "no picture"),
        (lambda path: Image.new("RGB", (16, 16), "red").save(path), "shows nothing"),
        (lambda path: Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(path), "shows nothing"),
        (lambda path: path.write_bytes(png(10000, 10000, 1, 0, b"")), "at most 67 million"),
        (lambda path: path.write_bytes(png(200000, 200000, 1, 0, b"")), "cannot read"),
        (lambda path: Image.new("I", (16, 16)).save(path, "TIFF"), "cannot read.*8 or 16 bits"),
        (lambda path: Image.new("F", (16, 16), 300.0).save(path, "TIFF"), "cannot read.*8 or 16 bits"),
        (lambda path: None, "no picture"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_of_a_thing_is_a_users_error(tmp_path: Path, make, word: str) -> None:
    make(tmp_path / "it.png")
    with pytest.raises(UserError, match=word):
        read_picture(tmp_path / "it.png")


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_a_users_error(tmp_path: Path, format: str) -> None:
    noisy = np.random.default_rng(0).integers(0, 60, (40, 40, 3)).astype(np.uint8)
    picture = Image.fromarray(noisy)
    picture.paste(disc("RGB", (255, 255, 255)).crop((0, 0, 40, 10)))
    path = tmp_path / "it"
    picture.save(path, format)
    whole = path.read_bytes()
    for length in range(4, len(whole) * 3 // 4, max(len(whole) // 40, 1)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as told:
            read_picture(path)
        assert "\n" not in str(told.value)


def test_a_saved_reference_reads_back_the_same(tmp_path: Path) -> None:
    disc("RGB", (255, 255, 255)).save(tmp_path / "disc.png")
    rgb, alpha = read_picture(tmp_path / "disc.png")
    Reference(rgb, alpha, orbit(0.0, 15.0, 3.0, 40.0, 40, 40)).save(tmp_path / "copy.png")
    again = read_picture(tmp_path / "copy.png")
    assert torch.equal(again[0], rgb) and torch.equal(again[1], alpha)


def test_resizing_does_not_mix_in_the_hidden_color(tmp_path: Path) -> None:
    rgb = torch.zeros(3, 8, 8)
    rgb[0, :, :4], rgb[1, :, 4:] = 1.0, 1.0  # red where it is seen, green where not
    alpha = torch.zeros(1, 8, 8)
    alpha[:, :, :4] = 1.0
    small = Reference(rgb, alpha, orbit(0.0, 0.0, 3.0, 40.0, 8, 8)).resized(3)
    shown = small.before(torch.tensor([[0.0, 0.0, 1.0]]))
    assert shown[:, 1].max() < 1e-4 and small.camera.width == 3
    torch.testing.assert_close(shown[0, 0] + shown[0, 2], torch.ones(3, 3), atol=1e-4, rtol=0)
