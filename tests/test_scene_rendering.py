import pytest
import torch

from splatdistill.scene import gaussians as G
from splatdistill.scene.cameras import orbit
from splatdistill.scene.rendering import render


def dots(positions, colors, scale=0.08, opacity=0.95, degree=0):
    """One round Gaussian at each position with the given color."""
    scene = G.init_blob(len(positions), scale=scale, opacity=opacity, sh_degree=degree)
    with torch.no_grad():
        scene["means"].copy_(torch.tensor(positions))
        scene["sh0"].copy_(G.rgb_to_sh0(torch.tensor(colors))[:, None])
    return scene


RED, GREEN, BLUE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def test_orientation_z_up_and_plus_y_right_at_azimuth_zero():
    scene = dots([[0.0, 0.0, 0.5], [0.0, 0.5, 0.0]], [RED, GREEN])
    rgb = render(scene, orbit(0.0, 0.0, 3.0, 40.0, 64, 64)).rgb[0]
    row, column = divmod(rgb[..., 0].argmax().item(), 64)
    assert row < 24 and 30 <= column <= 33  # +Z: up, centered
    row, column = divmod(rgb[..., 1].argmax().item(), 64)
    assert column > 40 and 30 <= row <= 33  # +Y: right, centered


def test_front_hides_back_at_azimuth_zero_and_the_reverse_behind():
    scene = dots([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], [RED, BLUE], opacity=0.99)
    front, back = render(scene, orbit([0.0, 180.0], 0.0, 3.0, 40.0, 65, 65)).rgb[:, 32, 32]
    assert front[0] > 0.9 and front[2] < 0.1
    assert back[2] > 0.9 and back[0] < 0.1


def test_azimuth_ninety_shows_the_plus_y_side():
    scene = dots([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]], [GREEN, BLUE], opacity=0.99)
    center = render(scene, orbit(90.0, 0.0, 3.0, 40.0, 65, 65)).rgb[0, 32, 32]
    assert center[1] > 0.9 and center[2] < 0.1


def test_background_broadcasts_over_views_and_fills_empty_pixels():
    scene = dots([[0.0, 0.0, 0.0]], [RED])
    cameras = orbit([0.0, 120.0], 0.0, 3.0, 40.0, 32, 32)
    gray = torch.tensor([0.2, 0.4, 0.6])
    one = render(scene, cameras, gray)
    many = render(scene, cameras, gray.expand(2, 3))
    assert torch.equal(one.rgb, many.rgb)
    torch.testing.assert_close(one.rgb[:, 0, 0], gray.expand(2, 3))
    empty = render(scene, cameras)
    torch.testing.assert_close(one.rgb, empty.rgb + (1 - empty.alpha) * gray, atol=1e-5, rtol=1e-5)


def test_depth_is_the_distance_along_the_view_axis():
    result = render(dots([[0.5, 0.0, 0.0]], [RED]), orbit(0.0, 0.0, 3.0, 40.0, 65, 65))
    assert result.depth[0, 32, 32, 0].item() == pytest.approx(2.5, abs=1e-3)
    assert result.rgb.shape == (1, 65, 65, 3) and result.alpha.shape == result.depth.shape == (1, 65, 65, 1)


def test_info_serves_densification():
    scene = G.init_blob(30, generator=torch.Generator().manual_seed(0))
    result = render(scene, orbit([0.0, 90.0, 200.0], 10.0, 3.0, 40.0, 32, 32))
    result.info["means2d"].retain_grad()
    result.rgb.square().sum().backward()
    assert result.info["means2d"].grad.shape == (3, 30, 2)
    assert result.info["means2d"].grad.abs().sum() > 0
    assert result.info["radii"].shape == (3, 30, 2) and (result.info["radii"] > 0).all()
    assert (result.info["width"], result.info["height"], result.info["n_cameras"]) == (32, 32, 3)
    assert all(scene[name].grad is not None for name in ("means", "scales", "quats", "opacities", "sh0"))


def test_lower_sh_degree_ignores_the_higher_coefficients():
    scene = dots([[0.0, 0.0, 0.0]], [RED], degree=2)
    with torch.no_grad():
        scene["shN"].normal_(generator=torch.Generator().manual_seed(0))
    camera = orbit(30.0, 20.0, 3.0, 40.0, 33, 33)
    flat, full = render(scene, camera, sh_degree=0).rgb, render(scene, camera).rgb
    plain = render(dots([[0.0, 0.0, 0.0]], [RED]), camera).rgb
    torch.testing.assert_close(flat, plain)
    assert (full - flat).abs().max() > 0.05


@pytest.mark.gpu
def test_cuda_and_cpu_agree():
    scene = G.init_blob(500, sh_degree=1, generator=torch.Generator().manual_seed(0))
    cameras = orbit([0.0, 130.0], 20.0, 3.0, 42.0, 64, 64)
    background = torch.tensor([0.2, 0.5, 0.8])
    cpu = render(scene, cameras, background)
    gpu = render(G.select(scene, slice(None)).to("cuda"), cameras, background)
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(gpu, name).cpu(), getattr(cpu, name), atol=2e-3, rtol=2e-3)
