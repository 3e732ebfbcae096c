import math
from dataclasses import fields, replace

import pytest
import torch

from splatdistill.scene import losses
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import init_blob, joined
from splatdistill.scene.losses import HoldWeights, LossWeights, holding, overgrowth, regularization
from splatdistill.scene.rendering import Render, render

NAMES = [field.name for field in fields(LossWeights)]


def image(value, size=8):
    return torch.full((2, size, size, 1), float(value))


def fake_render():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.rand(2, 8, 8, c, generator=generator).requires_grad_() for c in (3, 1, 1)]
    return Render(*draw, info={})


def test_alpha_entropy_is_largest_at_half_and_symmetric():
    assert losses.alpha_entropy(image(0.5)).item() == pytest.approx(math.log(2))
    torch.testing.assert_close(losses.alpha_entropy(image(0.2)), losses.alpha_entropy(image(0.8)))
    assert losses.alpha_entropy(image(0.0)) < 0.01 and losses.alpha_entropy(image(1.0)) < 0.01


def test_alpha_entropy_pushes_to_the_nearer_end():
    for start, sign in ((0.3, 1), (0.7, -1)):
        alpha = image(start).requires_grad_()
        (gradient,) = torch.autograd.grad(losses.alpha_entropy(alpha), alpha)
        assert (gradient.sign() == sign).all()


def test_sparsity_is_the_covered_share():
    alpha = image(0)
    alpha[:, :2] = 1
    assert losses.sparsity(alpha).item() == 0.25


def test_opacity_binarisation_vanishes_only_at_the_ends():
    assert losses.opacity_binarisation(torch.tensor([0.0, 1.0])) == 0
    assert losses.opacity_binarisation(torch.tensor([0.5])) == 1


def test_scale_penalty_grows_with_size():
    scales = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.scale_penalty(2 * scales), 2 * losses.scale_penalty(scales))


def test_anisotropy_ignores_size_and_tolerates_the_ratio():
    assert losses.anisotropy(torch.tensor([[1.0, 5.0, 10.0]])) == 0
    needle = torch.tensor([[1.0, 1.0, 13.0]])
    assert losses.anisotropy(needle).item() == pytest.approx(3.0)
    torch.testing.assert_close(losses.anisotropy(needle * 0.01), losses.anisotropy(needle))


def test_depth_smoothness_sees_steps_on_the_object_but_not_its_outline():
    depth, alpha = image(2.0), image(1.0)
    assert losses.depth_smoothness(depth, alpha) == 0
    depth[:, :4] = 3.0
    assert losses.depth_smoothness(depth, alpha).item() == pytest.approx(1 / 7)  # one of seven row pairs
    depth[:, :4] = 0.0  # as a renderer gives where nothing was hit
    alpha[:, :4] = 0.0
    assert losses.depth_smoothness(depth, alpha) == 0


def test_depth_smoothness_cannot_be_lowered_by_transparency():
    result = fake_render()
    loss = losses.depth_smoothness(result.depth, result.alpha)
    by_depth, by_alpha = torch.autograd.grad(loss, [result.depth, result.alpha], allow_unused=True)
    assert by_depth.abs().sum() > 0 and by_alpha is None


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_scales_its_own_finite_differentiable_term(name):
    scene, result = init_blob(20), fake_render()
    with torch.no_grad():
        scene["scales"].normal_()
    total, values = regularization(result, scene, replace(LossWeights(), **{name: 2.5}))
    assert list(values) == [name] and total.isfinite() and total > 0
    torch.testing.assert_close(total.detach(), 2.5 * values[name])
    total.backward()


def test_no_weights_give_zero_and_no_terms():
    total, values = regularization(fake_render(), init_blob(3), LossWeights())
    assert total == 0 and values == {}


def test_every_weight_has_its_term():
    assert list(losses.TERMS) == NAMES


