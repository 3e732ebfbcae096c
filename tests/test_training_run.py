"""A run as a function: what it refuses before it touches a folder, what it keeps, and what it comes to."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, Hooks

from splatdistill.config.load import load, resolve
from splatdistill.errors import Diverged, UserError
from splatdistill.folder import PREVIOUS, kept_scenes, step_of
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.priors.latent import LatentPrior
from splatdistill.scene.gaussians import init_blob
from splatdistill.training import checkpoint, loop
from splatdistill.training.inputs import edit_settings
from splatdistill.training.run import RunResult, make_run
from splatdistill.training.state import TrainState

pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


def settings(teacher: str, *words: str):
    """Return the settings of a short run, by the method that costs least."""
    flags = {"prompt": "a red mushroom", "prior": {"name": teacher}}
    return resolve(flags, None, ["method=sds", "steps=4", *SMALL, "prior.dtype=float32", *words])


def stopping(after: int):
    """Watch a run, and stop it after so many steps."""
    done = []
    hooks = Hooks(on_step=lambda step, metrics: done.append(step), should_stop=lambda: len(done) >= after)
    return lambda job: nullcontext(hooks)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outputs(folder: Path) -> dict[str, bytes]:
    """All files, but of the checkpoints the last alone: which others are kept depends on stops."""
    files = content(folder)
    states = sorted(name for name in files if name.endswith(".pt"))
    return {name: value for name, value in files.items() if name not in states[:-1]}


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    """Return a finished run of 4 steps; copy it to change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    make_run(settings(teacher), out, device="cpu")
    return out


@pytest.fixture
def old(whole) -> Path:
    """Return a finished run in the folder `run`."""
    shutil.copytree(whole, "run")
    return Path("run")


def test_a_run_returns_what_came_of_it(whole, teacher):
    result = make_run(settings(teacher), "again", device="cpu")
    assert result.finished and (result.step, result.steps, result.out) == (4, 4, Path("again"))
    assert result.gaussians == len(read_ply("again/splat.ply")[0]["means"])
    assert Path("again/splat.ply").read_bytes() == (whole / "splat.ply").read_bytes()


def test_a_watcher_sees_the_steps_and_the_result(teacher):
    steps: list[int] = []
    results: list[RunResult] = []
    views: list[Any] = []
    watcher = Hooks(
        on_step=lambda step, metrics: steps.append(step),
        on_result=results.append,
        on_views=lambda view, distillation: views.append(view.rgb.shape),
    )
    result = make_run(settings(teacher), "run", device="cpu", watch=lambda job: nullcontext(watcher))
    assert steps == [1, 2, 3, 4] and results == [result] and views == [(2, 16, 16, 3)] * 4


def test_a_stopped_run_goes_on_to_the_same_bytes(whole, teacher):
    result = make_run(settings(teacher), "run", device="cpu", watch=stopping(3))
    assert not result.finished and result.step == 3 and not Path("run/splat.ply").exists()
    assert make_run(settings(teacher), "run", device="cpu", resume=True).finished
    assert outputs(Path("run")) == outputs(whole)


class Broken(Exception):
    """What a stranger's network raises."""


def breaking(error: BaseException | float):
    def predict(self, z_t, t, cond):
        if isinstance(error, BaseException):
            raise error
        return torch.full((2, *z_t.shape), error)

    return predict


@pytest.mark.parametrize(
    "error, kind",
    [
        (TypeError("argument of type 'NoneType'\nis not iterable"), UserError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), UserError),
        (Broken(), UserError),
        (float("nan"), Diverged),
        (float("inf"), Diverged),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_teacher_that_cannot_work_touches_nothing(teacher, whole, monkeypatch, error, kind, overwrite):
    if overwrite:
        shutil.copytree(whole, "run")
    monkeypatch.setattr(LatentPrior, "predict", breaking(error))
    with pytest.raises(kind) as caught:
        make_run(settings(teacher, "seed=1"), "run", device="cpu", overwrite=overwrite)
    assert "\n" not in str(caught.value) and teacher in str(caught.value)
    assert content(Path("run")) == content(whole) if overwrite else not Path("run").exists()


@pytest.mark.parametrize(
    "word",
    ["optimizer.beta1=1.5", "optimizer.beta2=-1", "views.count=3", "method=pds", "prior.name=absent"],
)
def test_settings_that_cannot_work_touch_nothing(teacher, old, word, monkeypatch):
    before = content(old)
    monkeypatch.setattr(LatentPrior, "group", 2)
    with pytest.raises(UserError) as caught:
        config = settings(teacher, word)
        if word.startswith("prior"):
            config = replace(config, prior=replace(config.prior, name="absent"))
        make_run(config, old, device="cpu", overwrite=True)
    assert "\n" not in str(caught.value) and content(old) == before


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_fails_before_its_first_step_is_undone(teacher, whole, monkeypatch, error, overwrite):
    if overwrite:
        shutil.copytree(whole, "run")

    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "gradient_norm", fail)
    with pytest.raises(type(error)):
        make_run(settings(teacher, "seed=1"), "run", device="cpu", overwrite=overwrite)
    assert content(Path("run")) == content(whole) if overwrite else not Path("run").exists()


