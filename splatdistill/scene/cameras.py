"""Cameras on an orbit around the origin: the only file that defines axes.

World: right-handed, +Z up, the object's front toward +X. Azimuth runs counter-clockwise from +X seen from
above (azimuth 90 sees the +Y side), elevation goes up from the XY plane; both in degrees.
Cameras are OpenCV: x right, y down, z forward. At azimuth 0 the right of the image is +Y.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.ops.transfer import upload

EVALUATION_VIEW = (15.0, 3.0, 40.0)  # elevation_deg, distance, fov_deg of the evaluation turntable
Angles = float | Sequence[float] | Tensor


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of V pinhole cameras that look at the origin.

    viewmats [V, 4, 4] world-to-camera; Ks [V, 3, 3] in pixels; the orbit parameters [V] they were made from.
    """

    viewmats: Tensor  # [V, 4, 4]
    Ks: Tensor  # [V, 3, 3]
    width: int
    height: int
    azimuth_deg: Tensor  # [V]
    elevation_deg: Tensor  # [V]
    distance: Tensor  # [V]
    fov_deg: Tensor  # [V]

    @classmethod
    def from_gsplat(cls, viewmats: Tensor, Ks: Tensor, width: int, height: int) -> "Cameras":
        """Return the cameras of a call to gsplat.

        The azimuth, elevation and distance are those of each camera's position around the origin, the field
        of view that of the image's height.

        Args:
            viewmats: world-to-camera matrices [V, 4, 4], OpenCV axes.
            Ks: intrinsics [V, 3, 3] in pixels.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Raises:
            ValueError: a wrong shape, a size below 1, or a matrix that is not finite.
        """
        count = len(viewmats) if viewmats.ndim == 3 else 0
        if viewmats.shape != (count, 4, 4) or Ks.shape != (count, 3, 3) or not count:
            shapes = f"{list(viewmats.shape)} and {list(Ks.shape)}"
            raise ValueError(f"expected viewmats [V, 4, 4] and Ks [V, 3, 3], got {shapes}")
        if width < 1 or height < 1 or not bool(viewmats.isfinite().all() & Ks.isfinite().all()):
            raise ValueError("expected a width and height of at least 1, and finite matrices")
        rotation, translation = viewmats[:, :3, :3].double(), viewmats[:, :3, 3].double()
        x, y, z = (-(rotation.mT @ translation[..., None])[..., 0]).unbind(-1)  # positions
        distance = (x * x + y * y + z * z).sqrt()
        return cls(
            viewmats=viewmats.float(),
            Ks=Ks.float(),
            width=width,
            height=height,
            azimuth_deg=torch.atan2(y, x).rad2deg().float(),
            elevation_deg=torch.asin((z / distance.clamp(min=1e-12)).clamp(-1.0, 1.0)).rad2deg().float(),
            distance=distance.float(),
            fov_deg=(2.0 * torch.atan(0.5 * height / Ks[:, 1, 1].double())).rad2deg().float(),
        )

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> "Cameras":
        """Return the chosen views; an int gives a batch of one. Raises IndexError when out of range."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"view {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return self._map(lambda tensor: tensor[index])

    def __iter__(self) -> Iterator["Cameras"]:
        return (self[i] for i in range(len(self)))

    def to(self, device: torch.device | str) -> "Cameras":
        """Return the same cameras on another device."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        sent = upload([getattr(self, name) for name in names], device)
        return replace(self, **dict(zip(names, sent, strict=True)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})

    def resized(self, width: int, height: int) -> "Cameras":
        """Return the same views for another image size in pixels (Ks are scaled)."""
        scale = self.Ks.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, Ks=self.Ks * scale[:, None], width=width, height=height)

    @property
    def camtoworlds(self) -> Tensor:
        """Return the camera-to-world matrices [V, 4, 4], inverses of the rigid viewmats."""
        rotation = self.viewmats[:, :3, :3].transpose(1, 2)  # [V, 3, 3]
        poses = self.viewmats.clone()
        poses[:, :3, :3] = rotation
        poses[:, :3, 3:] = -rotation @ self.viewmats[:, :3, 3:]
        return poses

    @property
    def positions(self) -> Tensor:
        """Return the camera centers in the world [V, 3]."""
        return self.camtoworlds[:, :3, 3]


@dataclass(frozen=True)
class OrbitRanges:
    """Ranges (low, high) that `sample_orbit` draws from; degrees, and world units for the distance.

    Raises UserError for a range that is reversed or out of bounds.
    """

    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    distance: tuple[float, float] = (2.8, 3.2)
    fov_deg: tuple[float, float] = (40.0, 45.0)
    stratified: bool = True

    def __post_init__(self) -> None:
        bounds = {
            "azimuth_deg": (-360.0, 360.0),
            "elevation_deg": (-90.0, 90.0),
            "distance": (1e-3, 1e6),
            "fov_deg": (1.0, 179.0),
        }
        for name, (lowest, highest) in bounds.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise UserError(
                    f"camera range {name} is ({low}, {high}); expected {lowest} <= low <= high <= {highest}"
                )


