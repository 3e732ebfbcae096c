"""Reference pictures with their cameras: a transforms.json, as NeRF's Blender scenes and nerfstudio have it.

Each frame names a picture of the object, transparent or on a plain background, and a camera-to-world matrix
in OpenGL's axes (x right, y up, z backward). The field of view is camera_angle_x, or fl_x, fl_y, cx and cy in
pixels, of all frames or of each. Lens distortion is not read.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.pictures import Reference, open_picture, read_picture, to_uint8

MOST = 1000  # frames
MAX_BYTES = 1 << 24  # of the JSON
OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)  # OpenGL's camera axes in OpenCV's


@dataclass(frozen=True, eq=False)
class Captures:
    """Pictures rgb [V, 3, S, S] in [0, 1] and alpha [V, 1, S, S], and their cameras [V]."""

    rgb: Tensor
    alpha: Tensor
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: int) -> Reference:
        """Return one picture with its camera."""
        return Reference(self.rgb[index], self.alpha[index], self.cameras[index])

    def moved(self, shift: tuple[float, float, float], scale: float) -> Captures:
        """Return the cameras of the scene that `gaussians.moved` returns for the same arguments."""
        poses = self.cameras.camtoworlds.double()
        poses[:, :3, 3] = (poses[:, :3, 3] + torch.tensor(shift, dtype=torch.float64)) * scale
        views = torch.linalg.inv(poses)
        size = self.cameras.width
        return Captures(self.rgb, self.alpha, Cameras.from_gsplat(views, self.cameras.Ks, size, size))

    def to(self, device: torch.device | str) -> Captures:
        """Return the same pictures on another device."""
        return Captures(self.rgb.to(device), self.alpha.to(device), self.cameras.to(device))

    def save(self, path: Path) -> None:
        """Write a file from which `load_captures` reads the same."""
        rgba = to_uint8(torch.cat([self.rgb, self.alpha], 1)).cpu().numpy()
        arrays = {"rgba": rgba, "viewmats": self.cameras.viewmats.cpu().numpy()}
        arrays["Ks"] = self.cameras.Ks.cpu().numpy()
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())  # without a date


def load_captures(path: Path) -> Captures:
    """Read what `Captures.save` wrote; raises UserError for another file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rgba, views, Ks = (torch.from_numpy(arrays[name]) for name in ("rgba", "viewmats", "Ks"))
        size = rgba.shape[-1]
        pixels = rgba.float() / 255.0
        return Captures(pixels[:, :3], pixels[:, 3:], Cameras.from_gsplat(views, Ks, size, size))
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no reference pictures ({type(error).__name__})") from error


def read_captures(path: Path, size: int) -> Captures:
    """Read a transforms.json and its pictures, `size` pixels a side, in the world frame of the file.

    Raises UserError for a file of another form, or a picture that cannot be read.
    """
    document = _document(path)
    frames = document["frames"]
    found = [_frame(path, frame, document, size) for frame in frames]
    rgba = torch.stack([torch.cat([r.rgb, r.alpha]) for r in found])
    rgba = to_uint8(rgba).float() / 255.0  # as they are saved
    views = torch.cat([r.camera.viewmats for r in found])
    Ks = torch.cat([r.camera.Ks for r in found])
    return Captures(rgba[:, :3], rgba[:, 3:], Cameras.from_gsplat(views, Ks, size, size))


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"cannot read the cameras in {path}: {reason}; expected a transforms.json") from error
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} has no list of frames; expected a transforms.json as nerfstudio writes it")
    if not 1 <= len(frames) <= MOST:
        raise UserError(f"{path} has {len(frames)} frames; expected 1 to {MOST}")
    return document


def _frame(path: Path, frame: dict[str, Any], document: dict[str, Any], size: int) -> Reference:
    """Read one frame: its picture, padded to a square of `size`, and the camera of that square."""
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path} has a frame without a file_path")
    picture = path.parent / name
    if not picture.suffix:  # as in NeRF's own scenes
        picture = picture.with_suffix(".png")
    matrix = frame.get("transform_matrix")
    try:
        pose = torch.tensor(matrix, dtype=torch.float64)
    except (ValueError, TypeError):
        pose = torch.empty(0)
    rotation = pose[:3, :3] if pose.shape == (4, 4) else torch.zeros(3, 3)
    if not torch.allclose(rotation @ rotation.T, torch.eye(3).to(rotation), atol=1e-3):
        raise UserError(f"{path}: {name} has no rigid 4x4 transform_matrix")
    width, height = open_picture(picture).size
    fx, fy, cx, cy = _intrinsics(path, {**document, **frame}, width, height)
    rgb, alpha = read_picture(picture)
    side, whole = rgb.shape[-1], max(width, height)
    left, top = (whole - width) // 2, (whole - height) // 2
    scale = side / whole
    Ks = torch.tensor([[fx, 0.0, cx + left], [0.0, fy, cy + top], [0.0, 0.0, 1.0 / scale]]) * scale
    views = torch.linalg.inv(pose * OPENCV)
    camera = Cameras.from_gsplat(views[None].float(), Ks[None].float(), side, side)
    return Reference(rgb, alpha, camera).resized(size)


def _intrinsics(
    path: Path, values: dict[str, Any], width: int, height: int
) -> tuple[float, float, float, float]:
    """Return fx, fy, cx and cy in pixels of the picture as it is kept."""

    def number(name: str, default: float) -> float:
        value = values.get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{path}: {name} is no number")
        return float(value)

    w, h = number("w", width), number("h", height)
    if "fl_x" in values:
        fx = number("fl_x", 0.0)
        fy = number("fl_y", fx)
    else:
        angle = number("camera_angle_x", 0.0)
        fx = fy = 0.5 * w / math.tan(0.5 * angle) if 0.0 < angle < math.pi else 0.0
    if not (fx > 0.0 and fy > 0.0 and w > 0.0 and h > 0.0):
        raise UserError(f"{path} has no field of view: expected camera_angle_x, or fl_x in pixels")
    x, y = width / w, height / h  # a large picture was shrunk
    return fx * x, fy * y, number("cx", w / 2) * x, number("cy", h / 2) * y