def test_the_run_that_is_replaced_stays_until_the_new_one_has_its_result(teacher, old):
    before = content(old)
    changed = settings(teacher, "seed=1")
    make_run(changed, old, device="cpu", overwrite=True, watch=stopping(3))
    assert content(old / PREVIOUS) == before and not (old / "splat.ply").exists()
    assert make_run(changed, old, device="cpu", resume=True).finished
    assert not (old / PREVIOUS).exists()
    assert (old / "splat.ply").read_bytes() != before["splat.ply"]
    make_run(changed, "alone", device="cpu")
    assert outputs(old) == outputs(Path("alone"))


def test_a_run_that_comes_to_nothing_says_where_the_old_one_is(teacher, old):
    before = content(old)
    with pytest.raises(Diverged, match="every one of the 4 steps was bad") as caught:
        make_run(settings(teacher, "guard.gradient_norm=1e-12"), old, device="cpu", overwrite=True)
    assert any(PREVIOUS in line for line in caught.value.__notes__)
    assert content(old / PREVIOUS) == before and not (old / "splat.ply").exists()


def test_no_gaussian_left_is_no_result(teacher, monkeypatch):
    monkeypatch.setattr("splatdistill.scene.densification.keep_mask", lambda g, *_: g["opacities"] > 1e9)
    with pytest.raises(Diverged, match="no Gaussian is left"):
        make_run(settings(teacher), "run", device="cpu")
    assert not Path("run/splat.ply").exists()


def test_a_scene_that_is_not_finite_any_more_is_no_result_and_no_checkpoint(teacher):
    def watch(job):
        def spoil(step, metrics):
            if step == 3:
                job.state.gaussians["scales"].data.fill_(float("inf"))

        return nullcontext(Hooks(on_step=spoil))

    with pytest.raises(Diverged, match="50 of 50 Gaussians are not finite"):
        make_run(settings(teacher), "run", device="cpu", watch=watch)
    assert not Path("run/splat.ply").exists()
    assert make_run(settings(teacher), "run", device="cpu", resume=True).finished


def test_a_finished_run_goes_on_for_more_steps(teacher, old):
    before = (old / "splat.ply").read_bytes()
    longer = replace(load(old / "config.yaml"), steps=8)
    stopped = make_run(longer, old, device="cpu", resume=True, watch=stopping(2))
    assert stopped.step == 6 and (old / "splat.ply").read_bytes() == before
    assert load(old / "config.yaml").steps == 8
    assert make_run(load(old / "config.yaml"), old, device="cpu", resume=True).step == 8
    assert (old / "splat.ply").read_bytes() != before
    assert [step_of(path) for path in kept_scenes(old)] == [0, 2, 4, 6, 8]
    assert len((old / "metrics.jsonl").read_text().splitlines()) == 8


def test_fewer_steps_than_were_done_give_the_result(teacher):
    make_run(settings(teacher, "steps=9"), "run", device="cpu", watch=stopping(5))
    result = make_run(settings(teacher, "steps=3"), "run", device="cpu", resume=True)
    assert result.finished and result.step == 5 and Path("run/splat.ply").exists()


@pytest.mark.parametrize(
    "word", ["densification.kind=default", "densification.kind=mcmc", "optimizer.means=1e-4"]
)
def test_what_may_change_continues(teacher, word):
    make_run(settings(teacher, "densification.kind=none"), "run", device="cpu", watch=stopping(3))
    assert make_run(settings(teacher, word), "run", device="cpu", resume=True).finished


def test_what_makes_it_another_run_is_one_line(teacher):
    make_run(settings(teacher), "run", device="cpu", watch=stopping(3))
    before = content(Path("run"))
    for word in ("seed=7", "method=sdi", "views.count=4"):
        with pytest.raises(UserError, match="this run was made with"):
            make_run(settings(teacher, word), "run", device="cpu", resume=True)
    other = replace(settings(teacher), prompt="a red dog")
    with pytest.raises(UserError, match=r"'a red mushroom', and config\.yaml says 'a red dog'"):
        make_run(other, "run", device="cpu", resume=True)
    assert content(Path("run")) == before


def test_a_checkpoint_of_another_run_is_one_line(teacher):
    make_run(settings(teacher), "run", device="cpu", watch=stopping(2))
    make_run(replace(settings(teacher), prompt="a red dog"), "other", device="cpu", watch=stopping(3))
    shutil.copy("other/checkpoints/step-00000003.pt", "run/checkpoints")
    with pytest.raises(UserError, match="'a red dog'"):
        make_run(settings(teacher), "run", device="cpu", resume=True)