def orbit(
    azimuth_deg: Angles, elevation_deg: Angles, distance: Angles, fov_deg: Angles, width: int, height: int
) -> Cameras:
    """Place cameras on a sphere around the origin, looking at it, with +Z up in the image.

    Angles and distances are numbers, sequences or tensors [V], broadcast against each other.

    Args:
        azimuth_deg: counter-clockwise from +X seen from above; 0 sees the front.
        elevation_deg: up from the XY plane.
        distance: from the origin, in world units.
        fov_deg: field of view across the full image height; pixels are square.
        width: image width in pixels.
        height: image height in pixels.
    """
    given = (azimuth_deg, elevation_deg, distance, fov_deg)
    values = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in given))
    azimuth, elevation, radius, fov = values = [v.reshape(-1) for v in values]
    a, e = azimuth.deg2rad(), elevation.deg2rad()
    # Written out from the angles rather than with a cross product, so that the poles are no special case.
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)  # [V, 3]
    down = torch.stack([e.sin() * a.cos(), e.sin() * a.sin(), -e.cos()], -1)
    forward = -torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(len(azimuth), 1, 1)
    viewmats[:, :3, :3] = torch.stack([right, down, forward], 1)
    viewmats[:, 2, 3] = radius  # the origin lies straight ahead
    Ks = torch.eye(3, dtype=torch.float64).repeat(len(azimuth), 1, 1)
    Ks[:, 0, 0] = Ks[:, 1, 1] = 0.5 * height / (0.5 * fov.deg2rad()).tan()
    Ks[:, 0, 2], Ks[:, 1, 2] = 0.5 * width, 0.5 * height
    return Cameras(viewmats.float(), Ks.float(), width, height, *(v.float() for v in values))


def from_poses(camtoworlds: Tensor, fov_deg: float, width: int, height: int) -> Cameras:
    """Make cameras from rigid camera-to-world matrices [V, 4, 4], wherever they look.

    fov_deg is as in `orbit`; azimuth, elevation and distance are those of the camera positions.
    """
    poses = camtoworlds.double()
    offsets = poses[:, :3, 3]
    distance = offsets.norm(dim=-1)
    seen = orbit(
        torch.atan2(offsets[:, 1], offsets[:, 0]).rad2deg(),
        torch.asin((offsets[:, 2] / distance.clamp(min=1e-12)).clamp(-1, 1)).rad2deg(),
        distance,
        fov_deg,
        width,
        height,
    )
    return replace(seen, viewmats=torch.linalg.inv(poses).float())


def sample_orbit(
    ranges: OrbitRanges,
    count: int,
    size: int,
    generator: torch.Generator,
    group: int = 1,
    places_deg: Sequence[tuple[float, float]] = (),
) -> Cameras:
    """Draw random cameras for a square image; every quantity is uniform in its range.

    Stratified azimuths: the range is cut into `count` equal sectors, all turned by one random offset, with
    one camera anywhere inside each, so that a batch sees the object from all around.

    Args:
        ranges: intervals of the angles, the distance and the field of view.
        count: number of cameras.
        size: width and height of the image in pixels.
        generator: source of the random numbers.
        group: above 1, each `group` consecutive cameras divide the full circle evenly and share the rest.
        places_deg: azimuth and elevation of each camera of a group, in place of drawn ones.

    Raises:
        UserError: `count` is not a multiple of `group`.
    """

    def uniform(limits: tuple[float, float]) -> Tensor:
        draw = torch.rand(count, generator=generator, dtype=torch.float64)
        return limits[0] + (limits[1] - limits[0]) * draw

    if group > 1:
        if count % group:
            raise UserError(
                f"this teacher sees {group} views at a time; views.count is {count}, not a multiple"
            )
        sector = replace(ranges, azimuth_deg=(0.0, 360.0 / group))
        first = sample_orbit(sector, count // group, size, generator)
        turns = torch.arange(group, dtype=torch.float64) * (360.0 / group)
        azimuth = (first.azimuth_deg.double()[:, None] + turns).flatten()
        elevation, distance, fov = (
            value.repeat_interleave(group) for value in (first.elevation_deg, first.distance, first.fov_deg)
        )
        if places_deg:
            azimuth, elevation = torch.tensor(places_deg, dtype=torch.float64).repeat(len(first), 1).unbind(1)
        return orbit(azimuth, elevation, distance, fov, size, size)

    azimuth = uniform(ranges.azimuth_deg)
    if ranges.stratified:
        low, span = ranges.azimuth_deg[0], ranges.azimuth_deg[1] - ranges.azimuth_deg[0]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        jitter = torch.rand(count, generator=generator, dtype=torch.float64)
        azimuth = low + span * (((torch.arange(count) + jitter) / count + offset) % 1.0)
    elevation = uniform(ranges.elevation_deg)
    return orbit(azimuth, elevation, uniform(ranges.distance), uniform(ranges.fov_deg), size, size)


def turntable(count: int, elevation_deg: float, distance: float, fov_deg: float, size: int) -> Cameras:
    """Return `count` cameras at equal azimuth steps around the object, azimuth 0 (the front) first."""
    azimuth = torch.arange(count, dtype=torch.float64) * (360.0 / count)
    return orbit(azimuth, elevation_deg, distance, fov_deg, size, size)


def looking_at(positions: Tensor, targets: Tensor) -> Tensor:
    """Return camera-to-world matrices [V, 4, 4] from positions and targets, both [V, 3], with +Z up.

    When a camera looks straight up or down, the right of the image is +Y, as at azimuth 0.
    """
    forward = torch.nn.functional.normalize((targets - positions).double(), dim=-1)  # [V, 3]
    right = torch.cross(forward, forward.new_tensor([0.0, 0.0, 1.0]).expand_as(forward), dim=-1)
    aside = forward.new_tensor([0.0, 1.0, 0.0])
    right = torch.where(right.norm(dim=-1, keepdim=True) > 1e-6, right, aside)
    right = torch.nn.functional.normalize(right, dim=-1)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(forward), 1, 1)
    poses[:, :3, :3] = torch.stack([right, torch.cross(forward, right, dim=-1), forward], -1)
    poses[:, :3, 3] = positions
    return poses
