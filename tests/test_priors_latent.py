"""LatentPrior on tiny random pipelines in diffusers layout, with either autoencoder."""

# diffusers' and transformers' annotations are narrower than what they take
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportCallIssue=false

import os

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tiny import make_pipeline, resumable, resumes_in_the_same_bytes

from splatdistill.errors import UserError
from splatdistill.guidance.prompts import ViewPrompts
from splatdistill.priors import load_prior
from splatdistill.priors.base import cfg
from splatdistill.priors.latent import default_dtype


@pytest.fixture(scope="module", params=["AutoencoderKL", "AutoencoderTiny"])
def folder(request, tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(folder, dtype=torch.float32)


@pytest.fixture
def broken(tmp_path):
    """Return a folder of its own to damage."""
    return make_pipeline(tmp_path, "AutoencoderTiny")


def test_the_prior_honours_the_folders_configuration(prior):
    assert prior.prediction_type == "v_prediction"
    assert prior.latent_shape == (4, 8, 8) and prior.image_size == 32
    assert prior.alphas_cumprod.shape == (500,) and prior.alphas_cumprod.dtype == torch.float64
    expected = DDIMScheduler(
        beta_start=0.001, beta_end=0.013, beta_schedule="scaled_linear", num_train_timesteps=500
    ).alphas_cumprod
    torch.testing.assert_close(prior.alphas_cumprod.float(), expected)
    assert not any(
        p.requires_grad for net in (prior.unet, prior.vae, prior.text_encoder) for p in net.parameters()
    )
    assert prior.vocabulary is None


def test_predict_is_the_pipelines_own_unet_call_on_each_branch(folder, prior):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    text, null = pipeline.encode_prompt(["a red mushroom, front view", "a dog"], "cpu", 1, True)
    torch.testing.assert_close(prior.embed(["a red mushroom, front view", "a dog"]), text)
    torch.testing.assert_close(prior.embed([""]), null[:1])
    z_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10, 450])
    outputs = prior.predict(z_t, t, cfg(null, text, 7.5))
    assert outputs.shape == (2, 2, 4, 8, 8) and outputs.dtype == torch.float32
    with torch.no_grad():
        for branch, hidden in zip(outputs, (null, text), strict=True):
            expected = pipeline.unet(z_t, t, encoder_hidden_states=hidden).sample
            torch.testing.assert_close(branch, expected, atol=1e-5, rtol=1e-4)


def test_a_branch_without_weight_is_zero(prior):
    hidden = prior.embed(["", "a dog"])
    cond = cfg(hidden[:1], hidden[1:], 1.0)
    outputs = prior.predict(torch.randn(1, 4, 8, 8), torch.tensor([3]), cond)
    assert not outputs[0].any() and outputs[1].any()


def test_encode_is_the_autoencoders_scaled_mean_and_differentiable(folder, prior):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    z = prior.encode(rgb)
    encoded = pipeline.vae.encode(2 * rgb - 1)
    raw = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    shift = getattr(pipeline.vae.config, "shift_factor", None) or 0.0
    torch.testing.assert_close(z, (raw - shift) * pipeline.vae.config.scaling_factor, atol=1e-5, rtol=1e-4)
    z.square().sum().backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0
    decoded = prior.decode(z.detach())
    assert decoded.shape == rgb.shape and decoded.min() >= 0.0 and decoded.max() <= 1.0
    with torch.no_grad():
        expected = (pipeline.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-3)


def test_images_of_another_size_are_resized(prior):
    assert prior.encode(torch.rand(1, 3, 48, 48)).shape == (1, 4, 8, 8)
    assert prior.encode(torch.rand(1, 3, 16, 16)).shape == (1, 4, 8, 8)


def test_lower_precision_stays_inside_the_networks(folder):
    half = load_prior(folder, dtype=torch.bfloat16)
    full = load_prior(folder, dtype=torch.float32)
    z_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 499])
    cond = cfg(full.embed(["", ""]), full.embed(["a dog"] * 2), 7.5)
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    assert half.encode(torch.rand(1, 3, 32, 32)).dtype == half.embed(["a"]).dtype == torch.float32
    torch.testing.assert_close(half.predict(z_t, t, cond), full.predict(z_t, t, cond), atol=0.05, rtol=0.05)


def test_a_long_prompt_leaves_the_view_words_to_be_read(prior):
    long = "a red dog, " * 20
    views = ["front view", "side view", "back view"]
    cut = ViewPrompts(long, fit=prior.fit)
    hidden = prior.embed([cut.text(view) for view in views])
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(hidden[1], hidden[2])
    assert torch.equal(*prior.embed([f"{long}, {view}" for view in views[:2]]))  # what happened without
    assert cut.left_out() and prior.fit("a red dog", [", front view"]) == "a red dog"


def expect_one_line(path, match):
    with pytest.raises(UserError, match=match) as caught:
        load_prior(path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_a_users_error(tmp_path):
    expect_one_line(tmp_path / "nothing", "no such folder")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(broken, part):
    weights = next((broken / part).glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    expect_one_line(broken, "pickled weights are refused")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights_are_a_users_error(broken, part):
    weights = next((broken / part).glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    expect_one_line(broken, "cannot load")


def test_missing_tensors_are_a_users_error(broken):
    from safetensors.torch import load_file, save_file

    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("conv_in.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    expect_one_line(broken, "lacks 1 of its weights")


@pytest.mark.parametrize(
    "damaged",
    [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_damaged_configuration_is_a_users_error(broken, damaged):
    assert (broken / damaged).is_file()
    (broken / damaged).write_text("{ not json")
    expect_one_line(broken, "cannot load")


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(folder, prior):
    other = load_prior(folder, "cuda", torch.float32)
    z_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 499])
    hidden = prior.embed(["", "a dog"])
    torch.testing.assert_close(other.embed(["", "a dog"]).cpu(), hidden, atol=1e-2, rtol=1e-2)
    cond = cfg(hidden[:1].expand(2, -1, -1), hidden[1:].expand(2, -1, -1), 7.5)
    on_gpu = cfg(cond.embeddings[0].cuda(), cond.embeddings[1].cuda(), 7.5)
    result = other.predict(z_t.cuda(), t, on_gpu).cpu()
    torch.testing.assert_close(result, prior.predict(z_t, t, cond), atol=1e-2, rtol=1e-2)


def test_cuda_runs_in_half_precision():
    assert default_dtype("cuda:0") == torch.float16
    assert default_dtype("cpu") in (torch.bfloat16, torch.float32)


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(folder, method, tmp_path):
    resumes_in_the_same_bytes(folder, method, tmp_path)
