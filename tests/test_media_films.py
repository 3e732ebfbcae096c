import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.media import films


def frames(count=6, height=18, width=25):
    """Gray that brightens, so that frames differ; of odd width."""
    return [np.full((height, width, 3), 30 * i, np.uint8) for i in range(count)]


def test_a_webp_is_an_endless_animation_of_all_frames(tmp_path):
    films.write_webp(tmp_path / "a.webp", frames(), 3.0)
    animation = Image.open(tmp_path / "a.webp")
    assert (
        animation.format == "WEBP" and getattr(animation, "n_frames", 1) == 6 and animation.size == (25, 18)
    )
    assert animation.info["loop"] == 0
    first = np.asarray(animation.convert("RGB"), np.int64)
    animation.seek(3)
    assert np.abs(first - np.asarray(animation.convert("RGB"))).max() > 50


@pytest.mark.skipif(films.find_ffmpeg() is None, reason="needs ffmpeg, or imageio-ffmpeg")
def test_an_mp4_holds_every_frame(tmp_path):
    assert films.write_mp4(tmp_path / "a.mp4", iter(frames()), 12.0)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    command = [
        films.find_ffmpeg(),
        "-v",
        "error",
        "-i",
        tmp_path / "a.mp4",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    pixels = subprocess.run(command, capture_output=True, check=True).stdout
    shown = np.frombuffer(pixels, np.uint8).reshape(6, 18, 26, 3)  # made even
    assert np.abs(shown[:, 9, 12].astype(int) - np.arange(6)[:, None] * 30).max() < 6


def test_without_ffmpeg_there_is_no_mp4(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "find_ffmpeg", lambda: None)
    assert not films.write_mp4(tmp_path / "a.mp4", frames(), 12.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["true", "false"])
def test_an_ffmpeg_that_does_not_work_makes_no_mp4(tmp_path, monkeypatch, program):
    monkeypatch.setattr(films, "find_ffmpeg", lambda: shutil.which(program))
    assert not films.write_mp4(tmp_path / "a.mp4", frames(height=600, width=800), 12.0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        films.write_webp(tmp_path / "none" / "a.webp", frames(), 1.0)
