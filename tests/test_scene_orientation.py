import pytest
import torch
from format_errors import scene
from torch.nn.functional import normalize

from splatdistill.reference.raster import rotation_matrices, sh_basis
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import NAMES
from splatdistill.scene.orientation import UPS, reorient, rotate_, rotation_between, world_to
from splatdistill.scene.rendering import render


def some_rotation(seed=0):
    quat = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rotation_matrices(quat)[0]


def turned_camera(camera, R):
    viewmats = camera.viewmats.clone()
    viewmats[:, :3, :3] = (viewmats[:, :3, :3].double() @ R.T).float()
    return type(camera)(**{**camera.__dict__, "viewmats": viewmats})


@pytest.mark.parametrize(
    "up, front, top",
    [("z", [1, 0, 0], [0, 0, 1]), ("y", [0, 0, 1], [0, 1, 0]), ("-y", [0, 0, -1], [0, -1, 0])],
)
def test_frames_have_the_axis_up_and_the_front_where_they_say(up, front, top):
    R = world_to(up)
    assert R[:, 0].tolist() == front and R[:, 2].tolist() == top
    assert torch.equal(R @ R.T, torch.eye(3, dtype=torch.float64)) and torch.det(R) == 1


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("up", ["y", "-y", None])
def test_a_turned_scene_renders_alike_from_the_turned_camera(degree, up):
    gaussians = scene(300, degree)
    R = world_to(up) if up else some_rotation()
    camera = orbit([20.0, 200.0], [10.0, -40.0], 3.0, 40.0, 48, 48)
    turned = type(gaussians)({name: gaussians[name].detach().clone() for name in NAMES})
    rotate_(turned, R)
    with torch.no_grad():
        before, after = render(gaussians, camera).rgb, render(turned, turned_camera(camera, R)).rgb
        assert before.max() > 0.1
        torch.testing.assert_close(after, before, atol=2e-5, rtol=0)
        if degree:  # and the higher bands matter
            assert (render(gaussians, camera, sh_degree=0).rgb - before).abs().max() > 1e-2


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colors_turn_with_the_direction(degree):
    gaussians, R = scene(20, degree), some_rotation(1)
    turned = reorient(gaussians, "z", "z")
    directions = normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)

    def colors(scene, directions):
        return torch.einsum("nk,nkc->nc", sh_basis(directions, degree)[:, 1:], scene["shN"].double())

    before = colors(gaussians, directions)
    rotate_(turned, R)
    torch.testing.assert_close(colors(turned, directions @ R.T), before, atol=1e-6, rtol=0)


def test_turning_there_and_back_restores_a_scene():
    gaussians = scene(100, 3)
    back = reorient(reorient(gaussians, "z", "y"), "y", "z")
    for name in NAMES:
        torch.testing.assert_close(back[name], gaussians[name], atol=1e-6, rtol=0)


def test_scenes_of_any_length_turn_in_pieces(monkeypatch):
    monkeypatch.setattr("splatdistill.scene.orientation.ROWS", 7)
    whole, pieces = scene(20, 2), scene(20, 2)
    rotate_(pieces, some_rotation())
    monkeypatch.undo()
    rotate_(whole, some_rotation())
    assert all(torch.equal(whole[name], pieces[name]) for name in NAMES)
    rotate_(scene(0, 1), some_rotation())


def test_frames_that_agree_leave_the_scene_alone():
    gaussians = scene(5, 1)
    assert reorient(gaussians, "y", "y") is gaussians
    assert reorient(gaussians, "y", "z") is not gaussians


@pytest.mark.parametrize("source", UPS)
@pytest.mark.parametrize("target", UPS)
def test_rotations_between_frames_compose(source, target):
    assert torch.equal(rotation_between(source, target) @ world_to(source), world_to(target))
