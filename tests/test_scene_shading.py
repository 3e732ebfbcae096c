"""Normals from depth, and textureless pictures."""

import torch

from splatdistill.scene.cameras import orbit, turntable
from splatdistill.scene.rendering import Render
from splatdistill.scene.shading import AMBIENT, Shading, lambertian, normals, shade, textureless


def test_a_wall_across_the_view_faces_the_camera() -> None:
    cameras = orbit([0.0, 90.0], [0.0, 30.0], 3.0, 40.0, 8, 8)
    found = normals(torch.full((2, 8, 8, 1), 2.0), cameras)
    toward = torch.nn.functional.normalize(cameras.positions, dim=-1)
    torch.testing.assert_close(found, toward[:, None, None].expand_as(found), atol=1e-5, rtol=0)


def test_a_floor_seen_from_above_points_up() -> None:
    cameras = orbit(20.0, 40.0, 3.0, 40.0, 16, 16)
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    K = cameras.Ks[0]
    rays = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], -1)
    down = (rays @ cameras.viewmats[0, :3, :3])[..., 2]  # in the world, a unit of depth
    depth = (-cameras.positions[0, 2] / down)[None, ..., None]  # where z = 0
    up = normals(depth, cameras)
    torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0]).expand_as(up), atol=1e-3, rtol=0)


def test_the_edge_of_a_thing_keeps_its_normal() -> None:
    cameras = orbit(0.0, 0.0, 3.0, 40.0, 8, 8)
    depth = torch.full((1, 8, 8, 1), 2.0)
    depth[:, :, 4:] = 50.0
    toward = cameras.positions[0] / 3.0
    found = normals(depth, cameras)[0, :, :4]
    torch.testing.assert_close(found, toward.expand_as(found), atol=1e-4, rtol=0)


def test_textureless_is_gray_on_the_thing_and_background_elsewhere() -> None:
    cameras = orbit(0.0, 0.0, 3.0, 40.0, 8, 8)
    alpha = torch.zeros(1, 8, 8, 1)
    alpha[:, 2:6, 2:6] = 1.0
    picture = textureless(Render(torch.rand(1, 8, 8, 3), alpha, torch.full_like(alpha, 3.0), {}), cameras)
    assert (picture[0, 0] == 1.0).all()
    inside = picture[0, 2:6, 2:6]
    assert (inside[..., 0] == inside[..., 1]).all() and inside.min() > 0.3 and inside.max() < 0.9


def test_the_schedule_lights_some_views_and_leaves_the_rest() -> None:
    views = 64
    cameras = turntable(views, 15.0, 3.0, 40.0, 4)
    rgb, alpha = torch.full((views, 4, 4, 3), 0.5), torch.ones(views, 4, 4, 1)
    view = Render(rgb, alpha, torch.full((views, 4, 4, 1), 2.0), {})
    background = torch.zeros(views, 3)

    def kinds(progress: float, **probabilities: float) -> tuple[int, int]:
        shading = Shading(start=0.2, **probabilities)
        shown = shade(view, cameras, background, shading, progress, torch.Generator().manual_seed(0))
        plain, lit = textureless(view, cameras, 0.0), lambertian(view, cameras, background)
        return (
            sum(torch.equal(a, b) for a, b in zip(shown, plain, strict=True)),
            sum(torch.equal(a, b) for a, b in zip(shown, lit, strict=True)),
        )

    assert kinds(0.1, lambertian=1.0) == (0, 0)
    assert kinds(0.2, lambertian=1.0) == (0, views)
    assert kinds(1.0, textureless=1.0) == (views, 0)
    gray, lit = kinds(1.0, lambertian=0.25, textureless=0.25)
    assert 0.1 * views < gray < 0.4 * views and 0.1 * views < lit < 0.4 * views


def test_lambertian_darkens_the_thing_and_not_the_background() -> None:
    cameras = turntable(1, 15.0, 3.0, 40.0, 4)
    alpha = torch.zeros(1, 4, 4, 1)
    alpha[:, :2] = 1.0
    background = torch.tensor([[0.2, 0.4, 0.6]])
    rgb = alpha * 0.5 + (1 - alpha) * background[:, None, None]
    shown = lambertian(Render(rgb, alpha, torch.full((1, 4, 4, 1), 2.0), {}), cameras, background)
    torch.testing.assert_close(shown[:, 2:], rgb[:, 2:])
    factor = shown[:, :2] / rgb[:, :2]
    torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))
    assert factor.min() >= AMBIENT and factor.max() <= 1.05
