"""A camera path through keyframes, smooth in position, target and field of view."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import ParameterDict

from splatdistill.media.films import find_ffmpeg, write_mp4, write_webp
from splatdistill.scene.cameras import Cameras, from_poses, looking_at
from splatdistill.viewer.drawing import RenderOptions, draw

FPS = 24
WEBP_FPS = 12  # its frames are kept in memory until all are there


@dataclass(frozen=True)
class Keyframe:
    """A camera of a path: position and target in the world, vertical field of view in radians."""

    position: tuple[float, float, float]
    look_at: tuple[float, float, float]
    fov_rad: float

    def cameras(self, width: int, height: int) -> Cameras:
        """Return the camera, +Z up, for an image of this size in pixels."""
        poses = looking_at(torch.tensor([self.position]), torch.tensor([self.look_at]))
        return from_poses(poses, float(np.degrees(self.fov_rad)), width, height)


def along(keyframes: list[Keyframe], share: float) -> Keyframe:
    """Return the camera at a share in [0, 1] of a Catmull-Rom spline through at least one keyframe."""
    points = np.array([[*key.position, *key.look_at, key.fov_rad] for key in keyframes])
    place = float(np.clip(share, 0, 1)) * (len(points) - 1)
    i = min(int(place), max(len(points) - 2, 0))
    u = place - i
    before, a, b, after = (points[np.clip(i + k, 0, len(points) - 1)] for k in (-1, 0, 1, 2))
    out, into = (b - before) / 2, (after - a) / 2  # tangents
    p = (2 * u**3 - 3 * u**2 + 1) * a + (3 * u**2 - 2 * u**3) * b
    p = (p + (u**3 - 2 * u**2 + u) * out + (u**3 - u**2) * into).tolist()
    return Keyframe((p[0], p[1], p[2]), (p[3], p[4], p[5]), p[6])


def film(
    gaussians: ParameterDict,
    keyframes: list[Keyframe],
    size: tuple[int, int],
    seconds: float,
    options: RenderOptions,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[str, bytes]:
    """Render a film along a path; return its file name and bytes (.webp without ffmpeg).

    size: (width, height) in pixels; given_up: polled before each frame, ends the film when true.
    """
    fps = FPS if find_ffmpeg() else WEBP_FPS
    count = max(round(seconds * fps), 2)

    def frames() -> Iterator[np.ndarray]:
        for i in range(count):
            if i and given_up():
                return
            yield draw(gaussians, along(keyframes, i / (count - 1)).cameras(*size), options)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "path.mp4"
        if fps == WEBP_FPS or not write_mp4(path, frames(), fps):
            path = path.with_suffix(".webp")
            write_webp(path, list(frames()), seconds)
        return path.name, path.read_bytes()
