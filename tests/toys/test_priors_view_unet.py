"""The embedded image-conditioned denoiser: azimuths as scores, cameras from angles, and nothing told."""

import math

import pytest
import torch

from splatdistill.priors.multiview import camera_matrices, orbit_matrices
from splatdistill.priors.view_unet import POSE, TURNS, ViewUNet, between, likeliest
from splatdistill.priors.zero123 import relative_pose
from splatdistill.scene.cameras import orbit
from splatdistill.teaching.networks import make_view_unet


@pytest.fixture(scope="module")
def network() -> ViewUNet:
    torch.manual_seed(0)
    made = make_view_unet().eval().requires_grad_(False)
    torch.nn.init.normal_(made.denoiser.class_embedding.linear_2.weight, std=0.1)  # as if trained
    return made


def test_matrices_from_angles_are_those_of_the_cameras() -> None:
    azimuth, elevation = torch.tensor([0.0, 75.0, 200.0]), torch.tensor([15.0, -10.0, 80.0])
    expected = camera_matrices(orbit(azimuth, elevation, 3.0, 40.0, 64, 64))
    torch.testing.assert_close(
        orbit_matrices(azimuth.deg2rad(), elevation.deg2rad()), expected, atol=1e-6, rtol=0
    )


def test_an_azimuth_comes_back_from_its_scores() -> None:
    azimuth = torch.linspace(-3 * math.pi, 3 * math.pi, 101)
    shares = between(azimuth)
    assert shares.shape == (101, TURNS) and (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(101))
    turned = likeliest((shares + 1e-9).log()) - azimuth
    assert torch.atan2(turned.sin(), turned.cos()).abs().max() < math.radians(0.5)


def test_of_two_azimuths_the_likelier_is_taken_and_not_their_mean() -> None:
    both = 0.55 * between(torch.tensor([math.pi])) + 0.45 * between(torch.tensor([0.0]))
    assert likeliest((both + 1e-9).log()).abs().item() == pytest.approx(math.pi, abs=1e-3)


def test_the_same_side_is_the_same_however_it_is_reached(network: ViewUNet) -> None:
    tokens, _ = network.read(torch.randn(1, 8, 16, 16))
    noisy, t = torch.randn(2, 8, 16, 16), torch.tensor([700, 700])
    asked = orbit(90.0, 20.0, 3.0, 40.0, 64, 64)
    poses = torch.cat([relative_pose(orbit(a, 10.0, 3.0, 40.0, 64, 64), asked) for a in (30.0, 80.0)])
    azimuth = torch.tensor([30.0, 80.0]).deg2rad()
    drawn = network.draw(noisy[:1].expand(2, -1, -1, -1), t, tokens.expand(2, -1, -1), azimuth, poses)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=1e-4)
    other = network.draw(noisy[:1], t[:1], tokens, azimuth[:1] + 1.0, poses[:1])
    assert not torch.allclose(other[0], drawn[0], atol=1e-3)


def test_without_a_pose_nothing_of_the_picture_is_told(network: ViewUNet) -> None:
    noisy, t = torch.randn(1, 8, 16, 16), torch.tensor([500])
    asked = relative_pose(orbit(0.0, 10.0, 3.0, 40.0, 64, 64), orbit(60.0, 0.0, 3.0, 40.0, 64, 64))
    for pose, same in ((torch.zeros(1, POSE), True), (asked, False)):
        outputs = [
            network(torch.cat([noisy, torch.randn(1, 8, 16, 16)], 1), t, pose[:, None])[0] for _ in range(2)
        ]
        assert torch.equal(*outputs) == same
