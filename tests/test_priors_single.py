"""A single-file checkpoint is the pipeline that it was made of."""

# pyright: reportArgumentType=false

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from test_priors_loading import refused
from test_priors_multiview import TINY, to_ldm
from tiny import make_pipeline, resumable, resumes_in_the_same_bytes

from splatdistill.errors import UserError
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise
from splatdistill.priors.base import cfg
from splatdistill.priors.multiview import diffusers_config
from splatdistill.priors.single import base_of, is_checkpoint

VAE = (  # diffusers' names of an autoencoder, and those of LDM
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def ldm_vae(state: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """Return an autoencoder's tensors under LDM's names, its attention as convolutions."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
        name = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name
        )
        for pattern, new in VAE:
            name = re.sub(pattern, new, name)
        convolved = ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2
        renamed[f"first_stage_model.{name}"] = tensor[..., None, None] if convolved else tensor
    return renamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pipeline, with a checkpoint of the same weights in it."""
    made = make_pipeline(tmp_path_factory.mktemp("single"), "AutoencoderKL", "epsilon")
    config = diffusers_config(TINY)
    plain = {key: value for key, value in config.items() if "class" not in key}
    torch.manual_seed(2)
    unet: Any = UNet2DConditionModel.from_config(plain)
    unet.save_pretrained(made / "unet")
    names = {key: value for key, value in TINY.items() if key != "camera_dim"}
    state = {
        f"model.diffusion_model.{name}": value for name, value in to_ldm(unet.state_dict(), names).items()
    }
    state |= ldm_vae(load_file(made / "vae" / "diffusion_pytorch_model.safetensors"), 3)
    text = load_file(made / "text_encoder" / "model.safetensors")
    state |= {
        "cond_stage_model.transformer."
        + (name if name.startswith("text_model") else f"text_model.{name}"): value
        for name, value in text.items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, made / "dream.safetensors")
    return made


def test_it_predicts_encodes_and_reads_as_its_pipeline(folder: Path) -> None:
    whole, single = (
        load_prior(path, "cpu", torch.float32) for path in (folder, folder / "dream.safetensors")
    )
    rgb = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z = whole.encode(rgb)
    torch.testing.assert_close(single.encode(rgb), z)
    torch.testing.assert_close(single.decode(z), whole.decode(z))
    hidden = whole.embed(["", "a red mushroom"])
    torch.testing.assert_close(single.embed(["", "a red mushroom"]), hidden)
    cond = cfg(hidden[:1], hidden[1:], 5.0)
    t = torch.tensor([250])
    torch.testing.assert_close(single.predict(z, t, cond), whole.predict(z, t, cond))


def test_only_a_whole_model_is_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert is_checkpoint(folder / "dream.safetensors")
    assert not is_checkpoint(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert not is_checkpoint(folder / "model_index.json")
    (tmp_path / "dream.ckpt").write_bytes(b"x")
    refused(tmp_path / "dream.ckpt", "pickled")


def test_away_from_a_folder_its_base_is_known_by_its_width(folder: Path, tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for width, base in ((768, "sd15"), (1024, "sd21")):
        path = tmp_path / f"{width}.safetensors"
        save_file({name: torch.zeros(2, width), "cond_stage_model.x": torch.zeros(1)}, path)
        assert base_of(path) == base
    moved = tmp_path / "dream.safetensors"
    moved.write_bytes((folder / "dream.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"texts of width 16.*model_index\.json"):
        load_prior(moved)


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(folder: Path, method: str, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(folder / "dream.safetensors", method, tmp_path)


def test_the_doctor_counts_what_is_in_the_file(folder: Path) -> None:
    whole, single = appraise(str(folder)), appraise(str(folder / "dream.safetensors"))
    assert single.parts.keys() == whole.parts.keys() == {"unet", "vae", "text_encoder"}
    assert single.parts["unet"] == whole.parts["unet"] and single.pixels == whole.pixels
    assert single.parts["vae"].parameters <= whole.parts["vae"].parameters  # the test's own has no quant_conv
