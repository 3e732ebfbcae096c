"""The loop on ToyPrior, whose score has a closed form."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import Hooks

from splatdistill.config.load import resolve
from splatdistill.config.schema import Config
from splatdistill.errors import Diverged
from splatdistill.priors.base import ToyPrior
from splatdistill.scene.cameras import turntable
from splatdistill.scene.gaussians import NAMES
from splatdistill.scene.rendering import render
from splatdistill.training import checkpoint, loop
from splatdistill.training.run import Job, write
from splatdistill.training.state import TrainState, new_state

CPU = torch.device("cpu")
TINY = [
    "steps=6",
    "views.size=16",
    "views.count=2",
    "gaussians.count=60",
    "checkpoint_every=2",
    "report.size=16",
    "report.frames=4",
    "gaussians.final_opacity=0.01",
]


def tiny(*words: str) -> Config:
    return resolve({"prompt": "a red ball"}, words=[*TINY, *words])


def toy() -> ToyPrior:
    """Return a teacher whose every picture is a red square on gray."""
    mean = torch.zeros(3, 8, 8)
    mean[0, 2:6, 2:6], mean[1:, 2:6, 2:6] = 0.8, -0.8
    return ToyPrior(mean, variance=0.05)


class Breaking(ToyPrior):
    """Predicts NaN in the given calls of encode."""

    def __init__(self, bad_calls) -> None:
        super().__init__(toy().mean, variance=0.05)
        self.bad_calls, self.calls = bad_calls, 0

    def encode(self, rgb):
        self.calls += 1
        return super().encode(rgb) * (math.nan if self.calls in self.bad_calls else 1.0)


def values(state: TrainState) -> list[torch.Tensor]:
    return [state.gaussians[name].detach().clone() for name in NAMES]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def finish(config: Config, state: TrainState, out: Path) -> bytes:
    write(Job(config, out, CPU, cast(Any, toy()), state, None, None, True, []))
    return (out / "splat.ply").read_bytes()


def resumed(config: Config, out: Path) -> TrainState:
    state = new_state(config, CPU)
    state.load_state_dict(checkpoint.latest(out / "checkpoints", config), CPU)
    return state


def run(config: Config, out: Path, prior=None, **hooks) -> TrainState:
    out.mkdir(exist_ok=True)
    (out / "checkpoints").mkdir(exist_ok=True)
    state = new_state(config, CPU)
    loop.train(config, prior or toy(), state, out, Hooks(**hooks))
    return state


@pytest.mark.parametrize("method", ["sdi", "sds"])
def test_views_approach_what_the_teacher_wants(tmp_path, method):
    config = tiny(
        f"method={method}", "steps=40", "checkpoint_every=100", "backgrounds.colors={gray: [0.5, 0.5, 0.5]}"
    )
    cameras = turntable(4, 15.0, 3.2, 40.0, 16)
    prior = toy()

    target = prior.embed([""]).view(3, 8, 8)

    def distance(state: TrainState) -> float:
        with torch.no_grad():
            rgb = render(state.gaussians, cameras, torch.full((3,), 0.5)).rgb.permute(0, 3, 1, 2)
        return float((prior.encode(rgb) - target).square().mean())

    before = distance(new_state(config, CPU))
    assert distance(run(config, tmp_path)) < 0.5 * before


@pytest.mark.parametrize(
    "words",
    [
        ["method=sdi", "inversion.eta=0.3"],
        ["method=sds"],
        [
            "densification.kind=default",
            "densification.start=1",
            "densification.every=2",
            "densification.grow_grad2d=0",
        ],
        [
            "densification.kind=mcmc",
            "densification.start=1",
            "densification.every=2",
            "densification.cap_max=80",
        ],
    ],
    ids=["sdi", "sds", "default", "mcmc"],
)
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, words):
    config = tiny(*words, "gaussians.sh_degree=1", "gaussians.sh_every=2")
    whole = finish(config, run(config, tmp_path / "whole"), tmp_path / "whole")
    seen = []
    out = tmp_path / "halves"
    run(config, out, on_step=lambda step, metrics: seen.append(step), should_stop=lambda: len(seen) == 3)
    torch.manual_seed(99)  # another process
    state = resumed(config, out)
    assert state.step == 3
    assert loop.train(config, toy(), state, out)
    assert finish(config, state, out) == whole
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert lines[0] == lines[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any, cast
sys.path.insert(0, sys.argv[1])
import test_training_loop as t
config = t.tiny("steps=7", "checkpoint_every=3")
die = lambda step, metrics: step == 5 and os.kill(os.getpid(), signal.SIGKILL)
t.run(config, Path(sys.argv[2]), on_step=die)
"""


