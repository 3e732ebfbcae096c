"""ImageDreamPrior on tiny random networks in the published layout."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from test_priors_multiview import TINY, to_ldm
from test_priors_zero123 import picture
from tiny import make_pipeline, resumable, resumes_in_the_same_bytes, write_disc
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from splatdistill.errors import UserError
from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.noise import Inversion
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise
from splatdistill.priors.base import cfg
from splatdistill.priors.imagedream import ImageDreamPrior, PerceiverAttention
from splatdistill.priors.loading import probe
from splatdistill.priors.multiview import diffusers_config
from splatdistill.scene.cameras import orbit

CONFIG: dict[str, Any] = TINY | {"ip_dim": 3, "ip_weight": 1.0}
FEATURES, DIM, INNER = 16, 16, 64  # of the encoder, of the resampler, of its one head


def resampler() -> dict[str, torch.Tensor]:
    """Return random weights under the published names, of two layers."""
    shapes = {"latents": (1, 3, DIM), "proj_in.weight": (DIM, FEATURES), "proj_in.bias": (DIM,)}
    shapes |= {
        "proj_out.weight": (16, DIM),
        "proj_out.bias": (16,),
        "norm_out.weight": (16,),
        "norm_out.bias": (16,),
    }
    for i in range(2):
        attention, forward = f"layers.{i}.0", f"layers.{i}.1"
        shapes |= {
            f"{attention}.{norm}.{kind}": (DIM,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")
        }
        shapes |= {
            f"{attention}.to_q.weight": (INNER, DIM),
            f"{attention}.to_kv.weight": (2 * INNER, DIM),
            f"{attention}.to_out.weight": (DIM, INNER),
            f"{forward}.0.weight": (DIM,),
            f"{forward}.0.bias": (DIM,),
            f"{forward}.1.weight": (4 * DIM, DIM),
            f"{forward}.3.weight": (DIM, 4 * DIM),
        }
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_pipeline(tmp_path_factory.mktemp("imagedream"), "AutoencoderKL", "epsilon")
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(diffusers_config(CONFIG))
    state = to_ldm(unet.state_dict(), CONFIG)
    for name, tensor in list(state.items()):
        for kind in ("to_k", "to_v"):
            if f".attn2.{kind}." in name:
                state[name.replace(f".{kind}.", f".{kind}_ip.")] = torch.randn_like(tensor)
    state |= {f"image_embed.{name}": tensor for name, tensor in resampler().items()}
    (made / "unet" / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, made / "unet" / "diffusion_pytorch_model.safetensors")
    config = CLIPVisionConfig(
        hidden_size=FEATURES,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(made / "image_encoder")
    CLIPImageProcessor(crop_size=28, size=28).save_pretrained(made / "feature_extractor")
    return made


def loaded(folder: Path) -> ImageDreamPrior:
    prior: Any = load_prior(str(folder), "cpu", torch.float32)
    return prior.condition_on(picture())


def inputs(prior: ImageDreamPrior):
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 10.0, 3.0, 40.0, 32, 32)
    hidden = prior.embed(["", "a red mushroom"]).unsqueeze(1).expand(-1, 4, -1, -1)
    cond = prior.with_cameras(cfg(hidden[0], hidden[1], 5.0), cameras, torch.ones(4, 3))
    return (
        torch.randn(4, *prior.latent_shape, generator=torch.Generator().manual_seed(0)),
        torch.full((4,), 250),
        cond,
    )


def test_its_folder_is_read_and_a_picture_is_asked_for(folder: Path) -> None:
    prior: Any = load_prior(str(folder), "cpu", torch.float32)
    assert isinstance(prior, ImageDreamPrior) and prior.needs_picture
    with pytest.raises(UserError, match="--image"):
        inputs(prior)
    probe(loaded(folder))


def test_the_picture_matters_with_the_text_and_not_in_the_null_branch(folder: Path) -> None:
    prior = loaded(folder)
    z_t, t, cond = inputs(prior)
    shown = picture()
    other = replace(shown, rgb=1.0 - shown.rgb)
    others = inputs(prior.condition_on(other))[2]
    before, after = prior.predict(z_t, t, cond), prior.predict(z_t, t, others)
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().amax((1, 2, 3)).min() > 1e-4


def test_both_the_tokens_and_the_clean_view_are_read(folder: Path) -> None:
    prior = loaded(folder)
    z_t, t, cond = inputs(prior)
    assert cond.extra is not None
    before = prior.predict(z_t, t, cond)[1]
    blank = cond.extra.clone()
    blank[1, :, 16:] = 0.0
    assert (prior.predict(z_t, t, replace(cond, extra=blank))[1] - before).abs().max() > 1e-4
    tokens = cond.embeddings.clone()
    tokens[1, :, -3:] = 0.0
    assert (prior.predict(z_t, t, replace(cond, embeddings=tokens))[1] - before).abs().max() > 1e-4


def test_a_perceiver_attends_to_features_and_queries() -> None:
    """One head, by hand: softmax(q k / sqrt(d)) v over the normalized features and queries."""
    torch.manual_seed(0)
    layer, x, queries = PerceiverAttention(8, 64), torch.randn(1, 5, 8), torch.randn(1, 2, 8)
    both = torch.cat([layer.norm1(x), layer.norm2(queries)], 1)
    keys, values = layer.to_kv(both).chunk(2, -1)
    weights = (layer.to_q(layer.norm2(queries)) @ keys.mT / 8.0).softmax(-1)
    torch.testing.assert_close(layer(x, queries), layer.to_out(weights @ values))


def test_it_distills(folder: Path) -> None:
    prior = loaded(folder)
    z, t, cond = inputs(prior)
    found = distill(prior, z, t, cond, SDI(inversion=Inversion(steps=3)), torch.Generator().manual_seed(0))
    assert found.gradient.isfinite().all() and found.gradient.abs().max() > 0


def test_weights_without_the_pictures_maps_are_one_line(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: v for name, v in load_file(path).items() if "_ip" not in name}, path)
    with pytest.raises(UserError, match="cannot load") as caught:
        load_prior(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(folder: Path, method: str, tmp_path: Path) -> None:
    words = (f"image.path={write_disc(tmp_path / 'disc.png')}", "views.count=4")
    resumes_in_the_same_bytes(folder, method, tmp_path, *words)


def test_the_doctor_knows_it_from_mvdream(folder: Path) -> None:
    found = appraise(str(folder))
    assert "ImageDream" in found.reader and found.views == 4
    assert found.pixels == loaded(folder).image_size
    assert found.parts.keys() == {"unet", "vae", "text_encoder", "image_encoder"}
