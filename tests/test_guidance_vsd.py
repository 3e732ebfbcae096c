"""VSD: on a Gaussian with a student that knows its particles, and with adapters on real networks."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_pipeline, resumes_in_the_same_bytes, with_two_models

from splatdistill.config.load import resolve
from splatdistill.errors import UserError
from splatdistill.guidance import vsd as vsd_module
from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import CSD
from splatdistill.guidance.query import Query, State
from splatdistill.guidance.vsd import VSD
from splatdistill.priors import album, load_prior
from splatdistill.priors.base import ToyPrior, alpha_bar_at, cfg
from splatdistill.priors.latent import LatentPrior
from splatdistill.scene.cameras import turntable
from splatdistill.training.state import new_state

T = torch.tensor([100, 500, 900])


class PerfectStudent(State):
    """Knows that the particles are N(mean, variance)."""

    def __init__(self, mean: torch.Tensor, variance: float) -> None:
        self.mean, self.variance, self.lessons = mean, variance, 0

    def predict(self, query: Query, z_t: torch.Tensor) -> torch.Tensor:
        ab = alpha_bar_at(query.prior, query.t).view(-1, 1, 1, 1).to(z_t)
        return (1 - ab).sqrt() * (z_t - ab.sqrt() * self.mean) / (ab * self.variance + 1 - ab)

    def learn(self, query: Query, steps: int) -> None:
        self.lessons += steps


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random pipeline with the timesteps of ToyPrior."""
    return make_pipeline(tmp_path_factory.mktemp("teacher"), "AutoencoderTiny", timesteps=1000)


@pytest.fixture(scope="module")
def network(teacher: Path) -> Any:
    return load_prior(teacher, dtype=torch.float32)


@pytest.fixture(scope="module")
def several(views: Path) -> Any:
    """Return a teacher of groups of views, of two models of a thing."""
    return with_two_models(load_prior(views, dtype=torch.float32)).for_run(0, 3)


def of_views(prior: Any, seen: bool = True) -> Query:
    """Return a query of two groups of views, or of views without cameras."""
    cameras = turntable(8, 15.0, 3.0, 40.0, 64) if seen else None
    cond = cfg(prior.embed([""] * 8), prior.embed(["car"] * 8), 7.5)
    if cameras is not None:
        cond = prior.with_cameras(cond, cameras, torch.ones(8, 3))
    rng = torch.Generator().manual_seed(0)
    z, t = torch.randn(8, *prior.latent_shape, generator=rng), torch.tensor([200, 700]).repeat_interleave(4)
    return Query(prior, z, t, cond, rng, cameras=cameras)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_vsd_follows_the_difference_of_two_scores(prediction_type: str) -> None:
    mean, variance, drawn = torch.full((3, 2, 2), 0.3), 0.5, torch.full((3, 2, 2), -0.4)
    prior = ToyPrior(mean, variance, prediction_type)
    student = PerfectStudent(drawn, variance)
    z, hidden = torch.randn(3, 3, 2, 2), prior.embed([""] * 3)
    gradient = distill(prior, z, T, cfg(hidden, hidden, 1.0), VSD(), state=student).gradient
    ab = alpha_bar_at(prior, T).view(-1, 1, 1, 1).float()
    scale = (1 - ab) * (1 - ab).sqrt() * ab.sqrt() / (ab * variance + 1 - ab)
    torch.testing.assert_close(gradient, scale * (drawn - mean).expand_as(z), atol=1e-4, rtol=1e-4)
    assert student.lessons == 1


