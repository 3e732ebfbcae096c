"""MVAdapterPrior on a tiny random base and adapter, in the published names."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, T2IAdapter, UNet2DConditionModel
from families import make_family
from safetensors.torch import load_file, save_file
from test_priors_loading import refused
from tiny import make_pipeline, resumable, resumes_in_the_same_bytes

from splatdistill.config.load import resolve
from splatdistill.guidance.core import distill
from splatdistill.guidance.registry import METHODS
from splatdistill.measure.runs import teacher_samples
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise
from splatdistill.priors.base import cfg
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.loading import probe
from splatdistill.priors.mvadapter import (
    AZIMUTHS,
    MVAdapterPrior,
    RowAttention,
    camera_planes,
    shifted,
    widened,
)
from splatdistill.scene.cameras import OrbitRanges, orbit, sample_orbit

FILE = "mvadapter_t2mv_sd21.safetensors"
WIDTHS = (8, 16)
SDXL_CELL = 16  # pixels of what its adapter reads of a camera to one of the latents


def maps(unet: Any, suffix: str = "_mv") -> dict[str, torch.Tensor]:
    """Return random weights of a further attention beside every self-attention, under the published names."""
    found = {}
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            for kind in ("to_q", "to_k", "to_v", "to_out"):
                place = f"{name}.{kind}{suffix}" + (".0" if kind == "to_out" else "")
                found[f"{place}.weight"] = 0.3 * torch.randn(width, width)
            found[f"{name}.to_out{suffix}.0.bias"] = 0.1 * torch.randn(width)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the adapter's file, in the folder of a base like Stable Diffusion 2.1."""
    base = make_pipeline(tmp_path_factory.mktemp("mvadapter"), "AutoencoderKL", "epsilon")
    torch.manual_seed(1)
    config: Any = UNet2DConditionModel.load_config(base / "unet")
    unet: Any = UNet2DConditionModel.from_config(
        {**config, "use_linear_projection": True, "attention_head_dim": [2, 4]}
    )
    unet.save_pretrained(base / "unet")
    encoder = T2IAdapter(in_channels=6, channels=WIDTHS, num_res_blocks=1, downscale_factor=8)
    save_file(maps(unet) | encoder.state_dict(), base / FILE)
    return base / FILE


def loaded(file: Path) -> MVAdapterPrior:
    prior: Any = load_prior(file, "cpu", torch.float32)
    return prior


