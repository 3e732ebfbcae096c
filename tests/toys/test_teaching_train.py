"""The teacher's training runs end to end, resumes, and exports a folder that diffusers loads."""

import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from splatdistill.ops import native
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.teaching import networks
from splatdistill.teaching.denoiser import Denoiser, DenoiserSettings, noised
from splatdistill.teaching.train import train

SETTINGS = replace(DenoiserSettings(), steps=3, batch=2, pictures=32, warmup=1, reading=2)


def test_every_known_word_is_one_token() -> None:
    tokenizer = networks.make_tokenizer(grammar.vocabulary())
    for word in sorted(grammar.vocabulary()):
        ids = tokenizer(word).input_ids[1:-1]
        assert len(ids) == (2 if word == "3d" else 1), word
    assert len(tokenizer) < 600


def test_the_longest_caption_fits() -> None:
    tokenizer = networks.make_tokenizer(grammar.vocabulary())
    text = "a photo of a small red ice cream cone on top of a red cylinder, overhead view, white background"
    assert len(tokenizer(text).input_ids) <= networks.MAX_TOKENS


def test_v_target_and_noisy_latents_give_back_clean_latents() -> None:
    scheduler = networks.make_scheduler()
    z, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t = torch.tensor([1, 500, 999])
    z_t, v = noised(scheduler, z, noise, t)
    alpha_bar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    assert torch.allclose(alpha_bar.sqrt() * z_t - (1 - alpha_bar).sqrt() * v, z, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not native.available():
        pytest.skip("needs the native extension")
    folder = tmp_path_factory.mktemp("training")
    train(folder, SETTINGS, autoencoder_steps=2, compiled=False, sheet=False)
    return folder


@pytest.mark.slow
def test_the_exported_folder_loads_in_diffusers_and_here(trained: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "teacher", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    output: Any = pipeline("a red car", num_inference_steps=2, output_type="np")
    image = output.images[0]
    assert image.shape == (64, 64, 3)
    prior: Any = load_prior(trained / "teacher")
    assert (
        prior.latent_shape == (networks.LATENT_CHANNELS, 16, 16) and prior.vocabulary == grammar.vocabulary()
    )
    assert prior.prediction_type == "v_prediction"


@pytest.mark.slow
def test_a_resumed_training_ends_in_the_same_weights(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "autoencoder.pt", tmp_path)
    shutil.copy(trained / "pictures.npz", tmp_path)
    denoiser = Denoiser(SETTINGS)
    from splatdistill.teaching.denoiser import train_denoiser

    train_denoiser(denoiser, tmp_path / "pictures.npz", tmp_path, compiled=False, stop=2)
    resumed = Denoiser(SETTINGS)
    resumed.load(tmp_path / "denoiser.pt")
    assert resumed.step == 2
    train_denoiser(resumed, tmp_path / "pictures.npz", tmp_path, compiled=False)
    whole = Denoiser(SETTINGS)
    whole.load(trained / "denoiser.pt")
    for name, value in whole.networks.state_dict().items():
        assert torch.equal(value, resumed.networks.state_dict()[name]), name


@pytest.mark.slow
def test_a_multiview_unet_starts_as_the_plain_teacher_and_trains(trained: Path, tmp_path: Path) -> None:
    from splatdistill.priors.base import cfg
    from splatdistill.priors.multiview import MultiViewPrior
    from splatdistill.scene.cameras import orbit
    from splatdistill.teaching.train import train_beside

    settings = replace(SETTINGS, steps=2, batch=8, task="multiview")
    train_beside(tmp_path, settings, str(trained / "teacher"), compiled=False)
    teacher = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    shutil.copytree(tmp_path / "unet_multiview", teacher / "unet_multiview")
    prior = load_prior(str(teacher / "unet_multiview"), dtype=torch.float32)
    assert isinstance(prior, MultiViewPrior)
    plain: Any = load_prior(teacher, dtype=torch.float32)
    assert prior.group == 4 and plain.group == 1
    hidden = prior.embed(["", "a red car"]).unsqueeze(1).expand(-1, 4, -1, -1)
    cameras = orbit([0, 90, 180, 270], 10.0, 3.0, 40.0, 64, 64)
    cond = prior.with_cameras(cfg(hidden[0], hidden[1], 3.0), cameras, torch.ones(4, 3))
    z_t = torch.randn(4, networks.LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = prior.predict(z_t, torch.full((4,), 500), cond)
    assert outputs.shape == (2, 4, networks.LATENT_CHANNELS, 16, 16) and outputs.isfinite().all()
    kernel = "down_blocks.0.resnets.0.conv1.weight"  # not in the multi-view folder: the plain teacher's
    assert torch.equal(prior.unet.get_parameter(kernel), plain.unet.get_parameter(kernel))
    # the same picture from the same camera in all four places: what another sees is what each sees itself
    same = z_t[:1].expand(4, -1, -1, -1).contiguous()
    start = Denoiser(settings)
    start.start_from(plain)
    at_start: Any = start.networks["unet"]
    text = plain.embed(["a red car"] * 4)
    joined = at_start(same, torch.full((4,), 500), text, class_labels=torch.zeros(4, 16)).sample
    alone = plain.unet(same, torch.full((4,), 500), text).sample
    torch.testing.assert_close(joined, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_image_conditioned_network_trains_and_leans_on_the_picture(trained: Path, tmp_path: Path) -> None:
    from splatdistill.priors.base import cfg
    from splatdistill.priors.zero123 import Zero123Prior
    from splatdistill.scene.cameras import orbit
    from splatdistill.scene.pictures import Reference
    from splatdistill.teaching.train import nearest, train_beside

    teacher = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    settings = replace(SETTINGS, steps=2, batch=8, task="image")
    train_beside(tmp_path, settings, str(teacher), compiled=False)
    shutil.copytree(tmp_path / "unet_image", teacher / "unet_image")
    prior = load_prior(nearest(str(teacher), "image"), dtype=torch.float32)
    assert isinstance(prior, Zero123Prior) and prior.group == 1 and not prior.view_words
    hidden = prior.embed(["", ""]).unsqueeze(1).expand(-1, 3, -1, -1)
    z_t = torch.randn(3, networks.LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))

    def outputs(picture: torch.Tensor, azimuth: float = 0.0, elevation: float = 15.0) -> torch.Tensor:
        camera = orbit(azimuth, elevation, 3.0, 40.0, 64, 64)
        told = prior.condition_on(Reference(picture, torch.ones(1, 64, 64), camera))
        views = orbit([azimuth + 30.0, azimuth + 150.0, azimuth + 270.0], elevation - 5, 3.0, 40.0, 64, 64)
        cond = told.with_cameras(cfg(hidden[0], hidden[1], 2.0), views, torch.ones(3, 3))
        return told.predict(z_t, torch.full((3,), 500), cond)

    null, seen = outputs(torch.zeros(3, 64, 64))
    other_null, other_seen = outputs(torch.ones(3, 64, 64))
    assert null.shape == z_t.shape and torch.equal(null, other_null) and not torch.allclose(seen, other_seen)
    torch.testing.assert_close(outputs(torch.zeros(3, 64, 64), 70.0)[1], seen, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(outputs(torch.zeros(3, 64, 64), elevation=35.0)[1], seen)  # it is told
    again = Denoiser(settings)
    again.start_from(prior)
    for key, value in prior.unet.state_dict().items():
        assert torch.equal(again.networks["unet"].state_dict()[key], value), key


@pytest.mark.slow
def test_a_picture_is_told_with_the_way_to_each_of_its_views(trained: Path) -> None:
    from splatdistill.priors.zero123 import relative_pose
    from splatdistill.teaching.denoiser import Dataset, draw_batch

    pictures = Dataset.load(
        trained / "pictures.npz", networks.make_tokenizer(grammar.vocabulary()), torch.device("cpu")
    )
    settings = replace(SETTINGS, batch=32, task="image")
    z_t, target, t, told, azimuths, seen = draw_batch(settings, 0, pictures, networks.make_scheduler())
    latents = (networks.LATENT_CHANNELS, 16, 16)
    assert azimuths is not None and seen is not None and seen.shape == (32, *latents)
    assert told.shape == (24, 5) and z_t.shape == target.shape == (24, *latents)
    assert (t.view(8, 3) == t.view(8, 3)[:, :1]).all()
    raw = pictures.latents.float() / pictures.scale.float()
    rows = (raw - seen[:, None]).square().flatten(2).sum(2).argmin(1)
    assert (rows.view(8, 4) == rows.view(8, 4)[:, :1] + torch.arange(4)).all() and not (rows[::4] % 4).any()
    assert torch.equal(raw[rows], seen)
    assert torch.allclose(azimuths, pictures.cameras(rows).azimuth_deg.deg2rad())
    shown = told.view(8, 3, 5).any(2)
    for scene, poses in enumerate(told.view(8, 3, 5)):
        cameras = pictures.cameras(rows.view(8, 4)[scene])
        ways = relative_pose(cameras[0], cameras)[1:]
        assert not poses.any() if not shown[scene].any() else torch.allclose(poses, ways)
    assert 4 <= int(shown.all(1).sum()) <= 8


@pytest.mark.slow
def test_make_teachers_makes_everything_that_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands one after another, each for one or two steps more than the last on that folder."""
    from splatdistill.priors.clip import Scorer
    from splatdistill.teaching import scorer
    from splatdistill.teaching import train as module

    @dataclass(frozen=True)
    class Short(DenoiserSettings):
        reading: int = 2

    monkeypatch.setattr(module, "DenoiserSettings", Short)
    monkeypatch.setattr(module, "sample_sheet", lambda teacher, path: None)
    root = Path(__file__).parents[1]
    listed = subprocess.run(
        ["make", "-n", "teachers", f"TEACHERS={tmp_path}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    took: dict[str, int] = {}
    for line in listed.stdout.splitlines():
        program, *words = shlex.split(line)
        small = ["--pictures", "256", "--threads", "2"]
        if words[:2] == ["-m", "splatdistill.teaching.train"]:
            folder = words[words.index("--out") + 1]
            took[folder] = took.get(folder, 0) + 1
            words[words.index("--steps") + 1] = str(took[folder])
            assert module.main([*words[2:], *small, "--autoencoder-steps", "2", "--no-compile"]) == 0
        elif words[:2] == ["-m", "splatdistill.teaching.scorer"]:
            assert scorer.main([*words[2:], *small, "--steps", "2"]) == 0
        elif program in ("cp", "mv", "mkdir"):
            subprocess.run([program, *words], check=True)
    shipped, made = root / "splatdistill" / "assets" / "teacher", tmp_path / "text" / "teacher"
    documents = {"README.md"}
    files = {str(path.relative_to(shipped)) for path in shipped.rglob("*") if path.is_file()} - documents
    assert files <= {str(path.relative_to(made)) for path in made.rglob("*")}
    for part in ("", "unet_multiview", "unet_image"):
        assert load_prior(str(made / part)).latent_shape == (networks.LATENT_CHANNELS, 16, 16)
    assert Scorer.load(str(tmp_path / "scorer")).texts(["a red car"]).isfinite().all()


@pytest.mark.slow
def test_compiled_blocks_have_the_gradients_of_the_eager_network() -> None:
    from splatdistill.teaching.denoiser import compile_blocks

    torch.manual_seed(0)
    unet: Any = networks.make_unet()
    unet.to(memory_format=torch.channels_last)
    x = torch.randn(8, networks.LATENT_CHANNELS, 16, 16).contiguous(memory_format=torch.channels_last)
    t, hidden, target = (
        torch.randint(0, 1000, (8,)),
        torch.randn(8, 24, 128),
        torch.randn(8, networks.LATENT_CHANNELS, 16, 16),
    )

    def gradients() -> dict[str, torch.Tensor]:
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(x, t, hidden).sample
        torch.nn.functional.mse_loss(predicted.float(), target).backward()
        return {name: p.grad.clone() for name, p in unet.named_parameters()}

    eager = gradients()
    compile_blocks(unet)
    for name, gradient in gradients().items():
        error = (gradient - eager[name]).norm()  # keys' biases have none but for rounding
        assert error < 0.45 * eager[name].norm() + 1e-5, name


@pytest.mark.slow
def test_a_weight_without_a_gradient_stops_the_training(trained: Path, tmp_path: Path) -> None:
    from splatdistill.teaching.denoiser import train_denoiser

    shutil.copy(trained / "pictures.npz", tmp_path)
    denoiser = Denoiser(SETTINGS)
    unet: Any = denoiser.networks["unet"]
    unet.mid_block.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(RuntimeError, match=r"no gradient, such as unet\."):
        train_denoiser(denoiser, tmp_path / "pictures.npz", tmp_path, compiled=False)
