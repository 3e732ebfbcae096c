"""Every family of teachers on a tiny random folder in the published layout."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, make_family
from safetensors import safe_open
from test_priors_loading import change, refused
from tiny import resumable, resumes_in_the_same_bytes

from splatdistill import doctor, ops
from splatdistill.config.load import resolve
from splatdistill.guidance.core import distill
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.query import predicted_noise
from splatdistill.guidance.registry import METHODS
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise, lines
from splatdistill.priors.base import alpha_bar_at, cfg
from splatdistill.priors.folders import Folder
from splatdistill.priors.loading import probe, reader_of
from splatdistill.priors.pipeline import KEPT, PipelinePrior, Read, TextReader, pack, unpack
from splatdistill.scene.cameras import orbit

FLOWS = ["SD3Prior", "Flux2Prior", "PRXPrior", "PRXPixelPrior", "SanaPrior"]
TEXT = "a red mushroom"
every_family = pytest.mark.parametrize("name", FAMILIES)
QUICK = ("SD3Prior", "SDXLPrior", "IFPrior")  # one of each kind; the skeleton is the same for all
each_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a family's name to its folder, made once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = make_family(root, name)
        return made[name]

    return folder_of


def loaded(folder: Path) -> PipelinePrior:
    prior: Any = load_prior(folder, "cpu", torch.float32)
    return prior


@every_family
def test_a_folder_is_read_by_its_family_and_predicts(folders, name: str) -> None:
    assert reader_of(Folder("x", folders(name))).__name__ == name
    prior = loaded(folders(name))
    probe(prior)
    rgb = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z = prior.encode(rgb)
    assert z.shape == (2, *prior.latent_shape)
    z.square().sum().backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0
    shown = prior.decode(z.detach())
    assert shown.shape == (2, 3, prior.image_size, prior.image_size)
    null, text = prior.embed(["", TEXT])
    assert not torch.equal(null, text)
    hidden = torch.stack([null, text])[:, None].expand(-1, 2, -1, -1)
    outputs = prior.predict(z.detach(), torch.tensor([100, 900]), cfg(hidden[0], hidden[1], 5.0))
    assert outputs.shape == (2, 2, *prior.latent_shape) and outputs.isfinite().all()
    assert not torch.equal(outputs[0], outputs[1])  # the text matters


def started(prior: PipelinePrior, count: int) -> torch.Tensor:
    return torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FLOWS)
def test_one_step_is_that_of_diffusers_own_pipeline(folders, name: str, monkeypatch) -> None:
    """From pure noise at s = 1 one Euler step ends at x0_hat: text, time, guidance and latents all agree."""
    prior, g = loaded(folders(name)), 3.0
    pipeline: Any = getattr(diffusers, prior.pipeline).from_pretrained(folders(name))
    pipeline.set_progress_bar_config(disable=True)
    noise = started(prior, 1)
    given: dict[str, Any] = {"latents": noise * getattr(prior, "noise_scale", 1.0)}
    if name in ("PRXPrior", "PRXPixelPrior"):
        given["use_resolution_binning"] = False
        module = inspect.getmodule(type(pipeline))  # whose cleaning of texts needs a package that is not here
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    if name == "SanaPrior":  # its own scheduler rounds timesteps
        given |= {"use_resolution_binning": False, "clean_caption": False}
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if name == "Flux2Prior":  # of four layers, as 9, 18 and 27 are of 36
        given["text_encoder_out_layers"] = (1, 2, 3)
    side = prior.image_size
    sizes = {"height": side, "width": side}
    given |= {"num_inference_steps": 1, "guidance_scale": g, "output_type": "latent"} | sizes
    found = pipeline(prompt=TEXT, **given)[0]
    null, text = prior.embed(["", TEXT])
    cond = cfg(null[None], text[None], g)
    t = torch.tensor([999])
    coefficients = ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type)
    outputs = prior.predict(noise, t, cond)
    unweighted = torch.cat([coefficients, torch.ones(1, 1)], 1)
    x0 = ops.noise_residual(noise, outputs, cond.weights, unweighted, torch.zeros_like(noise))[1]
    expected = prior.unfolded(x0 / prior._scale + prior._shift) if name == "Flux2Prior" else x0
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["PixArtPrior", "SDXLPrior", "IFPrior"])
def test_the_denoiser_sees_what_diffusers_own_pipeline_shows_it(folders, name: str, monkeypatch) -> None:
    """The raw outputs of both branches in the pipeline's first step, at the last timestep."""
    prior, g = loaded(folders(name)), 3.0
    pipeline: Any = getattr(diffusers, prior.pipeline).from_pretrained(folders(name))
    pipeline.set_progress_bar_config(disable=True)
    kind = diffusers.DDPMScheduler if name == "IFPrior" else diffusers.DDIMScheduler
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    noise, seen = started(prior, 1), []
    denoiser = pipeline.unet if name != "PixArtPrior" else pipeline.transformer
    denoiser.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    side, given = prior.image_size, {"num_inference_steps": 1, "guidance_scale": g}
    if name == "IFPrior":
        monkeypatch.setattr(pipeline, "prepare_intermediate_images", lambda *_: noise)
        pipeline(TEXT, output_type="pt", **given)
    else:
        more = {"use_resolution_binning": False, "clean_caption": False} if name == "PixArtPrior" else {}
        pipeline(TEXT, height=side, width=side, latents=noise, output_type="latent", **given, **more)
    null, text = prior.embed(["", TEXT])
    outputs = prior.predict(noise, torch.tensor([999]), cfg(null[None], text[None], g))
    torch.testing.assert_close(outputs[:, 0], seen[0][:, : noise.shape[1]], atol=2e-5, rtol=1e-4)


