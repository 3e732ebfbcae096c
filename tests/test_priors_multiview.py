"""MultiViewPrior on tiny random networks, in diffusers' names and in those of MVDream's weights."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from tiny import make_pipeline, resumable, resumes_in_the_same_bytes

from splatdistill.errors import UserError
from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.noise import Inversion
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise, lines
from splatdistill.priors.base import cfg
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.multiview import MultiViewPrior, camera_matrices, diffusers_config, ldm_names
from splatdistill.scene.cameras import orbit

MVDREAM: dict[str, Any] = {  # the published configuration
    "_class_name": "MultiViewUNetModel",
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "context_dim": 1024,
    "camera_dim": 16,
}
TINY = MVDREAM | {
    "image_size": 8,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2, 2],
    "num_head_channels": 8,
    "context_dim": 16,
}


def to_ldm(state: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors under LDM's names: the test's own inversion, longest prefix first."""
    pairs = sorted(((new, old) for old, new in ldm_names(config)), key=lambda pair: -len(pair[0]))
    renamed = {}
    for key, tensor in state.items():
        new, old = next(pair for pair in pairs if key.startswith(pair[0] + "."))
        renamed[old + key[len(new) :]] = tensor.contiguous()
    return renamed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the same pipeline twice: its UNet in diffusers' class and in MVDream's names."""
    root = tmp_path_factory.mktemp("multiview")
    make_pipeline(root, "AutoencoderKL").rename(root / "ours")
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(diffusers_config(TINY))
    unet.save_pretrained(root / "ours" / "unet")
    shutil.copytree(root / "ours", root / "theirs")
    folder = root / "theirs" / "unet"
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(to_ldm(unet.state_dict(), TINY), folder / "diffusion_pytorch_model.safetensors")
    return root / "ours", root / "theirs"


def inputs(prior: LatentPrior, groups: int = 1):
    cameras = orbit([15.0 + 90 * k for k in range(4 * groups)], 10.0, 3.0, 40.0, 32, 32)
    hidden = prior.embed(["", "a red mushroom"]).unsqueeze(1).expand(-1, 4 * groups, -1, -1)
    cond = cfg(hidden[0], hidden[1], 5.0)
    z_t = torch.randn(4 * groups, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    return z_t, torch.full((4 * groups,), 250), prior.with_cameras(cond, cameras, torch.ones(4 * groups, 3))


def test_published_names_and_diffusers_names_are_the_same_network(folders: tuple[Path, Path]) -> None:
    ours, theirs = (load_prior(str(folder), "cpu", torch.float32) for folder in folders)
    assert isinstance(ours, MultiViewPrior) and isinstance(theirs, MultiViewPrior)
    expected = ours.predict(*inputs(ours))
    torch.testing.assert_close(theirs.predict(*inputs(theirs)), expected)
    assert expected.abs().max() > 0


def test_every_part_of_the_published_architecture_has_a_name() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(diffusers_config(MVDREAM))
    names = to_ldm(unet.state_dict(), MVDREAM)
    assert len(names) == len(unet.state_dict())
    for name in (
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "input_blocks.3.0.op.weight",
        "middle_block.1.proj_in.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.proj_out.bias",
        "camera_embed.2.weight",
        "out.2.weight",
    ):
        assert name in names, name
    assert (
        860e6 < sum(tensor.numel() for tensor in names.values()) < 870e6
    )  # Stable Diffusion 2.1's, and a camera


def test_views_of_a_group_see_each_other_and_no_others(folders: tuple[Path, Path]) -> None:
    prior = load_prior(str(folders[0]), "cpu", torch.float32)
    z_t, t, cond = inputs(prior, groups=2)
    before = prior.predict(z_t, t, cond)
    z_t[0] += 1.0
    change = (prior.predict(z_t, t, cond) - before).abs().amax((0, 2, 3, 4))  # [8]
    assert (change[:4] > 1e-4).all() and (change[4:] < 1e-5).all()


def test_the_camera_matters_in_every_branch(folders: tuple[Path, Path]) -> None:
    prior = load_prior(str(folders[0]), "cpu", torch.float32)
    z_t, t, cond = inputs(prior)
    assert cond.extra is not None
    turned = replace(cond, extra=cond.extra.roll(1, dims=1))
    change = (prior.predict(z_t, t, turned) - prior.predict(z_t, t, cond)).abs().amax((1, 2, 3, 4))  # [R]
    assert (change > 1e-5).all()


def test_camera_matrices_are_blenders_view_of_the_front() -> None:
    matrix = camera_matrices(orbit(0.0, 0.0, 3.0, 40.0, 8, 8)).view(4, 4)
    torch.testing.assert_close(matrix[:3, 3], torch.tensor([0.0, -1.0, 0.0]))  # in front of a thing facing -Y
    torch.testing.assert_close(matrix[:3, 0], torch.tensor([1.0, 0.0, 0.0]))  # +X to the right
    torch.testing.assert_close(matrix[:3, 1], torch.tensor([0.0, 0.0, 1.0]))  # +Z up
    torch.testing.assert_close(matrix[3], torch.tensor([0.0, 0.0, 0.0, 1.0]))


def test_distillation_runs_with_groups_at_different_noise_levels(folders: tuple[Path, Path]) -> None:
    prior = load_prior(str(folders[0]), "cpu", torch.float32)
    z, _, cond = inputs(prior, groups=2)
    t = torch.tensor([100] * 4 + [400] * 4)
    method = SDI(inversion=Inversion(steps=5))
    result = distill(prior, z, t, cond, method, torch.Generator().manual_seed(0))
    assert result.gradient.isfinite().all() and result.gradient.shape == z.shape


def test_weights_that_are_not_safetensors_are_a_users_error(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[1], tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled"):
        load_prior(str(tmp_path / "broken"))


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(folders: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(folders[1], method, tmp_path, "views.count=4")


def test_the_doctor_says_how_many_views_are_together(folders: tuple[Path, Path]) -> None:
    ours, theirs = (appraise(str(folder)) for folder in folders)
    assert "MVDream" in theirs.reader and theirs.denoiser == ours.denoiser and theirs.memory == ours.memory
    told = {row[0]: row[2] for row in lines(theirs, 2**40)}
    assert told["pictures"] == "4 views together of 32 pixels" and "a step of 4 views" in told["memory"]
