"""View words of a camera, from its azimuth and elevation: front, side, back and overhead."""

import torch
from torch import Tensor

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
OVERHEAD_DEG = 60.0


def angle_from_front(azimuth_deg: Tensor) -> Tensor:
    """Return |azimuth| in [0, 180] degrees."""
    return ((azimuth_deg + 180.0) % 360.0 - 180.0).abs()


def view_word(azimuth_deg: float, elevation_deg: float) -> str:
    """Return the view word of a camera.

    Overhead above elevation 60; else front within azimuth 45, back beyond 135, side between.
    """
    azimuth = float(angle_from_front(torch.tensor(float(azimuth_deg))))
    if elevation_deg > OVERHEAD_DEG:
        return "overhead view"
    return "front view" if azimuth < 45.0 else "back view" if azimuth > 135.0 else "side view"
