"""The state of a run saves and restores itself, every part on the device of the run."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_training_loop import CPU, tiny

from splatdistill.errors import Diverged, UserError
from splatdistill.scene.gaussians import NAMES
from splatdistill.training import checkpoint
from splatdistill.training.state import make_optimizers, new_state

GROWING = ["densification.kind=default", "densification.start=100"]


def stepped(*words: str):
    """Return a state whose optimizers have moments, and its configuration."""
    config = tiny("gaussians.count=6", *GROWING, *words)
    state = new_state(config, CPU)
    for _ in range(2):
        for value in state.gaussians.values():
            value.grad = torch.ones_like(value)
        for optimizer in state.optimizers.values():
            optimizer.step()
    state.densifier._state["grad2d"] += 2.0
    state.step = 2
    return state, config


def saved_of(state, config) -> dict[str, Any]:
    settings = checkpoint.dump(config)
    return copy.deepcopy(state.state_dict() | {"settings": settings})


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value.values() for t in tensors(item)] if isinstance(value, dict) else []


def test_every_part_moves_to_the_device_of_the_run(monkeypatch):
    from splatdistill.training import state as module

    state, config = stepped()
    saved = saved_of(state, config)
    meta = torch.device("meta")
    adam = torch.optim.Adam  # its fused form knows no meta tensors
    monkeypatch.setattr(module.torch.optim, "Adam", lambda *a, **k: adam(*a, **(k | {"fused": False})))
    fresh = new_state(config, CPU)
    fresh.load_state_dict(saved, meta)
    assert fresh.device == meta
    assert {value.device for value in fresh.gaussians.values()} == {meta}
    assert fresh.densifier._state.keys() == {"grad2d", "count"}
    assert {value.device for value in fresh.densifier._state.values()} == {meta}
    for optimizer in fresh.optimizers.values():
        (moments,) = optimizer.state.values()
        assert moments["exp_avg"].device == moments["exp_avg_sq"].device == meta
        assert optimizer.param_groups[0]["params"][0].device == meta


def test_the_generator_of_the_runs_own_gpu_is_saved_and_restored(monkeypatch):
    state, config = stepped()
    asked = []
    second = torch.device("cuda:1")
    monkeypatch.setattr(type(state), "device", property(lambda self: second))
    rng = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or rng)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device: asked.append((value, device)))
    saved = state.state_dict()
    assert asked == [second] and saved["global_rng"]["cuda"] is rng
    monkeypatch.setattr(torch.nn.ParameterDict, "to", lambda self, device: self)
    new_state(config, CPU).load_state_dict(saved, second)
    assert asked[1] == (rng, second)


def test_a_run_on_the_cpu_asks_no_gpu(monkeypatch):
    def refuse(*_):
        raise AssertionError("a context on a GPU")

    monkeypatch.setattr(torch.cuda, "get_rng_state", refuse)
    assert stepped()[0].state_dict()["global_rng"]["cuda"] is None


def test_a_state_survives_the_way_through_a_file(tmp_path):
    state, config = stepped()
    path = tmp_path / "step-00000002.pt"
    checkpoint.save(path, saved_of(state, config))
    again = new_state(config, CPU)
    again.load_state_dict(checkpoint.latest(tmp_path, config), CPU)
    first, second = tensors(state.state_dict()), tensors(again.state_dict())
    assert len(first) == len(second) > 20
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    (tmp_path / "again").mkdir()
    checkpoint.save(
        tmp_path / "again" / "step-00000002.pt", again.state_dict() | {"settings": checkpoint.dump(config)}
    )
    assert (tmp_path / "again" / "step-00000002.pt").read_bytes() == path.read_bytes()


def test_other_rates_and_densification_continue():
    state, config = stepped()
    saved = saved_of(state, config)
    for words in (["densification.kind=none"], ["densification.kind=mcmc"], ["optimizer.beta1=0.5"]):
        other = tiny("gaussians.count=6", *words)
        checkpoint.validate(saved, other, "it")
        fresh = new_state(other, CPU)
        fresh.load_state_dict(saved, CPU)
        assert set(fresh.densifier._state) <= {"grad2d", "count"}
        group = fresh.optimizers["means"].param_groups[0]
        assert group["betas"][0] == other.optimizer.beta1
    none = new_state(tiny("gaussians.count=6", "densification.kind=none"), CPU)
    bare = saved_of(none, tiny("gaussians.count=6", "densification.kind=none"))
    fresh = new_state(config, CPU)
    fresh.load_state_dict(bare, CPU)
    assert all(not value.any() and len(value) == 6 for value in fresh.densifier._state.values())


def moments(saved: dict[str, Any]) -> dict[str, Any]:
    return saved["optimizers"]["means"]["state"][0]


SPOILERS = {
    "moments of another size": lambda s: moments(s).update(exp_avg=torch.zeros(9, 3)),
    "moments of no size": lambda s: moments(s).update(exp_avg_sq=torch.zeros(0)),
    "moments of another type": lambda s: moments(s).update(exp_avg=torch.zeros(6, 3).double()),
    "no moments": lambda s: moments(s).clear(),
    "moments of another optimizer": lambda s: moments(s).update(extra=torch.zeros(1)),
    "a step that is no tensor": lambda s: moments(s).update(step=3),
    "an optimizer less": lambda s: s["optimizers"].pop("quats"),
    "moments of a second parameter": lambda s: s["optimizers"]["quats"]["state"].update({1: {}}),
    "means of another shape": lambda s: s["gaussians"].update(means=torch.zeros(6, 4)),
    "means of another count": lambda s: s["gaussians"].update(means=torch.zeros(5, 3)),
    "no Gaussian": lambda s: s["gaussians"].update(means=torch.zeros(0, 3)),
    "NaN": lambda s: s["gaussians"]["opacities"][1:2].fill_(float("nan")),
    "infinity": lambda s: s["gaussians"]["scales"].fill_(float("-inf")),
    "half precision": lambda s: s["gaussians"].update(sh0=torch.zeros(6, 1, 3).half()),
    "a sparse tensor": lambda s: s["gaussians"].update(means=torch.zeros(6, 3).to_sparse()),
    "a higher SH degree": lambda s: s["gaussians"].update(shN=torch.zeros(6, 15, 3)),
    "a name less": lambda s: s["gaussians"].pop("sh0"),
    "a name more": lambda s: s["gaussians"].update(color=torch.zeros(6)),
    "a list": lambda s: s.update(gaussians=[]),
    "statistics of another size": lambda s: s["densifier"].update(grad2d=torch.zeros(1)),
    "a step below zero": lambda s: s.update(step=-1),
    "a step that is a number of another kind": lambda s: s.update(step=1.5),
    "a generator of another kind": lambda s: s.update(generator=torch.zeros(3, dtype=torch.uint8)),
    "no generator": lambda s: s.update(generator=None),
    "a global generator of another kind": lambda s: s["global_rng"].update(cpu=torch.zeros(5056)),
    "a GPU's generator that is none": lambda s: s["global_rng"].update(cuda="x"),
    "settings that are no text": lambda s: s.update(settings=7),
    "settings that are no YAML": lambda s: s.update(settings="[" * 5),
    "settings that are no mapping": lambda s: s.update(settings="- 1"),
    "no settings": lambda s: s.pop("settings"),
    "a method's state that is none": lambda s: s.update(method=3),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_checkpoint_that_does_not_fit_is_one_line(spoil):
    state, config = stepped()
    saved = saved_of(state, config)
    checkpoint.validate(saved, config, "it")
    spoil(saved)
    with pytest.raises(UserError, match=r"^it does not fit: .*--overwrite$") as caught:
        checkpoint.validate(saved, config, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, key",
    [
        (["prompt=a blue ball"], "prompt"),
        (["negative_prompt=ugly"], "negative_prompt"),
        (["seed=1"], "seed"),
        (["method=sds"], "method"),
        (["prior.name=elsewhere"], "prior.name"),
        (["guidance.mode=plain"], "guidance.mode"),
        (["views.count=4"], "views.count"),
        (["gaussians.radius=0.3"], "gaussians.radius"),
    ],
)
def test_what_makes_a_run_another_one_is_named(words, key):
    state, config = stepped()
    other = tiny("gaussians.count=6", *GROWING, *words)
    if key == "prompt":  # a flag is stronger than a word
        other = replace(config, prompt="a blue ball")
    found = [name for name, _, _ in checkpoint.changed(checkpoint.dump(config), other)]
    assert any(name.startswith(key) for name in found)
    with pytest.raises(UserError, match="this run was made with"):
        checkpoint.validate(saved_of(state, config), other, "it")


@pytest.mark.parametrize(
    "word",
    [
        "steps=9",
        "checkpoint_every=1",
        "optimizer.means=1e-3",
        "densification.every=7",
        "guard.bad_steps=3",
        "report.size=8",
        "gaussians.final_scale=0.1",
    ],
)
def test_what_may_change_is_no_difference(word):
    config = tiny(*GROWING)
    assert checkpoint.changed(checkpoint.dump(config), tiny(*GROWING, word)) == []


def test_gaussians_that_are_not_finite_are_dropped_before_they_are_saved():
    state, config = stepped()
    with torch.no_grad():
        state.gaussians["means"][1, 0] = float("nan")
        state.gaussians["scales"][4, 2] = float("inf")
    kept = [0, 2, 3, 5]
    before = {name: state.gaussians[name].detach()[kept].clone() for name in NAMES}
    assert state.drop_broken() == 2
    assert all(torch.equal(state.gaussians[name], before[name]) for name in NAMES)
    checkpoint.validate(saved_of(state, config), config, "it")
    with torch.no_grad():
        state.gaussians["means"][:3] = float("nan")
    with pytest.raises(Diverged, match="3 of 4 Gaussians are not finite"):
        state.drop_broken()


def test_rates_that_no_optimizer_takes_are_a_users_mistake():
    state, _ = stepped()
    for word in ("optimizer.beta1=1.5", "optimizer.means=-1", "optimizer.means=1e30"):
        with pytest.raises(UserError, match="optimizer"):
            make_optimizers(state.gaussians, tiny(word).optimizer)
