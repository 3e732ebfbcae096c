"""A camera path through keyframes, smooth in position, target and field of view."""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import viser
from torch.nn import ParameterDict

from splatdistill.media.films import find_ffmpeg, write_mp4, write_webp
from splatdistill.scene.cameras import Cameras, from_poses, looking_at
from splatdistill.scene.gaussians import placement
from splatdistill.training.monitor import Snapshot
from splatdistill.viewer.drawing import RenderOptions, draw

FPS = 24
WEBP_FPS = 12  # its frames are kept in memory until all are there


DISTANCE, FOV = 3.0, math.radians(45.0)  # of the views that have a key, of a scene of radius 1
VIEWS = {str(k + 1): (45.0 * k, 20.0) for k in range(8)} | {"9": (0.0, 85.0), "R": (0.0, 20.0)}  # degrees


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


@dataclass(frozen=True)
class Home:
    """Where a scene is: its middle, and its radius in world units, that the views of the keys show."""

    middle: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 1.0

    def view(self, key: str) -> Keyframe:
        """Return one of VIEWS of the scene."""
        x, y, z = (m + self.radius * p for m, p in zip(self.middle, place_of(*VIEWS[key])))
        return Keyframe((x, y, z), self.middle, FOV)

    @property
    def planes(self) -> tuple[float, float]:
        """The nearest and farthest depth that is drawn."""
        return (max(0.01 * self.radius, 0.001), max(100.0 * self.radius, 0.002))


def home_of(scene: Snapshot | None) -> Home:
    """Return where a scene is; at the origin while there is none."""
    if scene is None:
        return Home()
    (x, y, z), scale = placement(scene.gaussians, radius=1.0)
    return Home((-x, -y, -z), 1.0 / scale)


def place_of(azimuth_deg: float, elevation_deg: float) -> tuple[float, float, float]:
    """Return the position of a camera that looks at the origin from DISTANCE."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = DISTANCE * math.cos(e)
    return (flat * math.cos(a), flat * math.sin(a), DISTANCE * math.sin(e))


def point(client: viser.ClientHandle, key: Keyframe) -> None:
    """Move a client's camera, with +Z up."""
    with client.atomic():
        client.camera.up_direction = (0.0, 0.0, 1.0)
        client.camera.position = key.position
        client.camera.look_at = key.look_at
        client.camera.fov = key.fov_rad


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
