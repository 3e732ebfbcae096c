"""Rendering for the viewer by our own rasterizer: browser cameras, channels as colors."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import viser
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor
from torch.nn import ParameterDict
from torch.nn.functional import normalize

from splatdistill.scene.cameras import Cameras, from_poses
from splatdistill.scene.gaussians import activated, covariances, finite_mask, select, sh0_to_rgb, sh_degree_of
from splatdistill.scene.rendering import Render, render
from splatdistill.scene.shading import normals
from splatdistill.training.monitor import to_bytes

Channel = Literal["color", "alpha", "depth", "normal"]
LARGEST = 2560  # pixels a side
FARTHEST = 1e4  # world units
CHANNELS: tuple[Channel, ...] = ("color", "alpha", "depth", "normal")


@dataclass(frozen=True)
class RenderOptions:
    """Rendering options: near and far are depths in world units between which centers are shown."""

    channel: Channel = "color"
    sh_degree: int = 3  # at most
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    near: float = 0.01
    far: float = 100.0


@dataclass(frozen=True)
class Pose:
    """A browser's camera in the world: OpenCV's rotation as a quaternion, vertical field of view in radians.

    Raises ValueError for an invalid one, since it comes from a browser.
    """

    wxyz: tuple[float, float, float, float]
    position: tuple[float, float, float]
    fov_rad: float
    aspect: float = 1.0  # width over height

    def __post_init__(self) -> None:
        numbers = np.array([*self.wxyz, *self.position, self.fov_rad, self.aspect])
        sound = np.isfinite(numbers).all() and np.abs(self.position).max() < FARTHEST
        if not (sound and any(self.wxyz) and 0.01 < self.fov_rad < 3.1 and 0.05 < self.aspect < 20.0):
            raise ValueError(f"no camera can be at {self}")

    def size(self, height: int) -> tuple[int, int]:
        """Return width and height in pixels of an image with so many rows, within the limit."""
        height = min(max(height, 1), LARGEST, int(LARGEST / self.aspect))
        return max(round(height * self.aspect), 1), height

    def cameras(self, height: int) -> Cameras:
        """Return the camera with `height` rows of pixels and the aspect's columns."""
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = normalized_quat_to_rotmat(normalize(torch.tensor(self.wxyz).double(), dim=-1))
        pose[:3, 3] = torch.tensor(self.position, dtype=torch.float64)
        return from_poses(pose[None], float(np.degrees(self.fov_rad)), *self.size(height))


def pose_of(camera: viser.CameraHandle) -> Pose:
    """Return the camera of a browser; raises ValueError for an invalid one."""
    w, x, y, z = (float(value) for value in camera.wxyz)
    return Pose((w, x, y, z), triple(camera.position), float(camera.fov), camera.aspect)


@torch.no_grad()
def draw(gaussians: ParameterDict, cameras: Cameras, options: RenderOptions = RenderOptions()) -> np.ndarray:
    """Render the image [H, W, 3] uint8 of a scene from one camera."""
    background = torch.tensor(options.background)
    scene = between(gaussians, cameras, options.near, options.far)
    view = render(scene, cameras, background, min(options.sh_degree, sh_degree_of(scene)))
    return to_bytes(colors(view, cameras, options)[0])


def between(gaussians: ParameterDict, cameras: Cameras, near: float, far: float) -> ParameterDict:
    """Return the Gaussians with centers between two depths of one camera; the same object if all are."""
    view = cameras.viewmats[0].to(gaussians["means"])
    depth = gaussians["means"] @ view[2, :3] + view[2, 3]
    kept = (depth >= near) & (depth <= far)
    return gaussians if kept.all() else select(gaussians, kept)


def colors(view: Render, cameras: Cameras, options: RenderOptions) -> Tensor:
    """Return a channel of a rendered view as colors [V, H, W, 3].

    Depth is white at the nearest and black at the farthest; normals are world axes, [-1, 1] as colors. Empty
    pixels show the background.
    """
    if options.channel == "color":
        return view.rgb
    if options.channel == "alpha":
        return view.alpha.expand(-1, -1, -1, 3)
    background = torch.tensor(options.background, device=view.alpha.device)
    hit = view.alpha > 0.5
    if options.channel == "normal":
        shown = normals(view.depth, cameras.to(view.depth.device)) * 0.5 + 0.5
    else:
        depths = view.depth[hit] if hit.any() else view.depth.new_tensor([0.0, 1.0])
        near, far = depths.min(), depths.max()
        shown = (1 - 0.9 * (view.depth - near) / (far - near).clamp(min=1e-6)).expand(-1, -1, -1, 3)
    return torch.where(hit, shown, background)


@torch.no_grad()
def splats_for_client(gaussians: ParameterDict) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centers, covariances, colors and opacities for viser's shader, which renders SH degree 0."""
    means, quats, scales, opacities, sh = (v[finite_mask(gaussians)].cpu() for v in activated(gaussians))
    rgb = sh0_to_rgb(sh[:, 0]).clamp(0, 1)
    return means.numpy(), covariances(quats, scales).numpy(), rgb.numpy(), opacities[:, None].numpy()


def triple(vector: np.ndarray) -> tuple[float, float, float]:
    """Return a vector as three plain numbers."""
    x, y, z = (float(value) for value in vector)
    return (x, y, z)
