import math

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.scene import gaussians as G
from splatdistill.scene.densification import (
    MAX_COPIES,
    DensificationConfig,
    Densifier,
    keep_mask,
    lonely_mask,
    relocation,
    statistics,
)


def adam(scene) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.Adam([value], lr=1e-3) for name, value in scene.items()}


def setup(count=40, degree=1, stepped=True, **changes):
    """Return a blob, its optimizers (after one step), and an initialized densifier that is due at step 10."""
    scene = G.init_blob(count, sh_degree=degree, generator=torch.Generator().manual_seed(0))
    optimizers = adam(scene)
    if stepped:
        for value in scene.values():
            value.grad = torch.linspace(1, 2, value.numel()).view_as(value)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    settings = {"start": 10, "stop": 100, "every": 10, "prune_scale3d": 10.0, "prune_opacity": 0.01}
    densifier = Densifier(DensificationConfig(**{**settings, **changes}))
    densifier.initialize(scene, optimizers)
    return scene, optimizers, densifier


def info(gradient, views=2, size=64, visible=None):
    """Return what a Render tells after a backward pass in which every view gave the same gradient [N, 2]."""
    means2d = torch.zeros(views, *gradient.shape, requires_grad=True)
    means2d.grad = gradient.expand_as(means2d).clone()
    radii = torch.ones(means2d.shape, dtype=torch.int32)
    if visible is not None:
        radii = radii * visible[..., None]
    return {"means2d": means2d, "radii": radii, "width": size, "height": size, "n_cameras": views}


def seen(gradient):
    """Return the statistics of such a pass."""
    return statistics(info(gradient))


def gradient_of(count, norms):
    """Pixel gradients [N, 2] with the given first norms in gsplat's normalized units (64 pixels, 2 views)."""
    gradient = torch.zeros(count, 2)
    gradient[: len(norms), 0] = torch.tensor(norms) / (32 * 2)
    return gradient


def check_consistent(scene, optimizers, densifier):
    count = len(scene["means"])
    for name, parameter in scene.items():
        assert len(parameter) == count and parameter.requires_grad and parameter.is_leaf
        (group,) = optimizers[name].param_groups
        assert group["params"][0] is parameter and list(optimizers[name].state) == [parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizers[name].state[parameter][key].shape == parameter.shape
    assert all(len(value) == count for value in densifier.state_dict().values())


def test_mean_gradient_is_normalized_as_gsplat_does():
    from gsplat.strategy import DefaultStrategy

    scene, _, densifier = setup(5)
    strategy, state = DefaultStrategy(), DefaultStrategy().initialize_state()
    visible = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1]])
    for seed in range(2):
        told = info(torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)), visible=visible)
        densifier.after_backward(scene, {}, 1, densifier.seen(1, told))
        strategy._update_state(scene, state, {**told, "gaussian_ids": None})
    torch.testing.assert_close(densifier.state_dict(), {k: state[k] for k in ("grad2d", "count")})


def test_only_large_gradients_grow_and_the_optimizers_follow():
    scene, optimizers, densifier = setup(grow_grad2d=0.5, grow_scale3d=1.0)  # all small: duplicated
    counts = densifier.after_backward(scene, optimizers, 10, seen(gradient_of(40, [0.6, 0.4, 0.7])))
    assert counts == {"grown": 2} and len(scene["means"]) == 42
    assert torch.equal(scene["means"][40:], scene["means"][[0, 2]])
    check_consistent(scene, optimizers, densifier)
    state = optimizers["means"].state[scene["means"]]
    assert state["exp_avg"][:40].abs().sum() > 0 and (state["exp_avg"][40:] == 0).all()
    assert (densifier.state_dict()["grad2d"] == 0).all()


