"""Noise that lies on the Gaussians: white, of variance 1, and the same from every side. All of it exactly.

The noise in a view is linear in the noise that is carried; with the unit vectors as carried noise its
coefficients are found, and from these every variance and covariance, without drawing anything.
"""

import math

import torch
from gaussian import Known, T, close, latents

from splatdistill.guidance.cfd import CFD, NoiseField, carried_noise, visible
from splatdistill.guidance.core import distill
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.gaussians import from_tensors

SIDE = 16  # of the latents


def splat(means: torch.Tensor, scale: float, opacity: float = 0.995):
    count = len(means)
    return from_tensors(
        means=means,
        scales=torch.full((count, 3), math.log(scale)),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh0=torch.zeros(count, 1, 3),
        shN=torch.zeros(count, 0, 3),
    )


def ball(count: int):
    """Return Gaussians evenly over a sphere (a Fibonacci lattice), so large that it is closed."""
    k = torch.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, k * math.pi * (1 + 5**0.5)
    r = (1 - z**2).sqrt()
    return splat(0.8 * torch.stack([r * turn.cos(), r * turn.sin(), z], 1), 1.0 / count**0.5)


def coefficients(scene, cameras: Cameras) -> torch.Tensor:
    """Return how every carried noise, and the background's in each view, counts: [V, N + V h w, h, w]."""
    count, views, pixels = len(scene["means"]), len(cameras), SIDE * SIDE
    whole = count + views * pixels
    carried = torch.eye(count, whole)
    behind = torch.eye(whole)[count:].view(views, SIDE, SIDE, whole).permute(0, 3, 1, 2)
    return carried_noise(scene, cameras, carried, behind)


def seen_by(scene, view: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixel [N] of each Gaussian's center, and which [N] are seen well."""
    weights, _, centers = visible(scene, view)
    column, row = centers.floor().long().unbind(1)
    return row * SIDE + column, weights > 0.3 * weights.max()


def test_the_noise_in_a_view_has_variance_one_in_every_pixel_and_is_white() -> None:
    for scene in (ball(60), ball(800), splat(torch.zeros(1, 3), 0.5, 0.3)):
        c = coefficients(scene, orbit([0.0, 20.0], 10.0, 3.0, 40.0, 64, 64)).double()
        for view in c.flatten(2):
            covariance = view.T @ view  # [hw, hw]
            torch.testing.assert_close(covariance, torch.eye(SIDE * SIDE).double(), atol=1e-5, rtol=0)


def test_corresponding_points_of_two_views_have_the_same_noise_and_no_others_do() -> None:
    """With a Gaussian or so a pixel, it is the Gaussian's own noise that a view shows where it is."""
    scene, cameras = ball(60), orbit([0.0, 20.0], 10.0, 3.0, 40.0, SIDE, SIDE)
    first, second = coefficients(scene, cameras).flatten(2).double()
    (here, good), (there, better) = (seen_by(scene, view) for view in cameras)
    both = good & better
    assert both.sum() >= 10
    covariance = first.T @ second
    assert covariance[here[both], there[both]].mean() > 0.9
    pairs = torch.zeros_like(covariance, dtype=torch.bool)
    pairs[here, there] = True
    assert covariance[~pairs].abs().max() < 1e-6


def test_a_dense_surface_agrees_where_two_views_show_the_same_part_of_it_in_a_pixel() -> None:
    """A wall of 16 points a pixel, seen by a camera and by one a whole number of pixels aside."""
    pitch = 3.0 * 2 * math.tan(math.radians(20.0)) / SIDE / 4  # a quarter of a pixel, 3 units away
    steps = (torch.arange(-16, 16) + 0.5) * pitch
    y, z = torch.meshgrid(steps, steps, indexing="ij")
    scene = splat(torch.stack([torch.zeros_like(y), y, z], -1).view(-1, 3), pitch)
    view = orbit(0.0, 0.0, 3.0, 40.0, SIDE, SIDE)
    aside = Cameras.from_gsplat(view.viewmats + shifted(4 * pitch * 3), view.Ks, SIDE, SIDE)
    cameras = Cameras.from_gsplat(
        torch.cat([view.viewmats, aside.viewmats]), view.Ks.repeat(2, 1, 1), SIDE, SIDE
    )
    first, second = coefficients(scene, cameras).double()
    inside = slice(5, 11)
    same = (first[:, inside, 5:11] * second[:, inside, 8:14]).sum(0)
    apart = (first[:, inside, 5:11] * second[:, inside, 5:11]).sum(0)
    assert same.min() > 0.9 and apart.abs().max() < 1e-6


def shifted(x: float) -> torch.Tensor:
    """Return what moves the world along the image's x axis, added to a view matrix."""
    move = torch.zeros(1, 4, 4)
    move[0, 0, 3] = x
    return move


def test_what_is_behind_the_surface_does_not_count() -> None:
    scene = splat(torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]), 0.4)
    weights, _, _ = visible(scene, orbit(0.0, 0.0, 3.0, 40.0, SIDE, SIDE))
    assert weights[1] < 0.35 * weights[0]


def test_the_gradient_is_that_of_sds_with_the_carried_noise() -> None:
    known, z, scene = Known(), latents(0), ball(30)
    cameras = orbit([0.0, 90.0, 180.0], 10.0, 3.0, 40.0, 8, 8)
    state = CFD().start(known.prior, 5)
    found = distill(
        known.prior,
        z,
        T,
        known.cond(75.0),
        CFD(),
        torch.Generator().manual_seed(4),
        None,
        cameras,
        state,
        scene,
    )
    behind = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    eps = carried_noise(scene, cameras, state.noise, behind)
    assert torch.equal(found.noise, eps)
    expected = (1 - known.ab(T)) * (known.guided(known.noised(z, T, eps), T, 75.0) - eps)
    close(found.gradient.double(), expected)


def test_flat_pictures_have_one_noise_for_the_run() -> None:
    known, z = Known(), latents(0)
    state = CFD().start(known.prior, 5)
    found = distill(known.prior, z, T, known.cond(75.0), CFD(), state=state)
    assert torch.equal(found.noise[0], state.flat) and torch.equal(found.noise[0], found.noise[2])


def test_the_field_grows_with_the_scene_and_goes_on_where_it_was() -> None:
    field = NoiseField(Known().prior, 1)
    first = field.carried(5, 0.0).clone()
    assert torch.equal(field.carried(8, 0.0)[:5], first)
    saved = field.state_dict()
    other = NoiseField(Known().prior, 2)
    other.load_state_dict(saved)
    assert torch.equal(other.carried(20, 0.1), field.carried(20, 0.1))
    assert not torch.equal(NoiseField(Known().prior, 2).carried(5, 0.0), first)


def test_renewal_keeps_the_variance_and_forgets_slowly() -> None:
    field = NoiseField(Known().prior, 1)
    before = field.carried(20_000, 0.0).clone()
    after = field.carried(20_000, 0.19)
    assert abs(after.var().item() - 1.0) < 0.03
    assert abs((before * after).mean().item() - 0.9) < 0.03
