"""Animations: an animated WebP always, an .mp4 where ffmpeg is found."""

import contextlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splatdistill.files import atomic_write


def write_webp(path: str | Path, frames: Sequence[np.ndarray], seconds: float) -> None:
    """Write frames [H, W, 3] uint8 as an animation that takes `seconds` and loops.

    Raises UserError when the file cannot be written.
    """
    first, *others = [Image.fromarray(frame) for frame in frames]
    with atomic_write(path) as file:
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=round(1000 * seconds / len(frames)),
            loop=0,
            quality=85,
            method=2,  # half the time of the default for a few per cent of size
        )


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> bool:
    """Write frames [H, W, 3] uint8, all of one size, as an .mp4; return False when no ffmpeg can encode it.

    The frames are consumed one by one. Raises UserError when the file cannot be written.
    """
    program = find_ffmpeg()
    if program is None:
        return False
    taken = iter(frames)
    first = next(taken)
    height, width = first.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        command = [program, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        command += ["-r", f"{fps:g}", "-i", "-", "-threads", "1"]
        command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]  # every player's format
        command += ["-fflags", "+bitexact", "-movflags", "+faststart", str(film)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ffmpeg quit; its exit status is checked below
            for frame in itertools.chain([first], taken):
                process.stdin.write(np.ascontiguousarray(frame).tobytes())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        if process.returncode or not film.exists():
            return False
        with atomic_write(path) as file:
            file.write(film.read_bytes())
    return True


def find_ffmpeg() -> str | None:
    """Return the path of ffmpeg, from the system or the [video] extra; None when neither has it."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg  # pyright: ignore[reportMissingImports] - an extra

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