def test_large_gaussians_are_split_into_smaller_ones_near_by():
    torch.manual_seed(0)
    scene, optimizers, densifier = setup(grow_grad2d=0.5, grow_scale3d=1e-4)
    before, scale = scene["means"][0].detach().clone(), scene["scales"][0].exp().mean()
    assert densifier.after_backward(scene, optimizers, 10, seen(gradient_of(40, [0.6]))) == {"grown": 1}
    assert len(scene["means"]) == 41
    torch.testing.assert_close(scene["scales"][39:].exp().mean(), scale / 1.6, rtol=0.1, atol=0)
    assert (scene["means"][39:] - before).norm(dim=-1).max() < 5 * scale
    check_consistent(scene, optimizers, densifier)


def test_growth_takes_the_largest_gradients_up_to_the_cap():
    scene, optimizers, densifier = setup(grow_grad2d=0.1, grow_scale3d=1.0, cap_max=42)
    densifier.after_backward(scene, optimizers, 10, seen(gradient_of(40, [0.2, 0.9, 0.3, 0.8])))
    assert torch.equal(scene["means"][40:], scene["means"][[1, 3]])
    densifier.after_backward(scene, optimizers, 20, seen(gradient_of(42, [0.2, 0.9])))
    assert len(scene["means"]) == 42


def test_transparent_oversize_and_non_finite_gaussians_are_pruned():
    scene, optimizers, densifier = setup(prune_scale3d=0.5, prune_opacity=0.05)
    kept = scene["means"][3:].detach().clone()
    with torch.no_grad():
        scene["opacities"][0] = -6
        scene["scales"][1, 2] = math.log(0.6)
        scene["sh0"][2, 0, 1] = math.nan
    assert densifier.after_backward(scene, optimizers, 10, seen(torch.zeros(40, 2))) == {"pruned": 3}
    assert torch.equal(scene["means"].detach(), kept)
    check_consistent(scene, optimizers, densifier)


def test_pruning_never_empties_the_scene():
    scene, optimizers, densifier = setup(prune_opacity=0.99)
    assert densifier.after_backward(scene, optimizers, 10, seen(torch.zeros(40, 2))) == {}
    assert len(scene["means"]) == 40


def test_opacity_reset_happens_on_schedule_and_clears_its_moments():
    scene, optimizers, densifier = setup(reset_every=15, reset_opacity=0.02)
    for step in (0, 14, 105):
        assert "reset" not in densifier.after_backward(scene, optimizers, step, seen(torch.zeros(40, 2)))
    assert densifier.after_backward(scene, optimizers, 15, seen(torch.zeros(40, 2))) == {"reset": 40}
    torch.testing.assert_close(scene["opacities"].sigmoid().detach(), torch.full((40,), 0.02))
    assert (optimizers["opacities"].state[scene["opacities"]]["exp_avg"] == 0).all()
    check_consistent(scene, optimizers, densifier)


@pytest.mark.parametrize("step", [0, 9, 15, 100, 110])
def test_nothing_changes_outside_the_schedule(step):
    scene, optimizers, densifier = setup(grow_grad2d=0.1)
    before = {name: value.detach().clone() for name, value in scene.items()}
    assert densifier.after_backward(scene, optimizers, step, seen(gradient_of(40, [0.9]))) == {}
    assert all(torch.equal(value, before[name]) for name, value in scene.items())


def test_kind_none_never_changes_anything():
    scene, optimizers, densifier = setup(kind="none", reset_every=10, prune_opacity=0.99)
    assert densifier.after_backward(scene, optimizers, 10, seen(torch.ones(40, 2))) == {}
    assert len(scene["means"]) == 40


def test_works_before_the_first_optimizer_step():
    scene, optimizers, densifier = setup(stepped=False, degree=0, grow_grad2d=0.5)
    densifier.after_backward(scene, optimizers, 10, seen(gradient_of(40, [0.6])))
    assert len(scene["means"]) == 41


