from dataclasses import replace

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.scene.cameras import OrbitRanges, from_poses, looking_at, orbit, sample_orbit, turntable


def project(cameras, point):
    """Pixel coordinates [V, 2] and depth [V] of a world point."""
    local = cameras.viewmats[:, :3, :3] @ torch.tensor(point) + cameras.viewmats[:, :3, 3]
    pixels = (cameras.Ks @ local[:, :, None])[:, :, 0]
    return pixels[:, :2] / pixels[:, 2:], local[:, 2]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_azimuth_zero_stands_in_front_and_ninety_on_the_plus_y_side():
    cameras = orbit([0.0, 90.0], 0.0, 3.0, 40.0, 64, 64)
    torch.testing.assert_close(cameras.positions, torch.tensor([[3.0, 0, 0], [0, 3.0, 0]]))


def test_elevation_ninety_stands_above_with_a_proper_rotation():
    cameras = orbit([0.0, 30.0], 90.0, 2.0, 40.0, 64, 64)
    torch.testing.assert_close(cameras.positions, torch.tensor([[0.0, 0, 2]] * 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(cameras.viewmats[:, :3, :3]), torch.ones(2))


def test_origin_projects_to_the_image_center_at_the_camera_distance():
    pixels, depth = project(sample_orbit(OrbitRanges(), 5, 80, generator()), [0.0, 0.0, 0.0])
    torch.testing.assert_close(pixels, torch.full((5, 2), 40.0), atol=1e-4, rtol=0)
    assert ((depth > 2.8 - 1e-5) & (depth < 3.2 + 1e-5)).all()


def test_z_is_up_and_plus_y_is_right_at_azimuth_zero():
    camera = orbit(0.0, 0.0, 3.0, 40.0, 64, 64)
    up, _ = project(camera, [0.0, 0.0, 0.5])
    side, _ = project(camera, [0.0, 0.5, 0.0])
    _, front = project(camera, [0.5, 0.0, 0.0])
    assert up[0, 1] < 32 and up[0, 0] == pytest.approx(32)
    assert side[0, 0] > 32 and side[0, 1] == pytest.approx(32)
    assert front == pytest.approx(2.5)


def test_fov_spans_the_whole_image():
    camera = orbit(0.0, 0.0, 2.0, 90.0, 64, 64)
    edge, _ = project(camera, [0.0, 2.0, 2.0])  # 45 degrees right and up
    torch.testing.assert_close(edge, torch.tensor([[64.0, 0.0]]), atol=1e-4, rtol=0)


def test_camtoworlds_inverts_viewmats():
    cameras = sample_orbit(OrbitRanges(), 4, 64, generator())
    identity = torch.eye(4).expand(4, 4, 4)
    torch.testing.assert_close(cameras.camtoworlds @ cameras.viewmats, identity, atol=1e-5, rtol=0)


def test_resized_moves_pixels_in_proportion():
    cameras = orbit([20.0], 10.0, 3.0, 40.0, 64, 64)
    before, _ = project(cameras, [0.1, 0.2, 0.3])
    after, _ = project(cameras.resized(256, 128), [0.1, 0.2, 0.3])
    torch.testing.assert_close(after, before * torch.tensor([4.0, 2.0]))


@pytest.mark.parametrize("seed", range(5))
def test_stratified_azimuths_fill_every_sector_once(seed):
    azimuth = sample_orbit(OrbitRanges(), 8, 64, generator(seed)).azimuth_deg.double()
    assert (azimuth >= 0).all() and (azimuth <= 360).all()
    # Up to the common offset there is one camera in each of the sectors, so neighbors are < 2 sectors apart.
    gaps = torch.diff(azimuth.sort().values, append=azimuth.min()[None] + 360)
    assert gaps.max() < 2 * 45.0


def test_partial_ranges_are_respected():
    ranges = OrbitRanges((30, 60), (5, 6), (2, 2), (50, 50))
    cameras = sample_orbit(ranges, 50, 64, generator())
    assert cameras.azimuth_deg.min() >= 30 and cameras.azimuth_deg.max() <= 60
    assert cameras.elevation_deg.min() >= 5 and cameras.elevation_deg.max() <= 6
    assert (cameras.distance == 2).all() and (cameras.fov_deg == 50).all()


def test_sampling_is_reproducible_from_the_generator():
    first, second = (sample_orbit(OrbitRanges(), 4, 64, generator(7)) for _ in range(2))
    assert torch.equal(first.viewmats, second.viewmats) and torch.equal(first.Ks, second.Ks)


def test_indexing_keeps_views_and_iteration_ends():
    cameras = turntable(6, 15.0, 3.0, 40.0, 64)
    assert cameras.azimuth_deg.tolist() == [0, 60, 120, 180, 240, 300]
    assert len(cameras[2]) == 1 and cameras[-1].azimuth_deg.item() == 300
    assert cameras[1:4].azimuth_deg.tolist() == [60, 120, 180]
    assert len(cameras[torch.tensor([0, 3])]) == 2
    assert len(list(cameras)) == 6
    with pytest.raises(IndexError):
        cameras[6]


def test_bad_ranges_are_user_errors():
    for name, limits in (("fov_deg", (50, 40)), ("elevation_deg", (0, 95)), ("distance", (0, 1))):
        with pytest.raises(UserError, match="expected"):
            replace(OrbitRanges(), **{name: limits})


def test_groups_divide_the_circle_and_share_the_rest():
    cameras = sample_orbit(OrbitRanges(), 8, 64, generator(), group=4)
    azimuth, elevation = cameras.azimuth_deg.view(2, 4), cameras.elevation_deg.view(2, 4)
    torch.testing.assert_close(azimuth.diff(dim=1), torch.full((2, 3), 90.0))
    assert (elevation == elevation[:, :1]).all() and elevation[0, 0] != elevation[1, 0]
    with pytest.raises(UserError, match="multiple"):
        sample_orbit(OrbitRanges(), 6, 64, generator(), group=4)


def test_cameras_from_poses_are_those_of_the_orbit_they_stand_on():
    cameras = orbit([0.0, 130.0, -60.0], [10.0, -40.0, 90.0], [2.0, 3.0, 4.0], 40.0, 32, 24)
    again = from_poses(cameras.camtoworlds, 40.0, 32, 24)
    torch.testing.assert_close(again.viewmats, cameras.viewmats)
    torch.testing.assert_close(again.Ks, cameras.Ks)
    torch.testing.assert_close(again.distance, cameras.distance)
    torch.testing.assert_close(
        again.elevation_deg, cameras.elevation_deg, atol=0.05, rtol=0
    )  # asin at the pole


def test_looking_at_the_origin_is_an_orbit():
    cameras = orbit([0.0, 130.0, -60.0], [10.0, -40.0, 80.0], 3.0, 40.0, 32, 32)
    poses = looking_at(cameras.positions, torch.zeros(3, 3))
    torch.testing.assert_close(poses.float(), cameras.camtoworlds)


def test_looking_straight_down_is_a_rotation_with_the_right_toward_plus_y():
    (pose,) = looking_at(torch.tensor([[0.0, 0.0, 3.0]]), torch.zeros(1, 3))
    torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64))
    assert pose[:3, :3].det() > 0
    torch.testing.assert_close(pose[:3, 0], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