def first(values: dict[Any, Any]) -> Any:
    return next(iter(values))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda student: student["learned"].pop(first(student["learned"])),
        lambda student: student["learned"].update({first(student["learned"]): torch.zeros(3)}),
        lambda student: student["learned"][first(student["learned"])].fill_(float("nan")),
        lambda student: student["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
        lambda student: student.pop("optimizer"),
        lambda student: student.update(learned=7),
    ],
    ids=["a name less", "another shape", "NaN", "moments of another size", "no optimizer", "no mapping"],
)
def test_a_method_whose_saved_state_does_not_fit_is_one_line(teacher, spoil):
    config = settings(teacher, "method=vsd")
    make_run(config, "run", device="cpu", watch=stopping(2))
    path = Path("run/checkpoints/step-00000002.pt")
    saved = checkpoint.load(path)
    spoil(saved["method"])
    checkpoint.save(path, saved)
    before = content(Path("run"))
    with pytest.raises(UserError, match="does not fit") as caught:
        make_run(config, "run", device="cpu", resume=True)
    assert "\n" not in str(caught.value) and content(Path("run")) == before


def test_the_scene_is_there_before_its_checkpoint(teacher, monkeypatch):
    seen = []
    original = checkpoint.save

    def save(path, state, **kwargs):
        seen.append([step_of(p) for p in kept_scenes(Path("run"))])
        original(path, state, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save)
    make_run(settings(teacher), "run", device="cpu")
    assert seen == [[0], [0, 2], [0, 2, 4]]


def test_a_resumed_run_sweeps_what_killed_writes_left_and_later_scenes(teacher, whole):
    make_run(settings(teacher), "run", device="cpu", watch=stopping(2))
    for name in (".splat.ply.tmp", "checkpoints/.step-00000004.pt.tmp"):
        Path("run", name).write_text("half")
    write_ply("run/checkpoints/step-00000003.ply", init_blob(5))
    make_run(settings(teacher), "run", device="cpu", resume=True)
    assert outputs(Path("run")) == outputs(whole)


def test_a_kill_between_a_checkpoint_and_the_removal_of_an_older_one_leaves_none_too_many(teacher, whole):
    shutil.copytree(whole, "run")
    older = Path("run/checkpoints/step-00000000.pt")
    assert not older.exists() and len(list(older.parent.glob("*.pt"))) == 2
    older.write_bytes(b"older")
    Path("run", "splat.ply").unlink()
    make_run(settings(teacher), "run", device="cpu", resume=True)
    assert outputs(Path("run")) == outputs(whole)


FULL = ["config.yaml", "metrics.jsonl", "step-00000000.ply", "step-00000002.pt", "step-00000004.ply"]
FULL += ["preview.png", "turntable.webp", "filmstrip.png", "report.html", "splat.ply"]


@pytest.mark.parametrize("name", FULL)
def test_a_disk_that_is_full_at_any_file_is_one_line_and_the_run_goes_on_later(
    teacher, whole, monkeypatch, name
):
    import os

    original = os.replace

    def replacing(source, target):
        if Path(target).name == name:
            raise OSError(28, os.strerror(28))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replacing)
        with pytest.raises(UserError, match="make room on the disk") as caught:
            make_run(settings(teacher), "run", device="cpu")
    assert "\n" not in str(caught.value)
    begun = Path("run/config.yaml").exists()
    assert begun == ("--resume run" in str(caught.value))
    assert make_run(settings(teacher), "run", device="cpu", resume=begun).finished
    assert outputs(Path("run")) == outputs(whole)


def test_a_full_disk_loses_no_older_run(teacher, old, monkeypatch):
    import os

    before, original = content(old), os.replace

    def replacing(source, target):
        if Path(target).name.startswith("step-"):
            raise OSError(28, os.strerror(28))
        original(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    with pytest.raises(UserError, match="make room"):
        make_run(settings(teacher, "seed=1"), old, device="cpu", overwrite=True)
    assert content(old) == before


def test_two_runs_on_one_folder_are_refused(teacher):
    def watch(job):
        with pytest.raises(UserError, match="in use by another run"):
            make_run(settings(teacher), "run", device="cpu", overwrite=True)
        return nullcontext(Hooks())

    assert make_run(settings(teacher), "run", device="cpu", watch=watch).finished


def test_an_edit_is_a_run_with_its_own_settings(teacher, whole):
    flags = {"prompt": "a red dog", "prior": {"name": teacher}, "edit": edit_settings(whole), "method": "dds"}
    config = resolve(flags, None, ["steps=2", *SMALL, "prior.dtype=float32"])
    assert config.edit.source_prompt == "a red mushroom"
    assert make_run(config, "run", device="cpu").finished and Path("run/before_after.png").exists()


def test_the_state_of_a_job_is_the_one_that_was_saved(teacher):
    make_run(settings(teacher), "run", device="cpu", watch=stopping(3))
    states: list[TrainState] = []

    def watch(job):
        states.append(job.state)
        assert job.state.step == 3
        return nullcontext(Hooks())

    make_run(settings(teacher), "run", device="cpu", resume=True, watch=watch)
    assert states[0].step == 4
