"""The ray caster against brute force, and the builder's geometry."""

import numpy as np
import pytest

from splatdistill.ops import native
from splatdistill.priors.words import THINGS
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.teaching.objects import BUILDERS
from splatdistill.teaching.solids import Solids, composite, raycast

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the native extension")
SIZE = 20
GRAY = np.array([0.5, 0.5, 0.5])


def inside(kind: str, parameter: float, p: np.ndarray) -> np.ndarray:
    """Whether local points [..., 3] lie in the unit solid."""
    x, y, z = np.moveaxis(p, -1, 0)
    radius = np.hypot(x, y)
    if kind == "ellipsoid":
        return (radius**2 + z**2 <= 1) & (z >= parameter)
    if kind == "box":
        return np.abs(p).max(-1) <= 1
    if kind == "frustum":
        return (np.abs(z) <= 1) & (radius <= (1 + parameter) / 2 + (parameter - 1) / 2 * z)
    if kind == "prism":
        return (np.abs(y) <= 1) & (z >= -1) & (2 * np.abs(x) + z <= 1)
    return np.hypot(radius - 1, z) <= parameter


def brute_force_coverage(table: np.ndarray, kind: str, cameras: Cameras) -> np.ndarray:
    """Share of each pixel's four rays that meet the solid, by marching, [SIZE, SIZE]."""
    ticks = (np.arange(2 * SIZE) + 0.5) / 2
    K, viewmat = cameras.Ks[0].double().numpy(), cameras.viewmats[0].double().numpy()
    u, v = np.meshgrid((ticks - K[0, 2]) / K[0, 0], (ticks - K[1, 2]) / K[1, 1])
    rays = np.stack([u, v, np.ones_like(u)], -1)
    rotation, origin = viewmat[:3, :3], -viewmat[:3, :3].T @ viewmat[:3, 3]
    t = np.linspace(1.0, 5.0, 1500)
    points = origin + (rays @ rotation)[:, :, None] * t[:, None]
    affine = table[2:14].reshape(3, 4).astype(float)
    hit = inside(kind, table[1], points @ affine[:, :3].T + affine[:, 3]).any(-1)
    return hit.reshape(SIZE, 2, SIZE, 2).mean((1, 3))


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        ("ellipsoid", -1.0),
        ("ellipsoid", 0.2),
        ("box", 0.0),
        ("frustum", 0.4),
        ("frustum", 0.0),
        ("prism", 0.0),
        ("torus", 0.3),
    ],
)
def test_coverage_is_that_of_brute_force(kind: str, parameter: float) -> None:
    solids = Solids(1, np.random.default_rng(0))
    size = (0.6, 0.6, 0.6) if kind == "torus" else (0.7, 0.4, 0.5)
    solids._add(kind, parameter, (0.1, -0.05, 0.1), size, GRAY, (20.0, 35.0, 50.0))
    cameras = orbit(70.0, 25.0, 3.0, 40.0, SIZE, SIZE)
    alpha = raycast(solids.packed(), cameras)[0, ..., 3] / 255.0
    expected = brute_force_coverage(solids.packed()[0, 0], kind, cameras)
    assert expected.sum() > 10
    assert np.abs(alpha - expected).sum() < 0.02 * expected.sum()  # rays that graze an edge may differ


def test_the_nearer_solid_hides_the_farther() -> None:
    solids = Solids(2, np.random.default_rng(0))
    solids.ball((0.5, 0, 0), 0.4, np.array([1.0, 0, 0]))
    solids.ball((-0.5, 0, 0), 0.4, np.array([0, 0, 1.0]))
    rgba = raycast(solids.packed(), orbit([0.0, 180.0], 0.0, 3.0, 40.0, 33, 33))
    center = rgba[:, 16, 16].astype(int)
    assert center[0, 0] > 150 and center[0, 2] == 0
    assert center[1, 2] > 150 and center[1, 0] == 0


def test_pictures_do_not_depend_on_the_number_of_threads() -> None:
    solids = Solids(6, np.random.default_rng(0))
    BUILDERS["car"](solids, np.tile(GRAY, (6, 1)))
    cameras = orbit(list(range(0, 360, 60)), 10.0, 3.0, 40.0, 32, 32)
    solids.fit()
    assert (raycast(solids.packed(), cameras, 1) == raycast(solids.packed(), cameras, 2)).all()


def test_the_front_of_the_car_has_yellow_lights() -> None:
    solids = Solids(2, np.random.default_rng(0))
    BUILDERS["car"](solids, np.tile(GRAY, (2, 1)))
    solids.fit()
    pictures = composite(
        raycast(solids.packed(), orbit([0.0, 180.0], 5.0, 3.0, 40.0, 64, 64)), np.ones((2, 3))
    )
    yellow = ((pictures[..., :2].min(-1) > 110) & (pictures[..., 2] < 110)).sum((1, 2))
    assert yellow[0] > 10 and yellow[1] == 0


def test_every_thing_of_the_vocabulary_has_a_builder_in_its_order() -> None:
    assert tuple(BUILDERS) == THINGS


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_things_fit_the_sphere_and_the_frame(name: str) -> None:
    solids = Solids(4, np.random.default_rng(1))
    BUILDERS[name](solids, np.tile(GRAY, (4, 1)))
    solids.fit(0.8)
    low, high = solids.extent()
    assert np.allclose(low + high, 0, atol=1e-9)
    assert (np.abs(high) <= 0.8 + 1e-9).all() and (np.linalg.norm(high, axis=-1) <= 1.0 + 1e-9).all()
    rgba = raycast(solids.packed(), orbit([0.0, 60.0, 120.0, 200.0], 15.0, 3.0, 40.0, 48, 48))
    covered = (rgba[..., 3] > 0).mean((1, 2))
    assert (covered > 0.03).all()
    assert not rgba[:, 0, :, 3].any() and not rgba[:, :, 0, 3].any()


def test_composite_shows_the_background_where_nothing_is() -> None:
    rgba = np.zeros((1, 2, 2, 4), np.uint8)
    rgba[0, 0, 0] = (128, 0, 0, 128)
    out = composite(rgba, np.array([[0.0, 1.0, 0.0]], np.float32))[0]
    assert out[1, 1].tolist() == [0, 255, 0] and out[0, 0].tolist() == [128, 127, 0]