def test_vsd_with_a_student_that_learned_nothing_is_csd_beyond_scale_one(network: LatentPrior) -> None:
    z = torch.randn(3, *network.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = cfg(network.embed([""] * 3), network.embed(["a red dog"] * 3), 7.5)
    vsd = distill(network, z, T, cond, VSD(), torch.Generator().manual_seed(1))
    alone = cond.with_guidance(1.0)
    csd = distill(network, z, T, alone, CSD(), torch.Generator().manual_seed(1))
    torch.testing.assert_close(vsd.gradient, 6.5 * csd.gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seen", [True, False], ids=["groups", "single views"])
def test_a_student_of_views_begins_as_the_teacher_at_scale_one(several: Any, seen: bool) -> None:
    query = of_views(several, seen)
    z_t = query.noised(query.gaussian())
    student: Any = VSD().start(several, 0)
    alone = query.cond.with_guidance(1.0)
    drawn, taught = student.output(query, z_t, query.t), several.predict(z_t, query.t, alone)[1]
    assert torch.equal(drawn, taught)
    compared = VSD().compare(query, student)
    torch.testing.assert_close(compared.eps, query.predict(compared.z_t, alone), atol=1e-5, rtol=1e-5)
    assert not torch.equal(student.output(query, z_t, query.t), taught)  # it has learned


def test_the_student_learns_what_it_sees_and_the_teacher_stays_as_it_is(network: LatentPrior) -> None:
    before = {name: value.clone() for name, value in network.unet.state_dict().items()}
    vsd = VSD(rate=1e-2, steps=8)
    student = vsd.start(network, 0)
    z = torch.full((4, *network.latent_shape), 2.0)
    cond = cfg(network.embed([""] * 4), network.embed(["a red dog"] * 4), 7.5)
    t = torch.tensor([200, 400, 600, 800])
    cameras = turntable(4, 15.0, 3.0, 40.0, 64)
    errors = []
    for step in range(5):  # the same question each time, and other lessons after it
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
        query = Query(network, z, t, cond, torch.Generator().manual_seed(step), cameras=cameras)
        errors.append((student.predict(query, query.noised(eps)) - eps).square().mean().item())
        vsd.compare(query, student)
    assert errors[-1] < 0.9 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in network.unet.state_dict().items())


def test_small_gradients_of_a_student_in_half_precision_do_not_vanish(tmp_path, monkeypatch) -> None:
    folder, mse_loss = make_pipeline(tmp_path, "AutoencoderTiny"), vsd_module.F.mse_loss
    monkeypatch.setattr(vsd_module.F, "mse_loss", lambda *of: 0.01 * mse_loss(*of))  # as of a good student

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        prior: Any = load_prior(folder, dtype=dtype)
        student, found = VSD().start(prior, 0), []
        z = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
        cond = cfg(prior.embed([""] * 2), prior.embed(["a red dog"] * 2), 7.5)

        def note(*_: Any) -> None:
            found.extend(p.grad.flatten() for p in student.learned.values() if p.grad is not None)

        student.optimizer.register_step_pre_hook(note)
        student.learn(Query(prior, z, T[:2], cond, torch.Generator().manual_seed(0)), 1)
        return torch.cat(found)

    whole = gradient(torch.float32)
    for scale, within in ((vsd_module.LOSS_SCALE, True), (1.0, False)):
        monkeypatch.setattr(vsd_module, "LOSS_SCALE", scale)
        apart = float((gradient(torch.float16) - whole).norm() / whole.norm())
        assert (apart < 0.01) is within


def test_the_student_is_part_of_a_checkpoint(network: LatentPrior) -> None:
    z = torch.randn(2, *network.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = cfg(network.embed([""] * 2), network.embed(["a red dog"] * 2), 7.5)

    vsd = VSD(rate=1e-2)

    def lesson(student: Any, seed: int) -> torch.Tensor:
        return vsd.compare(Query(network, z, T[:2], cond, torch.Generator().manual_seed(seed)), student).eps

    straight, first = vsd.start(network, 3), vsd.start(network, 3)
    assert torch.equal(lesson(straight, 0), lesson(first, 0))
    resumed = vsd.start(network, 3)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(lesson(straight, 1), lesson(resumed, 1))
    assert torch.equal(lesson(straight, 2), lesson(resumed, 2))


def test_a_run_of_groups_resumes_in_the_same_bytes(several: Any, views: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(views, tmp_path / "two", ignore=shutil.ignore_patterns(album.FILE))
    with open(folder / album.FILE, "wb") as file:
        several.album.save(file)
    words = ("prompt=a car", "prior.models=3", "views.count=4", "method.rate=1e-2")
    resumes_in_the_same_bytes(folder, "vsd", tmp_path, *words)


def test_each_run_has_a_student_of_its_own_prior(teacher: Path, network: LatentPrior) -> None:
    """One method serves two teachers: neither is compared with the other's student."""
    vsd = VSD()
    other: Any = load_prior(teacher, dtype=torch.float32)
    students = [vsd.start(prior, 0) for prior in (network, other)]
    assert students[0].unet is not students[1].unet
    priors: tuple[Any, Any] = (network, other)
    for student, prior in zip(students, priors, strict=True):
        base = dict(prior.unet.named_parameters())
        shared = [p for name, p in student.unet.named_parameters() if "lora" not in name]
        assert {id(p) for p in shared} == {id(p) for p in base.values()}


def test_a_run_that_never_asked_its_student_resumes() -> None:
    config, cpu = resolve({"prompt": "a red dog", "method": "vsd"}), torch.device("cpu")
    saved = new_state(config, cpu).state_dict()
    assert saved["method"] == {}
    again = new_state(config, cpu)
    again.load_state_dict(saved, cpu)
    assert again.step == 0


def test_a_teacher_without_a_unet_is_refused_in_one_line() -> None:
    prior = ToyPrior(torch.zeros(3, 2, 2))
    hidden = prior.embed([""] * 3)
    with pytest.raises(UserError, match="no UNet that could be adapted"):
        distill(prior, torch.zeros(3, 3, 2, 2), T, cfg(hidden, hidden, 7.5), VSD())


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rate": 0.0}, {"steps": -1}])
def test_settings_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="vsd"):
        VSD(**bad)