@each_kind
def test_methods_give_a_gradient_on_every_family(folders, name: str) -> None:
    prior = loaded(folders(name))
    z = prior.encode(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    null, text = prior.embed(["", TEXT])
    cond, t = cfg(null[None], text[None], 5.0), torch.tensor([600])
    for method in ("sdi", "sds", "flow_sdi" if name in FLOWS else "sctd"):
        found = distill(prior, z, t, cond, METHODS[method](), torch.Generator().manual_seed(0))
        assert found.gradient.isfinite().all() and found.gradient.abs().sum() > 0, method


def test_a_run_resumes_in_the_same_bytes(folders, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(folders("SD3Prior"), "flow_sdi", tmp_path)


@pytest.mark.slow
@resumable
@every_family
def test_every_run_resumes_in_the_same_bytes(folders, name: str, method: str, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(folders(name), method, tmp_path)


@every_family
def test_the_doctor_says_what_it_is_and_what_it_needs(folders, name: str, tmp_path: Path, capsys) -> None:
    path, reader = folders(name), reader_of(Folder("x", folders(name)))
    found = appraise(str(path))
    assert found.views == 1 and found.pixels == loaded(path).image_size
    networks = {reader.place, *reader.encoders, *(["vae"] if reader.decoders else [])}
    assert found.parts.keys() == networks
    weights = sum(header_count(file) for file in path.rglob("*.safetensors"))
    assert sum(part.parameters for part in found.parts.values()) == weights
    told = {row[0]: row for row in lines(found, 2**40)}
    assert reader.__doc__ and told["teacher"][2] in reader.__doc__
    assert told["memory"][1] and "GFLOP" in told["cost of a step"][2] and not told["licence"][1]
    assert not {row[0]: row for row in lines(found, 1)}["memory"][1]
    other = shutil.copytree(path, tmp_path / "other")
    change(other / reader.place / "config.json", _class_name="AnotherModel")
    capsys.readouterr()
    assert doctor.main(["--prior", str(other)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "AnotherModel" in said


def header_count(file: Path) -> int:
    """Return how many numbers are in a safetensors file, read by its own library."""
    with safe_open(file, "pt") as opened:
        return sum(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118


@each_kind
def test_a_missing_part_is_one_line(folders, name: str, tmp_path: Path) -> None:
    prior_class = reader_of(Folder("x", folders(name)))
    for part in ("scheduler", "text_encoder", "tokenizer", *(["vae"] if prior_class.decoders else [])):
        broken = shutil.copytree(folders(name), tmp_path / part)
        shutil.rmtree(broken / part)
        if part == "vae" and name == "PRXPrior":
            continue  # that is what a PRX in pixels looks like
        refused(broken)


@each_kind
def test_pickled_weights_are_refused(folders, name: str, tmp_path: Path) -> None:
    place = reader_of(Folder("x", folders(name))).place
    for part in (place, "text_encoder"):
        broken = shutil.copytree(folders(name), tmp_path / part)
        weights = next((broken / part).glob("*.safetensors"))
        weights.rename(weights.with_suffix(".bin"))
        refused(broken, "pickled weights are refused")


def test_a_scheduler_of_another_kind_is_one_line(folders, tmp_path: Path) -> None:
    broken = shutil.copytree(folders("SD3Prior"), tmp_path / "flow")
    change(broken / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    refused(broken, "DDIMScheduler", "made for diffusion")
    broken = shutil.copytree(folders("PixArtPrior"), tmp_path / "diffusion")
    change(broken / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    refused(broken, "made for flow matching")


def test_an_autoencoder_of_another_width_is_one_line(folders, tmp_path: Path) -> None:
    broken = shutil.copytree(folders("SD3Prior"), tmp_path / "broken")
    change(broken / "vae" / "config.json", latent_channels=4)
    refused(broken, "draws 16 channels, its vae has 4")


@pytest.mark.parametrize(
    ("name", "key"), [("Flux2Prior", "guidance_embeds"), ("SanaPrior", "guidance_embeds")]
)
def test_what_was_distilled_is_not_read(folders, name: str, key: str, tmp_path: Path) -> None:
    broken = shutil.copytree(folders(name), tmp_path / "broken")
    change(broken / "transformer" / "config.json", **{key: True})
    refused(broken)


def test_large_text_encoders_are_loaded_only_to_read(folders, monkeypatch) -> None:
    prior = loaded(folders("SD3Prior"))
    loads: list[int] = []
    load = TextReader._load
    monkeypatch.setattr(TextReader, "_load", lambda self: loads.append(1) or load(self))
    prior.embed(["a dog"])
    prior.embed(["a red dog"])
    assert len(loads) == 1 and prior.reader._kept is not None
    prior = loaded(folders("SD3Prior"))
    prior.reader.size = KEPT + 1
    small = prior.embed(["a dog"])
    prior.embed(["a dog"])  # is known
    prior.embed(["a red dog"])
    assert len(loads) == 3 and prior.reader._kept is None and small.isfinite().all()


def test_a_large_encoder_reads_all_views_of_a_prompt_at_once(folders, monkeypatch) -> None:
    prior = loaded(folders("SD3Prior"))
    prior.reader.size = KEPT + 1
    loads: list[int] = []
    load = TextReader._load
    monkeypatch.setattr(TextReader, "_load", lambda self: loads.append(1) or load(self))
    guide = Guide(prior, METHODS["sds"](), "a dog", negative="ugly")
    for azimuth in (0.0, 90.0, 180.0):
        cameras = orbit(azimuth, 0.0, 3.0, 40.0, 16, 16)
        guide(torch.full((1, 16, 16, 3), 0.5), 0.5, cameras, generator=torch.Generator().manual_seed(0))
    assert len(loads) == 1


def test_pictures_encoded_in_slices_have_the_same_gradient(folders) -> None:
    prior, cameras = loaded(folders("SDXLPrior")), orbit([0.0, 90.0, 180.0], 0.0, 3.0, 40.0, 16, 16)
    calls: list[int] = []
    prior.vae.encoder.register_forward_hook(lambda module, given, output: calls.append(len(output)))
    rgb = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (0, 2):
        leaf = rgb.clone().requires_grad_()
        guide = Guide(prior, METHODS["sds"](), TEXT, slice=count)
        guide(leaf, 0.5, cameras, generator=torch.Generator().manual_seed(1)).loss.backward()
        found.append(leaf.grad)
    assert calls[:3] == [3, 2, 1] and sorted(calls[3:]) == [1, 2]  # forward, and again for the gradient
    torch.testing.assert_close(found[1], found[0])


def test_a_text_is_packed_and_unpacked() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, pooled = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 7, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for read in (Read(hidden), Read(hidden, None, mask), Read(hidden, pooled), Read(hidden, pooled, mask)):
        again = unpack(pack(read), 4, 0 if read.pooled is None else 7)
        assert torch.equal(again.hidden, hidden)
        assert (again.pooled is None) == (read.pooled is None)
        assert again.mask is not None
        assert torch.equal(again.mask, torch.ones(2, 5) if read.mask is None else mask.float())
        assert again.pooled is None or torch.equal(again.pooled, pooled)


def test_the_noise_of_a_flow_is_what_its_velocity_says(folders) -> None:
    """eps = x_s + (1 - s) v, in the flow's own coordinates."""
    prior = loaded(folders("SD3Prior"))
    z_t, t = started(prior, 1), torch.tensor([299])
    null, text = prior.embed(["", TEXT])
    cond = cfg(null[None], text[None], 1.0)
    x = z_t * (0.7**2 + 0.3**2) ** 0.5
    v = prior.predict(z_t, t, cond)[1]
    torch.testing.assert_close(predicted_noise(prior, z_t, t, cond), x + 0.7 * v, atol=1e-5, rtol=1e-5)


def test_presets_follow_what_a_folder_draws(folders) -> None:
    """Unlike latents, 64 pixels want no 512: a larger picture would be thrown away."""
    assert resolve({"prior": {"name": str(folders("IFPrior"))}}).views.size == 64
    assert resolve({"prior": {"name": str(folders("SD3Prior"))}}).views.size == 512