@pytest.mark.parametrize("kind", ["default", "mcmc"])
def test_a_restored_run_continues_bit_exactly(kind):
    def run(first, last, scene, optimizers, densifier):
        for step in range(first, last):
            gradient = torch.randn(len(scene["means"]), 2) / 64
            densifier.after_backward(scene, optimizers, step, seen(gradient))
            yield len(scene["means"])

    settings = {"kind": kind, "grow_grad2d": 0.9, "grow_scale3d": 0.05, "prune_opacity": 0.095}
    torch.manual_seed(0)
    whole = setup(**settings)
    counts = list(run(0, 45, *whole))
    assert len(set(counts)) > 2

    torch.manual_seed(0)
    half = setup(**settings)
    list(run(0, 25, *half))
    rng, state = torch.get_rng_state(), half[2].state_dict()
    scene = G.select(half[0], slice(None))
    optimizers = adam(scene)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(half[1][name].state_dict())
    densifier = Densifier(half[2].config)
    densifier.initialize(scene, optimizers)
    densifier.load_state_dict(state, scene)
    torch.manual_seed(99)
    torch.set_rng_state(rng)
    list(run(25, 45, scene, optimizers, densifier))
    assert all(torch.equal(scene[name], whole[0][name]) for name in G.NAMES)


def test_relocation_is_the_double_sum_of_equation_9():
    opacities = torch.tensor([0.1, 0.5, 0.9, 0.99, 0.3])
    scales = torch.rand(5, 3) + 0.1
    copies = torch.tensor([1, 2, 5, 17, MAX_COPIES])
    new_opacities, new_scales = relocation(opacities, scales, copies)
    for row, n in enumerate(copies.tolist()):
        o = opacities[row].double().item()
        o_new = 1 - (1 - o) ** (1 / n)
        total = sum(
            math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * o_new ** (k + 1)
            for i in range(1, n + 1)
            for k in range(i)
        )
        assert new_opacities[row].item() == pytest.approx(o_new, rel=1e-5)
        torch.testing.assert_close(new_scales[row], scales[row] * o / total, rtol=1e-5, atol=0)


def test_relocated_copies_cover_as_much_as_the_original():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for opacity, n in ((0.3, 2), (0.9, 3), (0.999, 8)):
        new, scale = relocation(torch.tensor([opacity]), torch.ones(1, 3), torch.tensor([n]))
        alpha = new.double() * torch.exp(-0.5 * (x / scale[0, 0].double()) ** 2)
        covered = (1 - (1 - alpha) ** n).sum()
        torch.testing.assert_close(covered, opacity * torch.exp(-0.5 * x**2).sum(), rtol=1e-4, atol=0)


def test_mcmc_moves_dead_gaussians_onto_live_ones_and_grows_to_the_cap():
    torch.manual_seed(0)
    scene, optimizers, densifier = setup(kind="mcmc", noise_lr=0.0, cap_max=41, prune_opacity=0.01)
    with torch.no_grad():
        scene["opacities"][:3] = -9
        scene["means"][3] = math.nan
    live = scene["means"][4:].detach().clone()
    assert densifier.after_backward(scene, optimizers, 10, []) == {"relocated": 4, "grown": 1}
    assert len(scene["means"]) == 41 and G.finite_mask(scene).all()
    same = (scene["means"][:4, None] == live).all(-1)  # [4, live]
    assert same.any(1).all()
    assert (scene["opacities"].sigmoid() >= 0.0099).all()
    check_consistent(scene, optimizers, densifier)
    assert densifier.after_backward(scene, optimizers, 20, []) == {}


def test_mcmc_noise_moves_transparent_gaussians_along_their_shape():
    torch.manual_seed(0)
    scene, optimizers, densifier = setup(500, kind="mcmc", noise_lr=1e5)
    with torch.no_grad():
        scene["quats"].copy_(torch.tensor([1.0, 0, 0, 0]))
        scene["scales"].copy_(torch.tensor([0.1, 0.01, 0.01]).log())
        scene["opacities"][:250], scene["opacities"][250:] = -7, 3
    before = scene["means"].detach().clone()
    densifier.after_backward(scene, optimizers, 5, [])
    moved = (scene["means"].detach() - before).abs()
    assert moved[250:].max() < 1e-3 * moved[:250].max()
    assert moved[:250, 0].mean() > 20 * moved[:250, 1].mean() > 0


