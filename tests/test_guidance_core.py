"""The skeleton: loss scale, closed forms on a Gaussian, and the equivalences with DDIM sampling."""

# a ToyPrior's mean is a mapping here; diffusers' return types are unions
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import pytest
import torch
from diffusers import DDIMScheduler

from splatdistill.guidance.core import distill, sample
from splatdistill.guidance.latents import cached_sdi
from splatdistill.guidance.methods import SDI, SDS
from splatdistill.guidance.noise import Inversion
from splatdistill.priors.base import ToyPrior, cfg

SHAPE = (4, 4, 4)
PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


def toy(prediction_type="epsilon", variance=0.5):
    generator = torch.Generator().manual_seed(7)
    means = {text: torch.randn(SHAPE, generator=generator) for text in ("", "text")}
    return ToyPrior(means, variance, prediction_type)


def latents(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def guided(prior, count, g):
    hidden = prior.embed(["", "text"])
    return cfg(hidden[:1].expand(count, -1, -1), hidden[1:].expand(count, -1, -1), g)


@pytest.mark.parametrize("method", [SDS(), SDI()])
def test_backward_injects_the_gradient_averaged_over_the_batch(method):
    prior, z = toy(), latents(3).requires_grad_()
    result = distill(
        prior,
        z,
        torch.tensor([50, 400, 900]),
        guided(prior, 3, 7.5),
        method,
        torch.Generator().manual_seed(0),
    )
    result.loss.backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, result.gradient / 3, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.loss.detach(), 0.5 * result.gradient.square().sum() / 3)
    torch.testing.assert_close(result.target, z.detach() - result.gradient)
    assert result.loss.requires_grad and not result.gradient.requires_grad


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_sds_on_a_gaussian_has_its_closed_form(prediction_type):
    """(1-ab) (e_g - eps), with e_i = sqrt(1-ab) (z_t - sqrt(ab) mean_i) / (ab var + 1 - ab)."""
    prior, z, t = toy(prediction_type), latents(3), torch.tensor([50, 400, 900])
    result = distill(prior, z, t, guided(prior, 3, 100.0), SDS(), torch.Generator().manual_seed(4))
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(4)).double()
    ab = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
    mean = prior.mean[""].double() + 100.0 * (prior.mean["text"] - prior.mean[""]).double()
    surprise = (ab.sqrt() * z.double() + (1 - ab).sqrt() * eps - ab.sqrt() * mean) / (ab * 0.5 + 1 - ab)
    expected = (1 - ab) * ((1 - ab).sqrt() * surprise - eps)
    torch.testing.assert_close(result.gradient.double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_sdi_moves_latents_to_the_denoised_estimate(prediction_type):
    prior, z, t = toy(prediction_type), latents(3), torch.tensor([250, 400, 900])
    result = distill(prior, z, t, guided(prior, 3, 7.5), SDI(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.target, result.x0_hat, atol=1e-3, rtol=1e-4)


def test_sdi_without_eta_has_no_gradient_variance_and_sds_has():
    prior, z, t = toy(), latents(1), torch.tensor([500])
    still = SDI(inversion=Inversion(eta=0.0, tau=0.0))
    runs = {
        method.name: torch.stack(
            [
                distill(
                    prior, z, t, guided(prior, 1, 7.5), method, torch.Generator().manual_seed(seed)
                ).gradient
                for seed in range(4)
            ]
        )
        for method in (still, SDS())
    }
    assert not runs["sdi"].var(dim=0).any()
    assert runs["sds"].var(dim=0).min() > 0


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_cached_sdi_with_assigned_targets_is_the_ddim_sample(prediction_type):
    prior, noise = toy(prediction_type), latents(2)
    cond, steps = guided(prior, 2, 7.5), 12
    found = cached_sdi(prior, cond, noise, steps)
    torch.testing.assert_close(found, sample(prior, cond, noise, steps), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_sampling_agrees_with_diffusers_ddim(prediction_type, set_alpha_to_one):
    """The last move ends at the scheduler's own clean end: 1, or alphas_cumprod[0]."""
    prior, x = toy(prediction_type), latents(2)
    prior.clean_alpha_bar = 1.0 if set_alpha_to_one else prior.alphas_cumprod[0].item()
    cond = guided(prior, 2, 3.0)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    result = sample(prior, cond, x, 10)
    for t in scheduler.timesteps:
        null, text = prior.predict(x, t.repeat(2), cond)
        x = scheduler.step(null + 3.0 * (text - null), int(t), x).prev_sample
    torch.testing.assert_close(result, x, atol=1e-4, rtol=1e-4)


def test_samples_follow_the_priors_distribution():
    prior = toy(variance=0.25)
    x = sample(prior, guided(prior, 400, 1.0), latents(400), 200)
    torch.testing.assert_close(x.mean(dim=0), prior.mean["text"], atol=0.12, rtol=0.0)
    assert x.std(dim=0).mean().item() == pytest.approx(0.5, rel=0.05)


def test_eta_samples_repeat_with_their_generator():
    prior, x = toy(), latents(1)
    draws = [
        sample(prior, guided(prior, 1, 1.0), x, 5, 1.0, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.gpu
@pytest.mark.parametrize("method", [SDI(inversion=Inversion(eta=0.0, tau=0.0)), SDS()])
def test_distillation_on_the_gpu_agrees_with_the_cpu(method):
    t = torch.tensor([250, 600])
    results = {}
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)  # lives on the CPU: the same draws for both
        prior = ToyPrior({text: mean.to(device) for text, mean in toy().mean.items()}, 0.5, "v_prediction")
        z = latents(2).to(device).requires_grad_()
        result = distill(prior, z, t, guided(prior, 2, 7.5), method, generator)
        result.loss.backward()
        results[device] = [
            value.detach().cpu() for value in (result.gradient, result.x0_hat, z.grad) if value is not None
        ]
    for cpu, cuda in zip(results["cpu"], results["cuda"], strict=True):
        torch.testing.assert_close(cuda, cpu, atol=1e-3, rtol=1e-4)


def test_branches_without_a_scale_take_the_methods():
    prior, z, t = toy(), latents(2), torch.tensor([300, 600])
    hidden = prior.embed(["", "text"])
    unset = cfg(hidden[:1].expand(2, -1, -1), hidden[1:].expand(2, -1, -1))
    found = [
        distill(prior, z, t, cond, SDS(), torch.Generator().manual_seed(0)).gradient
        for cond in (unset, guided(prior, 2, 100.0))
    ]
    assert torch.equal(*found)
