"""Conditioning algebra, branch skipping, and the toy prior's closed form."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from splatdistill import ops
from splatdistill.priors.base import (
    Conditioning,
    ToyPrior,
    alpha_bar_at,
    cfg,
    flow_alphas_cumprod,
    run_branches,
    scaled_linear_alphas_cumprod,
)

PREDICTIONS = ["epsilon", "sample", "v_prediction", "flow"]


def embeddings(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cfg_weights_sum_to_one_and_are_linear_in_g():
    null, text = embeddings(0, 3, 2, 5), embeddings(1, 3, 2, 5)
    cond = cfg(null, text, 7.5)
    assert cond.embeddings.shape == (2, 3, 2, 5)
    assert cond.weights.tolist() == [[-6.5] * 3, [7.5] * 3]
    assert torch.equal(cond.with_guidance(-7.5).weights, cfg(null, text, -7.5).weights)
    assert torch.equal(cond.with_guidance(0.0).with_guidance(2.0).weights, cfg(null, text, 2.0).weights)


def test_perp_neg_guidance_scales_all_differences_alike():
    negatives = torch.tensor([[-0.5, 0.0]])
    cond = Conditioning(embeddings(0, 3, 2, 1, 4), 10.0, negatives=negatives).with_guidance(-2.0)
    assert cond.weights.tolist() == [[1, 1], [-2, -2], [1, 0]] and cond.perp_neg
    assert cond.with_guidance(0.0).with_guidance(10.0).weights.tolist() == [[1, 1], [10, 10], [-5, 0]]


def test_a_scale_must_be_set_before_the_weights_are_asked_for():
    cond = cfg(embeddings(0, 2, 1, 3), embeddings(1, 2, 1, 3))
    with pytest.raises(ValueError, match="guidance scale is not set"):
        _ = cond.weights
    assert cond.with_default(3.0).weights[1].tolist() == [3.0, 3.0]
    assert cond.with_guidance(2.0).with_default(3.0).scale == 2.0


def test_select_keeps_the_chosen_samples():
    cond = cfg(embeddings(0, 4, 1, 3), embeddings(1, 4, 1, 3), 2.0).select(torch.tensor([3, 1]))
    assert torch.equal(cond.embeddings[1], embeddings(1, 4, 1, 3)[[3, 1]]) and cond.weights.shape == (2, 2)


@pytest.mark.parametrize(
    ("g", "evaluated"), [(0.0, [True, False]), (1.0, [False, True]), (7.5, [True, True])]
)
def test_a_branch_without_weight_is_not_evaluated(g, evaluated):
    rows = []

    def network(z, t, hidden):
        rows.append(len(z))
        return z + hidden.mean()

    cond = cfg(torch.ones(3, 1, 2), 2 * torch.ones(3, 1, 2), g)
    outputs = run_branches(network, torch.ones(3, 4, 2, 2), torch.zeros(3, dtype=torch.long), cond)
    assert outputs.shape == (2, 3, 4, 2, 2)
    assert rows == [3 * sum(evaluated)]
    assert [bool(branch.any()) for branch in outputs] == evaluated


def test_perp_neg_always_evaluates_the_null_branch():
    cond = Conditioning(torch.ones(3, 2, 1, 2), 5.0, negatives=torch.zeros(1, 2))
    outputs = run_branches(lambda z, t, e: z, torch.ones(2, 1, 1, 1), torch.zeros(2), cond)
    assert outputs.flatten(1).tolist() == [[1, 1], [1, 1], [0, 0]]


def test_alpha_bar_is_one_at_negative_timesteps():
    prior = ToyPrior(torch.zeros(4, 2, 2))
    alpha_bar = alpha_bar_at(prior, torch.tensor([-99, 0, 999]))
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar.tolist() == [1.0, prior.alphas_cumprod[0].item(), prior.alphas_cumprod[999].item()]


def test_the_default_noise_levels_are_those_of_stable_diffusion():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(
        scaled_linear_alphas_cumprod().float(), scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_toy_prediction_is_the_posterior_mean(prediction_type):
    """Over many draws, the target less the closed form is centered and uncorrelated with z_t."""
    generator = torch.Generator().manual_seed(0)
    mean, variance, count = (
        torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1),
        torch.tensor([0.3, 2.0, 1.0]),
        40_000,
    )
    prior = ToyPrior(mean, variance.view(3, 1, 1), prediction_type)
    x_0 = mean + variance.sqrt().view(3, 1, 1) * torch.randn(count, 3, 1, 1, generator=generator)
    eps = torch.randn(count, 3, 1, 1, generator=generator)
    t = torch.full((count,), 400)
    signal, sigma = (
        alpha.sqrt().float() for alpha in (prior.alphas_cumprod[400], 1 - prior.alphas_cumprod[400])
    )
    z_t = signal * x_0 + sigma * eps
    target = {"epsilon": eps, "sample": x_0, "v_prediction": signal * eps - sigma * x_0, "flow": eps - x_0}
    hidden = prior.embed(["anything"]).expand(count, -1, -1)
    residual = target[prediction_type] - prior.predict(z_t, t, cfg(hidden, hidden, 1.0))[1]
    assert residual.mean(dim=0).abs().max() < 0.03
    assert (residual * z_t).mean(dim=0).abs().max() < 0.06


def test_toy_means_follow_the_text_and_interpolate():
    means = {"": torch.zeros(4, 2, 2), "a": torch.ones(4, 2, 2)}
    hidden = ToyPrior(means).embed(["", "a"])
    assert hidden.shape == (2, 1, 16)
    assert hidden.mean(dim=(1, 2)).tolist() == [0.0, 1.0]


def test_toy_encode_is_differentiable_and_decode_inverts_it():
    prior = ToyPrior(torch.zeros(4, 8, 8), image_size=16)
    cells = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).requires_grad_()
    z = prior.encode(rgb)
    assert z.shape == (2, 4, 8, 8)
    torch.testing.assert_close(prior.decode(z.detach()), rgb.detach())
    z.square().sum().backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_moves_are_those_of_diffusers_scheduler_down_and_up(shift: float) -> None:
    """Euler steps of FlowMatchEulerDiscreteScheduler, in its own coordinates, and the same backward."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    s, table = scheduler.sigmas.double(), flow_alphas_cumprod(100_000)
    steps = (s[:-1] * 100_000).round().long() - 1
    s = torch.cat([(steps + 1) / 100_000, s[-1:]])  # as the table has them
    scheduler.sigmas = s
    generator = torch.Generator().manual_seed(0)
    x = x_t = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    alphas = torch.cat([table[steps], torch.ones(1, dtype=torch.float64)])
    seen = []
    for i, t in enumerate(scheduler.timesteps):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = scheduler.step(v, t, x, return_dict=False)[0].double()
        seen.append((v, x))
        x_t = moved(x_t, v, alphas[i], alphas[i + 1])
        length = ((1 - s[i + 1]) ** 2 + s[i + 1] ** 2).sqrt()
        torch.testing.assert_close(x_t * length, x, atol=1e-5, rtol=1e-5)
    for i in reversed(range(len(seen) - 1)):  # inversion: from s[i + 1] back up to s[i] by the velocity there
        length = ((1 - s[i + 1]) ** 2 + s[i + 1] ** 2).sqrt()
        v = seen[i][0]
        up = moved(seen[i][1] / length, v, alphas[i + 1], alphas[i])
        expected = seen[i][1] + (s[i] - s[i + 1]) * v
        length = ((1 - s[i]) ** 2 + s[i] ** 2).sqrt()
        torch.testing.assert_close(up * length, expected, atol=1e-5, rtol=1e-5)


def moved(x_t: torch.Tensor, v: torch.Tensor, now: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return x_t after one move by a velocity."""
    coefficients = ops.ddim_coefficients(now.expand(len(x_t)), following.expand(len(x_t)), "flow")
    return ops.ddim_step(x_t, v[None], torch.ones(1, len(x_t)), coefficients)