def pruned_of(scene):
    return G.select(scene, keep_mask(scene, 0.15, 0.5, 0.02))


def test_final_prune_drops_haze_fog_floaters_and_non_finite():
    scene = G.init_blob(300, 0.4, scale=0.05, opacity=0.8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scene["opacities"][0] = -3  # haze
        scene["scales"][1] = 0.0  # fog
        scene["means"][2] = math.nan
        scene["means"][3:6] = torch.tensor([0.8, 0.0, 0.5])  # a floater of three
        scene["means"][6] = torch.tensor([1e9, 0.0, 0.0])
        scene["means"][200:, 2] += 1.0  # a second part, apart but large
    pruned = pruned_of(scene)
    assert torch.equal(pruned["means"], scene["means"][7:])


def test_final_prune_of_a_failed_run_is_not_empty():
    scene = G.init_blob(20, opacity=0.05, generator=torch.Generator().manual_seed(0))
    assert len(pruned_of(scene)["means"]) == 20
    lone = pruned_of(G.init_blob(1, opacity=0.9))
    assert len(lone["means"]) == 1


def test_impossible_settings_are_user_errors():
    with pytest.raises(UserError, match="every"):
        DensificationConfig(every=0)


@pytest.mark.parametrize("kind", ["default", "mcmc"])
def test_what_may_not_change_is_left_alone_and_offspring_know_their_ancestor(kind):
    scene, optimizers, _ = setup(stepped=False)
    with torch.no_grad():
        scene["opacities"][::4] = -9.0  # dead, on both sides
    changeable = torch.arange(40) >= 20
    config = DensificationConfig(
        kind=kind,
        start=10,
        stop=100,
        every=10,
        prune_opacity=0.01,
        prune_scale3d=10.0,
        reset_every=10,
        reset_opacity=0.05,
    )
    densifier = Densifier(config, changeable=changeable)
    densifier.initialize(scene, optimizers)
    before = {name: value.detach().clone() for name, value in scene.items()}
    torch.manual_seed(0)
    for step in (10, 20, 30):
        counts = densifier.after_backward(scene, optimizers, step, seen(torch.ones(len(scene["means"]), 2)))
        assert counts
    rows, held = densifier.rows, densifier.held
    assert len(scene["means"]) == len(rows) > 20 and held is not None
    assert torch.equal(rows[held], torch.arange(20))
    for name, value in before.items():
        assert torch.equal(scene[name][held], value[:20]), name
    again = Densifier(config, changeable=changeable)
    again.initialize(scene, optimizers)
    again.load_state_dict(densifier.state_dict(), scene)
    assert torch.equal(again.rows, rows)


def test_what_stands_alone_is_lonely_at_any_size_and_place():
    generator = torch.Generator().manual_seed(0)
    blob = G.init_blob(2000, 0.3, opacity=0.5, generator=generator)
    alone = G.init_blob(40, 1.0, scale=0.02, opacity=0.5, generator=generator)
    with torch.no_grad():
        alone["means"].copy_(torch.nn.functional.normalize(alone["means"], dim=1))
        blob["opacities"][:50] = -6.0  # invisible: no neighbors, and left alone
    scene = G.joined(blob, alone)
    for shift, scale in (((0.0, 0.0, 0.0), 1.0), ((30.0, -500.0, 2.0), 40.0)):
        lonely = lonely_mask(G.moved(scene, shift, scale), 4)
        assert lonely[2000:].all() and lonely[:2000].float().mean() < 0.01 and not lonely[:50].any()
    assert not lonely_mask(G.init_blob(8, opacity=0.9), 4).any()