@pytest.mark.slow
def test_a_killed_run_can_be_resumed_to_the_same_bytes(tmp_path):
    config = tiny("steps=7", "checkpoint_every=3")
    whole = finish(config, run(config, tmp_path / "whole"), tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out)]
    assert subprocess.run(command, cwd=Path(__file__).parents[1]).returncode == -signal.SIGKILL
    state = resumed(config, out)
    assert state.step == 3
    loop.train(config, toy(), state, out)
    assert finish(config, state, out) == whole
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


def test_the_seed_decides_the_run(tmp_path):
    first = run(tiny(), tmp_path / "a")
    assert same(values(first), values(run(tiny(), tmp_path / "b")))
    assert not same(values(first), values(run(tiny("seed=1"), tmp_path / "c")))


def test_a_bad_step_changes_nothing_but_the_count(tmp_path):
    config = tiny("steps=3")
    seen, history = [], []
    state = new_state(config, CPU)
    (tmp_path / "checkpoints").mkdir()

    def on_step(step, metrics) -> None:
        seen.append(metrics)
        history.append(values(state))

    assert loop.train(config, Breaking({2}), state, tmp_path, Hooks(on_step=on_step))
    assert [m["skipped"] for m in seen] == [0, 1, 1]
    assert same(history[0], history[1]) and not same(history[1], history[2])


def test_a_gradient_beyond_the_guard_is_a_bad_step(tmp_path):
    config = tiny("steps=2", "guard.gradient_norm=1e-9")
    state = run(config, tmp_path)
    assert state.skipped == 2
    assert same(values(state), values(new_state(config, CPU)))


def test_bad_steps_in_a_row_end_the_run_with_the_last_good_state(tmp_path):
    config = tiny("steps=30", "guard.bad_steps=3")
    with pytest.raises(Diverged, match="3 bad steps in a row"):
        run(config, tmp_path, Breaking(range(4, 99)))
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved["step"] == 6 and saved["skipped"] == 3
    expected = run(dataclasses.replace(config, steps=30), tmp_path / "short", should_stop=counter(3))
    assert all(value.isfinite().all() for value in saved["gaussians"].values())
    assert same([saved["gaussians"][name] for name in NAMES], values(expected))


def counter(limit: int):
    """Return True from the call after `limit` calls on."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= limit


def test_learning_rates_decay_to_their_share(tmp_path):
    state = run(tiny("optimizer.final=0.2"), tmp_path)
    assert state.optimizers["means"].param_groups[0]["lr"] == pytest.approx(0.2 * tiny().optimizer.means)


def test_background_names_reach_the_prompt_only_when_asked(tmp_path):
    class Listening(ToyPrior):
        def embed(self, texts):
            heard.update(texts)
            return super().embed(texts)

    for told, expected in ("true", "background"), ("false", ""):
        prior, heard = Listening(toy().mean), set()
        run(tiny("steps=2", f"backgrounds.in_prompt={told}"), tmp_path, prior)
        prompts = {text for text in heard if text.startswith("a red ball, ")}
        assert prompts and all(expected in text for text in prompts)
        for null in heard - prompts:  # the null branch names the background too, or nothing
            assert null.split(" ")[-1] == expected
        assert expected or not any("background" in text for text in heard)


def test_the_result_says_what_it_was_made_of(tmp_path):
    config = tiny("steps=2")
    finish(config, run(config, tmp_path), tmp_path)
    header = (tmp_path / "splat.ply").read_bytes().split(b"end_header")[0].decode()
    for line in ("prompt: a red ball", "method: sdi", "seed: 0", "version: "):
        assert f"comment {line}" in header
    assert (tmp_path / "preview.png").stat().st_size and (tmp_path / "turntable.webp").stat().st_size


def test_the_view_from_a_pictures_camera_is_held_to_the_picture(tmp_path) -> None:
    from splatdistill.scene.cameras import orbit
    from splatdistill.scene.pictures import Reference

    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    alpha = ((x - 8) ** 2 + (y - 8) ** 2 < 20).float()[None]
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 16, 16)
    reference = Reference(blue, alpha, orbit(0.0, 15.0, 3.0, 40.0, 16, 16))
    config = tiny("steps=60", "checkpoint_every=60")
    errors = {}
    for name, picture in (("held", reference), ("free", None)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        state = new_state(config, CPU)
        assert loop.train(config, toy(), state, tmp_path / name, anchors=loop.Anchors(picture))
        with torch.no_grad():
            view = render(state.gaussians, reference.camera, torch.ones(3))
        shown = reference.before(torch.ones(1, 3)).permute(0, 2, 3, 1)
        errors[name] = (view.rgb - shown).square().mean().item()
    assert errors["held"] < 0.3 * errors["free"]
    lines = (tmp_path / "held" / "metrics.jsonl").read_text().splitlines()
    assert {"reference_rgb", "reference_mask"} <= set(json.loads(lines[-1]))