def test_what_holds_a_scene_is_zero_where_it_started():
    generator = torch.Generator().manual_seed(0)
    origin = init_blob(20, generator=generator)
    cameras = orbit([0.0, 90.0], 0.0, 3.0, 40.0, 16, 16)
    weights, rows = HoldWeights(rgb=2.0, alpha=3.0, means=5.0, colors=7.0), torch.arange(20)
    before, white = render(origin, cameras), torch.ones(2, 3)
    total, terms = holding(before, before, white, origin, origin, rows, weights)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert set(terms) == {"hold_rgb", "hold_alpha", "hold_means", "hold_sh0"}
    scene = joined(origin, init_blob(5, generator=generator))
    with torch.no_grad():
        scene["means"][:20] += torch.tensor([0.3, 0.0, 0.4])
    rows = torch.arange(25)  # the last five have no ancestor, and are not held
    total, terms = holding(render(scene, cameras), before, white, scene, origin, rows, weights)
    assert float(terms["hold_means"]) == pytest.approx(0.25 * 20 / 25, rel=1e-4)
    assert float(terms["hold_sh0"]) == 0.0
    expected = 2 * terms["hold_rgb"] + 3 * terms["hold_alpha"] + 5 * terms["hold_means"]
    torch.testing.assert_close(total.detach(), expected)
    falling = replace(weights, final=0.2)
    late, _ = holding(render(scene, cameras), before, white, scene, origin, rows, falling, 0.0, 0.5)
    torch.testing.assert_close(late.detach(), 0.6 * expected)
    weak = replace(weights, clean=0.1)  # the silhouette is held as before
    half, _ = holding(render(scene, cameras), before, white, scene, origin, rows, weak, 0.5)
    silhouette = 3 * terms["hold_alpha"]
    torch.testing.assert_close(half.detach(), 0.5 * (expected - silhouette) + silhouette)


def test_a_silhouette_may_shrink_and_lose_its_holes_but_not_grow():
    disk = torch.zeros(1, 16, 16, 1)
    disk[:, 4:12, 4:12] = 1.0
    holed = disk.clone()
    holed[:, 7:9, 7:9] = 0.0
    assert overgrowth(disk, holed).item() == overgrowth(holed, disk).item() == 0.0
    assert overgrowth(torch.zeros_like(disk), disk).item() == 0.0
    assert overgrowth(torch.ones_like(disk), disk).item() == pytest.approx(1 - 8 * 8 / 256)
    soft = 0.3 * torch.nn.functional.pad(disk, (0, 0, 1, 0, 1, 0))[:, :16, :16]
    assert overgrowth(disk, disk.maximum(soft)).item() == 0.0
    assert overgrowth(disk.maximum((soft > 0).float()), disk.maximum(soft)).item() > 0.0  # nor harden
    wider = torch.nn.functional.pad(disk, (0, 0, 1, 0, 1, 0))[:, :16, :16].maximum(disk)
    torn = 0.5 * disk  # half transparent all over: what lacks most of its Gaussians may grow by a pixel
    assert overgrowth(0.5 * wider, torn).item() == 0.0 < overgrowth(wider, disk).item()


def test_a_coarse_hold_sees_other_colors_but_neither_holes_nor_grain():
    blob = init_blob(60, 0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))
    camera, white = orbit([0.0], 0.0, 3.0, 40.0, 32, 32), torch.ones(1, 3)
    before = render(blob, camera, white)
    assert losses.recolored(before, before, white).item() == 0.0
    holed = replace(before, rgb=before.rgb.clone(), alpha=before.alpha.clone())
    holed.rgb[:, ::2], holed.alpha[:, ::2] = 1.0, 0.0  # every other row, before white
    grain = replace(before, rgb=before.rgb + 0.2 * (torch.arange(32) % 2 - 0.5)[:, None] * before.alpha)
    red = replace(before, rgb=before.rgb + before.alpha * torch.tensor([0.2, 0.0, 0.0]))
    errors = [losses.recolored(view, before, white).item() for view in (holed, grain, red)]
    assert max(errors[:2]) < 0.1 * errors[2]


def test_what_surprises_the_teacher_is_held_less():
    weights = HoldWeights(clean=0.02, fall=5.0)
    grips = [weights.grip(surprise) for surprise in (0.01, 0.02, 0.024, 0.2)]
    assert grips[:2] == [1.0, 1.0] and grips[2] == pytest.approx(math.exp(-1)) and grips[3] < 1e-15
    assert HoldWeights().grip(9.0) == 0.0


def test_without_weights_nothing_holds():
    origin = init_blob(5)
    view = render(origin, orbit([0.0], 0.0, 3.0, 40.0, 8, 8))
    total, terms = holding(view, None, torch.ones(1, 3), origin, origin, torch.arange(5), HoldWeights())
    assert total.item() == 0.0 and not terms and not HoldWeights().sees
