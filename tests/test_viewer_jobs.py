"""A run that is started from the page."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from splatdistill import edit, refine
from splatdistill.errors import UserError
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.gaussians import init_blob
from splatdistill.viewer import jobs as module
from splatdistill.viewer.jobs import Jobs, Order

pytestmark = pytest.mark.usefixtures("workplace")


def scene():
    return init_blob(20, generator=torch.Generator().manual_seed(0))


class Heard:
    """What a run told, and its end."""

    def __init__(self) -> None:
        self.scenes, self.failures, self.end = [], [], threading.Event()

    def jobs(self, *settings: str) -> Jobs:
        done = lambda scene, change, comments: self.scenes.append((scene, change, comments))  # noqa: E731
        return Jobs(done, self.failures.append, self.end.set, settings)


@pytest.mark.parametrize("mask", [None, Path("mask.npy")])
def test_an_order_is_what_the_verbs_do(mask):
    write_ply("in.ply", scene())
    np.save("mask.npy", np.arange(5))
    words = ["--splat", "in.ply"] + (["--mask", "mask.npy"] if mask else [])
    told = [*words, "--prompt", "a car", "--strength", "0.3"]
    assert Order("refine", "a car", strength=0.3).config(Path("in.ply"), mask) == refine.configure(
        refine.parse(told)
    )
    told = [*words, "--source-prompt", "a car", "--target-prompt", "a blue car"]
    assert Order("edit", "a car", "a blue car").config(Path("in.ply"), mask) == edit.configure(
        edit.parse(told)
    )


@pytest.mark.parametrize("order", [Order("refine", " "), Order("edit", "a car"), Order("edit", "", "a dog")])
def test_an_order_without_words_is_refused(order):
    write_ply("in.ply", scene())
    with pytest.raises(UserError):
        order.config(Path("in.ply"), None)


def test_a_run_changes_what_is_chosen_and_nothing_else(monkeypatch):
    def changed(config, out, watch):
        start = read_ply(config.edit.splat)[0]
        with torch.no_grad():
            start["means"][np.load(config.edit.mask)] += 1.0
        return start

    monkeypatch.setattr(module, "changed", changed)
    heard, rows = Heard(), torch.arange(20) < 5
    jobs = heard.jobs()
    jobs.start(Order("refine", "a car"), scene(), rows)
    assert heard.end.wait(60)
    (made, change, comments), moved = heard.scenes[0], scene()
    assert change == "refine" and comments["prompt"] == "a car" and not heard.failures
    assert torch.equal((made["means"] != moved["means"]).any(1), rows)
    jobs.close()


def test_one_run_at_a_time_and_a_stopped_one_changes_nothing(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def changed(config, out, watch):
        begun.set()
        assert go_on.wait(60)
        return None  # as when its watcher stops it

    monkeypatch.setattr(module, "changed", changed)
    heard = Heard()
    jobs = heard.jobs()
    jobs.start(Order("refine", "a car"), scene(), None)
    assert begun.wait(60) and jobs.busy
    with pytest.raises(UserError, match="in progress"):
        jobs.start(Order("refine", "a car"), scene(), None)
    jobs.stop()
    go_on.set()
    jobs.close()
    assert not heard.scenes and "stopped" in heard.failures[0] and not jobs.busy


def test_a_run_that_cannot_be_says_so():
    heard = Heard()
    jobs = heard.jobs()
    jobs.start(Order("refine", "xyzzy"), scene(), None)
    assert heard.end.wait(60)
    jobs.close()
    assert not heard.scenes and "xyzzy" in heard.failures[0]


@pytest.mark.slow
def test_a_real_run_shows_its_scenes_in_the_splats_own_place(teacher):
    shown = []

    class Watching(module.Session):
        def on_step(self, step, metrics):
            super().on_step(step, metrics)
            shown.append(self.snapshot)

    heard = Heard()
    jobs = heard.jobs(
        "steps=2", "views.size=16", "views.count=2", "prior.dtype=float32", f"prior.name={teacher}"
    )
    original, module.Session = module.Session, Watching
    far = scene()
    with torch.no_grad():
        far["means"].mul_(10.0).add_(50.0)
    try:
        jobs.start(Order("refine", "a red mushroom"), far, None)
        assert heard.end.wait(120)
    finally:
        module.Session = original
        jobs.close()
    assert not heard.failures and len(shown) == 2
    for found in (shown[0].gaussians, heard.scenes[0][0]):
        assert (found["means"].mean(0) - 50.0).abs().max() < 10.0
