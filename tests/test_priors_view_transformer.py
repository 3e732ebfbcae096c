from typing import Any

import pytest
import torch

from splatdistill.priors.view_transformer import ViewTransformer, describe_cameras, fold, patch_rays, unfold
from splatdistill.scene.cameras import orbit

SMALL: dict[str, Any] = dict(
    in_channels=3, out_channels=3, sample_size=8, outer_width=16, width=32, layers=2, head=16, told=16
)


def make(random: bool = True, **more) -> ViewTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = SMALL | {"cross_attention_dim": 8} | more
    network = ViewTransformer(**sizes)
    if random:
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return network.eval().requires_grad_(False)


def inputs(n: int, views: int, alpha_bar: float = 0.5):
    rng = torch.Generator().manual_seed(1)
    azimuth = torch.rand(n, generator=rng) * 6
    zero = torch.zeros(n)
    orbit = (azimuth, zero + 0.3, zero + 3, zero + 0.73)
    return {
        "sample": torch.randn(n, 3, 8, 8, generator=rng),
        "timestep": torch.randint(1000, (n // views, 1), generator=rng).repeat(1, views).flatten(),
        "alpha_bar": torch.full((n,), alpha_bar),
        "encoder_hidden_states": torch.randn(n // views, 5, 8, generator=rng),
        "cameras": describe_cameras(*orbit, zero),
        "rays": patch_rays(*orbit, 4),
        "background": torch.rand(n, 3, generator=rng),
        "shown": torch.randn(n, 3, 3, 8, 8, generator=rng),
        "offsets": torch.ones(n, 3, 5),
        "views": views,
    }


def test_fold_gathers_neighbors_and_unfold_is_its_inverse():
    x = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 3)
    folded = fold(x, 4)
    assert folded.shape == (1, 4, 12)
    assert folded[0, 0, ::3].tolist() == [0, 1, 4, 5] and folded[0, 3, ::3].tolist() == [10, 11, 14, 15]
    assert torch.equal(unfold(folded, 4), x)


@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.99])
def test_at_first_it_predicts_the_best_linear_guess(alpha_bar):
    std, mean = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    network = make(False, means=tuple(mean.tolist()), deviations=tuple(std.tolist()))
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(400, 3, 8, 8, generator=rng) * std.view(3, 1, 1) + mean.view(3, 1, 1)
    noise = torch.randn(clean.shape, generator=rng)
    a, b = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    z_t, v = a * clean + b * noise, a * noise - b * clean
    predicted = network(**inputs(400, 1, alpha_bar) | {"sample": z_t})
    for c in range(3):
        x, y = z_t[:, c].flatten(), v[:, c].flatten()
        slope = torch.cov(torch.stack([x, y]))[0, 1] / x.var()
        guess = y.mean() + slope * (z_t[:, c] - x.mean())
        torch.testing.assert_close(predicted[:, c], guess, atol=0.12, rtol=0.05)


def test_views_of_a_scene_see_each_other_and_other_scenes_do_not():
    network, given = make(), inputs(8, 4)
    before = network(**given)
    changed = given["sample"].clone()
    changed[0] += 1.0
    after = network(**given | {"sample": changed})
    moved = (after - before).abs().amax((1, 2, 3))
    assert (moved[:4] > 1e-5).all() and (moved[4:] == 0).all()


@pytest.mark.parametrize(
    "part", ["encoder_hidden_states", "cameras", "rays", "background", "shown", "offsets"]
)
def test_everything_that_is_told_matters(part):
    network, given = make(), inputs(2, 1)
    other = network(**given | {part: given[part] + 0.5})
    assert (other - network(**given)).abs().amax((1, 2, 3)).min() > 1e-5


def test_a_picture_that_is_missing_is_not_seen():
    network, given = make(), inputs(2, 1)
    given["offsets"] = given["offsets"] * torch.tensor([1.0, 0.0, 0.0])[:, None]
    changed = given["shown"].clone()
    changed[:, 1] += 1.0
    assert torch.equal(network(**given | {"shown": changed}), network(**given))
    changed[:, 0] += 1.0
    assert not torch.allclose(network(**given | {"shown": changed}), network(**given), atol=1e-3)


def test_rays_are_those_of_the_cameras():
    cameras = orbit([10.0, 200.0], [20.0, -5.0], 3.0, 42.0, 64, 64)
    angles = (cameras.azimuth_deg.deg2rad(), cameras.elevation_deg.deg2rad())
    rays = patch_rays(*angles, cameras.distance, cameras.fov_deg.deg2rad(), 4).view(2, 4, 4, 9)
    torch.testing.assert_close(rays[:, 0, 0, :3] * 3, cameras.positions)
    pixel = torch.tensor([24.0, 40.0, 1.0])  # middle of the patch in row 2, column 1 (16 pixels each)
    seen = torch.linalg.inv(cameras.Ks) @ pixel
    world = torch.einsum("vij,vj->vi", cameras.camtoworlds[:, :3, :3], seen)
    torch.testing.assert_close(rays[:, 2, 1, 3:6], torch.nn.functional.normalize(world, dim=1))
    moment = torch.linalg.cross(cameras.positions, rays[:, 2, 1, 3:6])
    torch.testing.assert_close(rays[:, 2, 1, 6:], moment)


def test_a_saved_network_is_the_same(tmp_path):
    network, given = make(means=(1.0, 0.0, -1.0), deviations=(2.0, 1.0, 0.5)), inputs(4, 4)
    network.save_pretrained(tmp_path)
    again = ViewTransformer.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**given), network(**given))
