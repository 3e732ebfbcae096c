"""Zero123Prior on tiny random networks in the layouts in which Zero-1-to-3 is published."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalCall=false

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_pictured, resumable, resumes_in_the_same_bytes, write_disc
from transformers import CLIPImageProcessor

from splatdistill.errors import UserError
from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.noise import Inversion
from splatdistill.priors import load_prior
from splatdistill.priors.base import cfg
from splatdistill.priors.zero123 import Zero123Prior, relative_pose
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import Reference


@pytest.fixture(scope="module", params=["clip_camera_projection", "cc_projection"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pipeline as published, with either name of the projection."""
    return make_pictured(tmp_path_factory.mktemp("zero123"), request.param)


def picture(size: int = 32) -> Reference:
    """Return a disc, green above and red below."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    alpha = ((x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2).float()[None]
    rgb = torch.stack([(y > size / 2).float(), (y <= size / 2).float(), torch.zeros(size, size)])
    return Reference(rgb, alpha, orbit(0.0, 20.0, 3.0, 40.0, size, size))


def conditioned(prior: Zero123Prior, azimuth: float = 90.0):
    hidden = prior.embed(["", "anything"]).unsqueeze(1).expand(-1, 2, -1, -1)
    cameras = orbit([azimuth, azimuth + 90.0], 10.0, 3.2, 40.0, 32, 32)
    return prior.with_cameras(cfg(hidden[0], hidden[1], 3.0), cameras, torch.ones(2, 3))


def test_a_published_folder_loads_and_predicts(folder: Path) -> None:
    prior: Any = load_prior(str(folder), dtype=torch.float32)
    assert isinstance(prior, Zero123Prior) and prior.latent_shape[0] == 4
    prior = prior.condition_on(picture())
    cond: Any = conditioned(prior)
    assert cond.embeddings.shape == (2, 2, 1, prior.projection.out_features)
    assert not cond.embeddings[0].any() and not cond.extra[0].any()  # nothing at all in the null branch
    torch.testing.assert_close(cond.weights, torch.tensor([[-2.0, -2.0], [3.0, 3.0]]))
    z_t = torch.randn(2, *prior.latent_shape)
    outputs = prior.predict(z_t, torch.tensor([300, 600]), cond)
    assert outputs.shape == (2, 2, *prior.latent_shape) and outputs.isfinite().all()
    there = prior.predict(z_t, torch.tensor([300, 600]), conditioned(prior, 200.0))
    assert not torch.allclose(there[1], outputs[1]) and torch.allclose(there[0], outputs[0])


def test_the_token_is_the_projection_of_embedding_and_pose(folder: Path) -> None:
    prior: Any = load_prior(str(folder), dtype=torch.float32)
    assert isinstance(prior, Zero123Prior)
    prior = prior.condition_on(picture())
    cond: Any = conditioned(prior)
    white = picture().before(torch.ones(2, 3))
    processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    resized = torch.nn.functional.interpolate(white, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std))
    encoder: Any = prior.encoder
    embedding = encoder((resized - mean) / std).image_embeds
    pose = torch.tensor([[math.radians(10.0), 1.0, 0.0, 0.2], [math.radians(10.0), 0.0, -1.0, 0.2]])
    token = prior.projection(torch.cat([embedding, pose], 1))
    torch.testing.assert_close(cond.embeddings[1, :, 0], token, atol=1e-5, rtol=1e-5)
    raw = prior.vae.encode(2 * white - 1).latent_dist.mode()  # not scaled
    torch.testing.assert_close(cond.extra[1], raw, atol=1e-5, rtol=1e-5)


def test_the_pose_is_relative() -> None:
    at = orbit([10.0, 100.0], [30.0, 30.0], 3.0, 40.0, 8, 8)
    torch.testing.assert_close(
        relative_pose(at[0], at),
        torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]),
        atol=1e-6,
        rtol=0,
    )


def test_stable_zero123_is_told_the_elevation_of_the_picture(folder: Path, tmp_path: Path) -> None:
    at = orbit([10.0, 100.0], [30.0, 30.0], [3.0, 3.4], 40.0, 8, 8)
    told = relative_pose(at[0], at, stable=True)
    torch.testing.assert_close(told[:, :3], relative_pose(at[0], at)[:, :3])
    torch.testing.assert_close(told[:, 3], torch.full((2,), math.radians(60.0)))
    hub = tmp_path / "models--owner--stable-zero123" / "snapshots" / "0123456789abcdef"
    shutil.copytree(folder, hub)
    carded = tmp_path / "mine"
    shutil.copytree(folder, carded)
    (carded / "README.md").write_text("---\nlicense: other\n---\n# Stable Zero123 for diffusers\n")
    priors: list[Any] = [load_prior(str(path), dtype=torch.float32) for path in (folder, hub, carded)]
    assert [prior.stable for prior in priors] == [False, True, True]
    tokens = [conditioned(prior.condition_on(picture())).embeddings for prior in priors[:2]]
    assert not torch.allclose(*tokens)


def test_it_distills(folder: Path) -> None:
    prior: Any = load_prior(str(folder), dtype=torch.float32)
    assert isinstance(prior, Zero123Prior)
    prior = prior.condition_on(picture())
    z = torch.randn(2, *prior.latent_shape)
    method = SDI(inversion=Inversion(steps=3))
    t = torch.tensor([300, 400])
    result = distill(prior, z, t, conditioned(prior), method, torch.Generator().manual_seed(0))
    assert result.gradient.isfinite().all() and result.gradient.abs().max() > 0


def test_without_a_picture_it_says_so(folder: Path) -> None:
    prior: Any = load_prior(str(folder), dtype=torch.float32)
    assert isinstance(prior, Zero123Prior)
    with pytest.raises(UserError, match="--image"):
        conditioned(prior)


def test_a_folder_without_its_projection_is_a_users_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "broken")
    for part in tmp_path.glob("broken/c*_projection"):
        shutil.rmtree(part)
    with pytest.raises(UserError, match="clip_camera_projection"):
        load_prior(str(tmp_path / "broken"))


def test_a_steps_cameras_may_be_on_another_device_than_the_picture() -> None:
    cameras = orbit([90.0, 180.0], 15.0, 3.0, 40.0, 32, 32)
    with pytest.raises(RuntimeError, match="device"):  # the meta device, like CUDA, takes no others' tensors
        relative_pose(picture().to("meta").camera, cameras)
    prior: Any = Zero123Prior.__new__(Zero123Prior)
    prior.device, prior.image_size, prior.encoder = torch.device("meta"), 32, None
    prior.stable = False
    prior.projection = torch.nn.Linear(4, 5, device="meta")
    prior._scale, prior._shift, prior.encode = 1.0, 0.0, lambda rgb: rgb
    prior = prior.condition_on(picture())
    nothing = torch.zeros(2, 1, 5)
    cond = prior.with_cameras(cfg(nothing, nothing, 3.0), cameras, torch.ones(2, 3))
    assert cond.embeddings.device.type == cond.extra.device.type == "meta"


@pytest.mark.slow
@resumable
def test_a_run_resumes_in_the_same_bytes(folder: Path, method: str, tmp_path: Path) -> None:
    resumes_in_the_same_bytes(folder, method, tmp_path, f"image.path={write_disc(tmp_path / 'disc.png')}")