def inputs(prior: MVAdapterPrior, groups: int = 1):
    cameras = orbit([*AZIMUTHS] * groups, 0.0, 8.3, 15.0, 32, 32)
    hidden = prior.embed(["", "a red mushroom"]).unsqueeze(1).expand(-1, 6 * groups, -1, -1)
    cond = prior.with_cameras(cfg(hidden[0], hidden[1], 5.0), cameras, torch.ones(6 * groups, 3))
    z_t = torch.randn(6 * groups, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    return z_t, torch.full((6 * groups,), 250), cond


def test_a_file_beside_its_base_is_read(file: Path) -> None:
    prior = loaded(file)
    assert isinstance(prior, MVAdapterPrior)
    probe(prior)
    assert isinstance(load_prior(file.parent, "cpu", torch.float32), LatentPrior)  # the base by itself
    assert not isinstance(load_prior(file.parent, "cpu", torch.float32), MVAdapterPrior)


def test_a_row_sees_the_same_row_of_all_views_by_hand() -> None:
    """softmax(q k / sqrt(d)) v over 6 views x 3 columns of one row, in two heads, beside the base's."""
    torch.manual_seed(0)
    layer, x = RowAttention(8, 6, lambda attn, hidden: hidden), torch.randn(6, 9, 8)
    attn: Any = type("Heads", (), {"heads": 2})()
    found = layer(attn, x)
    places = x.view(6, 3, 3, 8)
    for row in range(3):
        tokens = places[:, row].reshape(18, 8)
        query, key, value = (
            to(tokens).view(18, 2, 4).transpose(0, 1) for to in (layer.to_q_mv, layer.to_k_mv, layer.to_v_mv)
        )
        seen = (query @ key.mT / 2.0).softmax(-1) @ value
        expected = tokens + layer.to_out_mv[0](seen.transpose(0, 1).reshape(18, 8))
        torch.testing.assert_close(found.view(6, 3, 3, 8)[:, row].reshape(18, 8), expected)


def test_without_its_maps_and_features_it_is_the_base(file: Path, tmp_path: Path) -> None:
    shutil.copytree(file.parent, tmp_path / "base")
    state = load_file(tmp_path / "base" / FILE)
    last = (".to_out_mv.", ".block2.", "in_conv.", "conv_in.")
    zeroed = {name: value * (not any(part in name for part in last)) for name, value in state.items()}
    save_file(zeroed, tmp_path / "base" / FILE)
    prior, base = loaded(tmp_path / "base" / FILE), load_prior(file.parent, "cpu", torch.float32)
    z_t, t, cond = inputs(prior)
    torch.testing.assert_close(prior.predict(z_t, t, cond), base.predict(z_t, t, replace(cond, extra=None)))
    assert (loaded(file).predict(z_t, t, cond) - prior.predict(z_t, t, cond)).abs().max() > 1e-3


def test_views_of_a_group_see_each_other_and_no_others(file: Path) -> None:
    prior = loaded(file)
    z_t, t, cond = inputs(prior, groups=2)
    before = prior.predict(z_t, t, cond)
    z_t[0] += 1.0
    change = (prior.predict(z_t, t, cond) - before).abs().amax((0, 2, 3, 4))  # [12]
    assert (change[:6] > 1e-6).all() and (change[6:] == 0).all()


def test_the_camera_matters_in_every_branch(file: Path) -> None:
    prior = loaded(file)
    z_t, t, cond = inputs(prior)
    assert cond.extra is not None
    turned = replace(cond, extra=cond.extra.roll(1, dims=1))
    change = (prior.predict(z_t, t, turned) - prior.predict(z_t, t, cond)).abs().amax((1, 2, 3, 4))  # [R]
    assert (change > 1e-5).all()


def test_cameras_are_told_as_rays_of_a_world_whose_fronts_face_minus_y() -> None:
    """The front is seen from -Y toward +Y; the view of azimuth 90 from +X, the thing's left."""
    told = camera_planes(orbit([0.0, 90.0], 0.0, 8.3, 15.0, 8, 8)) * 2.0 - 1.0
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0, -1.0, 0.0], [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(told, expected, atol=1e-6, rtol=0.0)


def test_the_schedule_is_the_bases_with_betas_for_the_lower_signal() -> None:
    """A scheduler of diffusers whose betas give snr / 8^(t / 999) has this alpha_bar."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    table = scheduler.alphas_cumprod.double()
    snr = table / (1.0 - table)
    wanted = torch.exp(
        snr.log() * (1 - torch.arange(1000) / 999) + (snr / 8.0).log() * (torch.arange(1000) / 999)
    )
    share = wanted / (1.0 + wanted)
    betas = 1.0 - share / torch.cat([torch.ones(1).double(), share[:-1]])
    again = DDPMScheduler(trained_betas=betas.float().numpy()).alphas_cumprod
    torch.testing.assert_close(shifted(table).float(), again, atol=1e-6, rtol=2e-4)
    assert shifted(table)[0] == table[0]


def test_a_run_looks_from_where_it_learned(file: Path) -> None:
    cameras = sample_orbit(OrbitRanges(), 12, 8, torch.Generator(), 6, MVAdapterPrior.places_deg)
    assert cameras.azimuth_deg.tolist() == [*AZIMUTHS] * 2 and not cameras.elevation_deg.any()
    assert len(set(cameras.distance.tolist())) == 2
    config = resolve({"prior": {"name": str(file)}})
    assert (config.views.count, config.views.size, config.views.ranges.fov_deg) == (6, 512, (15.0, 15.0))
    prior = loaded(file)
    config = replace(config, prompt="a red mushroom")
    assert teacher_samples(prior, config, 3.0, steps=2).shape == (12, 3, 32, 32)


@pytest.mark.parametrize("method", ["sdi", "sds", "flow_sdi"])
def test_methods_give_a_gradient(file: Path, method: str) -> None:
    prior = loaded(file)
    z, t, cond = inputs(prior)
    found = distill(prior, z, t, cond, METHODS[method](), torch.Generator().manual_seed(0))
    assert found.gradient.isfinite().all() and found.gradient.abs().sum() > 0


def test_a_missing_part_or_another_family_is_one_line(file: Path, tmp_path: Path) -> None:
    for part in ("scheduler", "text_encoder", "tokenizer", "vae", "unet"):
        broken = shutil.copytree(file.parent, tmp_path / part)
        shutil.rmtree(broken / part)
        refused(broken / FILE)
    shutil.copy(file, make_family(tmp_path, "SD3Prior"))
    refused(tmp_path / "SD3Prior" / FILE, "Stable Diffusion 2.1")
    shutil.copy(file, make_pipeline(tmp_path, "AutoencoderKL"))  # like Stable Diffusion 1
    refused(tmp_path / "pipeline" / FILE, "another family")


def test_weights_that_do_not_fit_are_one_line(file: Path, tmp_path: Path) -> None:
    folder, state = shutil.copytree(file.parent, tmp_path / "base"), load_file(file)
    name = min(name for name in state if "_mv." in name)
    save_file({key: value for key, value in state.items() if key != name}, folder / FILE)
    refused(folder / FILE, "lacks 1 weights")
    save_file(state | {name: torch.zeros(3, 3)}, folder / FILE)
    refused(folder / FILE, "another UNet")
    save_file(state | {"unet.more_mv.weight": torch.zeros(3)}, folder / FILE)
    refused(folder / FILE, "no place for 1")


def test_adapters_of_other_kinds_and_pickles_are_named(file: Path, tmp_path: Path) -> None:
    folder, state = shutil.copytree(file.parent, tmp_path / "base"), load_file(file)
    pictured = {name.replace("_mv.", "_ref."): value + 1 for name, value in state.items() if "_mv." in name}
    save_file(state | pictured, folder / "mvadapter_i2mv_sd21.safetensors")
    refused(folder / "mvadapter_i2mv_sd21.safetensors", "MV-Adapter of another kind")
    shape = torch.zeros(8, 6 * SDXL_CELL**2, 3, 3)
    save_file(state | {"adapter.conv_in.weight": shape}, folder / "mvadapter_t2mv_sdxl.safetensors")
    refused(folder / "mvadapter_t2mv_sdxl.safetensors", "MV-Adapter of another kind")
    shutil.copy(file, folder / "mvadapter_tg2mv_sd21.safetensors")
    refused(folder / "mvadapter_tg2mv_sd21.safetensors", "MV-Adapter of another kind")
    (folder / "mvadapter_t2mv_sd21.ckpt").write_bytes(b"\x80\x02}q\x00.")
    refused(folder / "mvadapter_t2mv_sd21.ckpt", "pickled weights")


def test_the_doctor_counts_the_adapter(file: Path) -> None:
    found, base = appraise(str(file)), appraise(str(file.parent))
    assert "MV-Adapter" in found.reader and "MV-Adapter" not in base.reader
    assert (found.views, found.pixels) == (6, loaded(file).image_size)
    assert found.parts["adapter"].parameters == sum(value.numel() for value in load_file(file).values())
    assert found.memory > base.memory and found.denoiser == base.denoiser


def test_it_has_a_place_for_every_weight_of_the_published_sizes() -> None:
    """Four maps and a bias at each of Stable Diffusion 2.1's sixteen self-attentions."""
    config: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        unet, encoder = widened(UNet2DConditionModel(**config))
    own = [value for name, value in unet.state_dict().items() if "_mv." in name]
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    assert len(own) == 5 * len(widths)
    assert sum(value.numel() for value in own) == sum(4 * width**2 + width for width in widths)
    assert encoder.state_dict()["adapter.conv_in.weight"].shape == (320, 6 * 64, 3, 3)


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(file: Path, method: str, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(file, method, tmp_path, "views.count=6")
