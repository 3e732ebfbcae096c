import math

import pytest
import torch

from splatdistill.scene import gaussians as G


def blob(count=50, degree=1, seed=0):
    return G.init_blob(count, sh_degree=degree, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("degree", range(4))
def test_blob_has_gsplat_names_and_shapes(degree):
    scene = blob(20, degree)
    shapes = {name: tuple(value.shape) for name, value in scene.items()}
    K = (degree + 1) ** 2
    assert tuple(shapes) == G.NAMES
    assert shapes == {
        "means": (20, 3),
        "scales": (20, 3),
        "quats": (20, 4),
        "opacities": (20,),
        "sh0": (20, 1, 3),
        "shN": (20, K - 1, 3),
    }
    assert G.sh_degree_of(scene) == degree
    assert all(value.requires_grad and value.dtype == torch.float32 for value in scene.values())


def test_blob_lies_in_its_ball_with_the_given_activations():
    scene = G.init_blob(500, 0.6, scale=0.03, opacity=0.1, generator=torch.Generator().manual_seed(0))
    values = G.activated(scene)
    radii = values.means.norm(dim=-1)
    assert radii.max() <= 0.6 + 1e-6
    assert (radii < 0.6 * 0.5 ** (1 / 3)).float().mean().item() == pytest.approx(0.5, abs=0.07)
    torch.testing.assert_close(values.scales, torch.full((500, 3), 0.03))
    torch.testing.assert_close(values.opacities, torch.full((500,), 0.1))
    assert G.sh0_to_rgb(values.sh[:, 0]).mean().item() == pytest.approx(0.5, abs=0.02)


def test_blob_is_reproducible_from_the_generator():
    assert all(torch.equal(a, b) for a, b in zip(blob().values(), blob().values(), strict=True))
    assert not torch.equal(blob()["means"], blob(seed=1)["means"])


def test_activated_is_differentiable_in_every_parameter():
    scene = blob()
    torch.cat([value.flatten() for value in G.activated(scene)]).sum().backward()
    assert all(value.grad is not None for value in scene.values())


def test_color_conversion_round_trips():
    rgb = torch.linspace(0, 1, 9)
    torch.testing.assert_close(G.sh0_to_rgb(G.rgb_to_sh0(rgb)), rgb)


def test_clamp_moves_only_outside_centers_and_keeps_their_direction():
    scene = blob()
    with torch.no_grad():
        scene["means"][0] = torch.tensor([3.0, 0.0, 4.0])
        scene["means"][1] = 0
    before = scene["means"].detach().clone()
    G.clamp_to_sphere_(scene, 0.9)
    torch.testing.assert_close(scene["means"][0].detach(), torch.tensor([0.54, 0.0, 0.72]))
    assert torch.equal(scene["means"][1:], before[1:])


def test_select_takes_masks_and_indices_and_copies():
    scene = blob()
    mask = torch.zeros(50, dtype=torch.bool)
    mask[[3, 7]] = True
    for chosen in (G.select(scene, mask), G.select(scene, torch.tensor([3, 7]))):
        assert torch.equal(chosen["quats"], scene["quats"][[3, 7]])
        assert all(value.requires_grad and value.is_leaf for value in chosen.values())
        with torch.no_grad():
            chosen["means"].zero_()
    assert scene["means"][3].abs().sum() > 0


def test_finite_mask_sees_every_parameter():
    scene = blob(10, 1)
    with torch.no_grad():
        for row, name in enumerate(G.NAMES):
            scene[name].view(10, -1)[row, 0] = (math.nan, math.inf)[row % 2]
    assert G.finite_mask(scene).tolist() == [False] * 6 + [True] * 4
    assert G.finite_mask(blob(5, 0)).all()


def test_equal_scenes_have_equal_strides_even_without_bands():
    plain = blob(4, degree=0)
    turned = {**plain, "shN": torch.zeros(4, 3, 0).mT}
    assert turned["shN"].stride() != plain["shN"].stride()  # for torch both are contiguous: no elements
    assert G.from_tensors(**turned)["shN"].stride() == plain["shN"].stride()
