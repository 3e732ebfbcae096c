"""Lists of prompts: what is made of them, by whichever executor, each run once."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from many import listening
from tiny import SMALL

from splatdistill.batch import main, shard
from splatdistill.config.schema import GuidanceConfig
from splatdistill.errors import UserError
from splatdistill.folder import RESULT
from splatdistill.guidance.methods import SDS
from splatdistill.guidance.query import Query
from splatdistill.measure.suites import SUITES, listed, specs_of
from splatdistill.priors.latent import LatentPrior
from splatdistill.training import executors, jobs
from splatdistill.training.executors import LOST, Here, Processes, RayActors, SlurmArray
from splatdistill.training.jobs import RunSpec, Task, make_all, tasks_of

PROMPTS = ["a red dog", "a dog", "a red mushroom"]
WORDS = [*SMALL, "steps=2", "method=sds", "prior.dtype=float32"]


@pytest.fixture
def listing(tmp_path: Path) -> str:
    (tmp_path / "list.txt").write_text("\n".join(["", *PROMPTS, PROMPTS[0]]), encoding="utf-8")
    return str(tmp_path / "list.txt")


@pytest.fixture
def specs(teacher: str, tmp_path: Path) -> list[RunSpec]:
    items = [{"prompt": prompt} for prompt in PROMPTS]
    return specs_of(items, tmp_path / "runs", {"prior": {"name": teacher}}, WORDS, allow_unknown=True)[0]


def results(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*/{RESULT}")}


def test_a_list_becomes_a_folder_a_run_and_a_page_and_again_nothing(
    teacher, listing, tmp_path, capsys
) -> None:
    command = [listing, "--out", str(tmp_path / "out"), "--prior", teacher, "--jobs", "1", *WORDS]
    assert main(command) == 0
    made = results(tmp_path / "out")
    assert set(made) == {"a-red-dog-0", "a-dog-0", "a-red-mushroom-0"}
    assert "3 of 3 done, 0 failed" in capsys.readouterr().err
    page = (tmp_path / "out" / "batch.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 3 and "a red mushroom" in page
    inodes = {path: path.stat().st_ino for path in (tmp_path / "out").glob(f"*/{RESULT}")}
    assert main(command) == 0 and all(path.stat().st_ino == inode for path, inode in inodes.items())
    assert main([*command, "steps=3"]) == 2
    assert "has runs with steps 2, not 3" in capsys.readouterr().err
    for i in range(2):
        assert main([*command[:2], str(tmp_path / "parts"), *command[3:], "--shard", f"{i}/2"]) == 0
        assert (tmp_path / "parts" / f"{i}-of-2-batch.html").exists()
    assert results(tmp_path / "parts") == made


def test_runs_that_share_batches_are_the_runs_that_were_made_alone(
    teacher, listing, tmp_path, monkeypatch
) -> None:
    calls, predict = [], LatentPrior.predict

    def noting(self: LatentPrior, z_t: Any, t: Any, cond: Any) -> Any:
        calls.append(len(z_t))
        return predict(self, z_t, t, cond)

    monkeypatch.setattr(LatentPrior, "predict", noting)
    command = [
        listing,
        "--prior",
        teacher,
        "--jobs",
        "1",
        *WORDS,
        "densification.start=1",
        "densification.every=1",
    ]
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    apart = calls.copy()
    calls.clear()
    assert main([*command, "--out", str(tmp_path / "together"), "batch.scenes=3"]) == 0
    assert len(calls) < len(apart) / 2 and max(calls) == 3 * max(apart)
    made, alone = results(tmp_path / "together"), results(tmp_path / "alone")
    assert made.keys() == alone.keys() and all(len(made[name]) == len(alone[name]) for name in made)


class Losing(Processes):
    """A crew whose workers are killed at their first tasks."""

    kills = 2

    def give(self, worker: Any, task: Task) -> None:
        super().give(worker, task)
        if self.kills:
            self.kills -= 1
            os.kill(worker[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_lost_is_replaced_and_its_run_tried_again(specs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(executors, "START", "fork")  # quick; what is forked has one thread
    told: list[tuple[str, str | None]] = []
    failures = make_all(
        specs, Losing(2, "cpu"), retries=1, tell=lambda spec, why: told.append((spec.folder.name, why))
    )
    assert not failures and len(results(tmp_path / "runs")) == 3
    assert [why for _, why in told].count(LOST) == 2 and [why for _, why in told].count("") == 3


class Failing:
    """An executor of which one task always fails."""

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[str] | None]]:
        for number, task in enumerate(tasks):
            yield number, None
            if task[0].config.prompt != "a dog":
                task[0].folder.mkdir(parents=True, exist_ok=True)
                (task[0].folder / RESULT).touch()
            yield number, ["no dogs" if task[0].config.prompt == "a dog" else ""]


def test_what_fails_is_tried_again_and_listed(specs) -> None:
    begun: list[str] = []

    def tell(spec: RunSpec, failure: str | None) -> None:
        begun.extend([spec.config.prompt] if failure is None else [])

    failures = make_all(specs, Failing(), retries=2, tell=tell)
    assert list(failures.values()) == ["no dogs"] and begun == [*PROMPTS, "a dog", "a dog"]


def with_fault(specs: Sequence[RunSpec], error: BaseException) -> list[RunSpec]:
    """Return the runs, the second with a method that raises in its second step."""

    class Faulty(SDS):
        def compare(self, query: Query, state: Any) -> Any:
            if query.progress > 0:
                raise error
            return super().compare(query, state)

    config = replace(specs[1].config, method=Faulty())
    return [specs[0], replace(specs[1], config=config), *specs[2:]]


@pytest.fixture
def faulty_teacher(monkeypatch) -> None:
    """Let the teacher raise whenever it is asked about a dog."""
    embed, predict = LatentPrior.embed, LatentPrior.predict

    def marked(self: LatentPrior, texts: list[str]) -> Any:
        marks = torch.tensor([1e6 * (text == "a dog") for text in texts])
        return embed(self, texts) + marks[:, None, None]

    def faulty(self: LatentPrior, z_t: Any, t: Any, cond: Any) -> Any:
        if cond.embeddings.max() > 1e5:
            raise KeyError("no such\nthing")
        return predict(self, z_t, t, cond)

    monkeypatch.setattr(LatentPrior, "embed", marked)
    monkeypatch.setattr(LatentPrior, "predict", faulty)


def told_alone(specs: Sequence[RunSpec], failures: Mapping[Path, str], line: str) -> bool:
    """Return whether the second run alone failed, with one line, and its log has the traceback."""
    ended = [spec.finished for spec in specs] == [True, False, True]
    return ended and failures == {specs[1].folder: line} and "Traceback" in log_of(specs[1])


def log_of(spec: RunSpec) -> str:
    return (spec.folder / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("scenes", [1, 3], ids=["alone", "shared"])
def test_a_fault_of_a_method_ends_its_own_run(specs, scenes) -> None:
    specs = with_fault(specs, TypeError("no\nsuch thing"))
    failures = make_all(specs, Here("cpu"), scenes=scenes)
    assert told_alone(specs, failures, "TypeError: no such thing")


@pytest.mark.parametrize("scenes", [1, 3], ids=["alone", "shared"])
def test_a_fault_of_the_teacher_ends_the_run_that_asked(specs, faulty_teacher, scenes) -> None:
    plain = GuidanceConfig(mode="plain")  # with a view's name behind it, the tiny teacher cuts a prompt
    specs = [replace(spec, config=replace(spec.config, guidance=plain)) for spec in specs]
    failures = make_all(specs, Here("cpu"), scenes=scenes)
    assert told_alone(specs, failures, "KeyError: 'no such\\nthing'")


@pytest.mark.parametrize("scenes", [1, 3], ids=["alone", "shared"])
def test_an_interrupt_in_one_run_ends_all(specs, scenes) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_all(with_fault(specs, KeyboardInterrupt()), Here("cpu"), scenes=scenes)


def test_a_teacher_that_cannot_be_loaded_is_a_failure_of_each(specs, monkeypatch) -> None:
    def teacher_of(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(jobs, "teacher_of", teacher_of)
    jobs.warm_teacher.cache_clear()
    for scenes in (1, 3):
        assert set(make_all(specs, Here("cpu"), scenes=scenes).values()) == {"RuntimeError: out of memory"}


def test_runs_that_share_batches_have_one_teacher(specs) -> None:
    other = replace(specs[1].config, prior=replace(specs[1].config.prior, models=2))
    mixed = [specs[0], replace(specs[1], config=other), specs[2]]
    assert tasks_of(mixed, 2) == [[mixed[0], mixed[2]], [mixed[1]]]
    assert tasks_of(specs, 2) == [specs[:2], specs[2:]]


def test_a_list_whose_first_run_is_at_fault_is_made(teacher, listing, tmp_path, capsys, monkeypatch) -> None:
    prepare = jobs.run.prepare

    def faulty(config: Any, *given: Any, **named: Any) -> Any:
        if config.prompt == PROMPTS[0]:
            raise ValueError("modules not found")
        return prepare(config, *given, **named)

    monkeypatch.setattr(jobs.run, "prepare", faulty)
    command = [listing, "--out", str(tmp_path / "out"), "--prior", teacher, "--jobs", "1", "--retries", "0"]
    assert main([*command, *WORDS, "steps=1"]) == 1
    assert set(results(tmp_path / "out")) == {"a-dog-0", "a-red-mushroom-0"}
    err = capsys.readouterr().err
    assert "ValueError: modules not found" in err and "Traceback" not in err
    assert "Traceback" in (tmp_path / "out" / "a-red-dog-0" / "log.txt").read_text(encoding="utf-8")


def test_lists_are_suites_texts_or_yaml(tmp_path: Path) -> None:
    assert [item["prompt"] for item in listed("objects")] == SUITES["objects"]()
    path = tmp_path / "list.yaml"
    path.write_text(
        "- a red dog\n- {prompt: a red dog, seed: 3}\n- {prompt: a red dog, method: sds, steps: 7}\n"
    )
    specs, base = specs_of(listed(str(path)), tmp_path, {}, ["steps=5"], allow_unknown=False)
    assert [(spec.config.seed, spec.config.steps) for spec in specs] == [(0, 5), (3, 5), (0, 7)]
    names = [spec.folder.name for spec in specs]
    assert (
        names[:2] == ["a-red-dog-0", "a-red-dog-3"] and names[2].startswith("a-red-dog-") and base.steps == 5
    )
    for text, said in (
        ("a: 1", "expected a list"),
        ("- seed: 1", "a prompt in each"),
        ("", "expected a list"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            listed(str(path))


def test_a_part_of_a_list_is_told_by_words_or_by_the_environment() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert shard(None, slurm) == (0, 1) and shard("1/3", slurm) == (1, 3) and shard("auto", slurm) == (2, 4)
    assert shard("auto", {"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    for text, environment in (("3/3", {}), ("x", {}), ("auto", {})):
        with pytest.raises(UserError, match="--shard"):
            shard(text, environment)


def test_mistakes_are_one_line_and_touch_nothing(teacher, listing, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    out, prior = ["--out", str(tmp_path / "out")], ["--prior", teacher]
    for words, said in (
        (["nothing.txt", *out], "give a file, or a suite"),
        ([listing, *out, *prior, "--on", "ray"], "pip install 'splatdistill[cluster]'"),
        ([listing, *out, *prior, "--on", "slurm"], "pip install 'splatdistill[cluster]'"),
        ([listing, *out, *prior, "--on", "moon"], "expected local, ray"),
        ([listing, *out, *prior, "--shard", "2/2"], "give I/N"),
        ([listing, *out, *prior, "batch.scenes=x"], "batch.scenes=x"),
        ([listing, *out, *prior, "stepz=3"], "stepz"),
        (["dreamfusion", *out], "names nothing"),
    ):
        assert main(words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0], lines
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_processes_save_their_runs(teacher, listing, tmp_path) -> None:
    import subprocess

    command = [
        sys.executable,
        "-m",
        "splatdistill.batch",
        listing,
        "--out",
        str(tmp_path / "out"),
        "--prior",
        teacher,
    ]
    command += ["--jobs", "2", *WORDS, "steps=2000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "out").glob("*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1].strip().endswith("the same command goes on from here")
    assert process.returncode == 130 and len(list((tmp_path / "out").glob("*/checkpoints/*.pt"))) >= 2


@pytest.mark.slow
def test_actors_of_ray_make_the_same_runs(specs, tmp_path) -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    crew = RayActors(2, "cpu")  # before anything else imports ray, which reads its variables then
    try:
        assert not make_all(specs, crew, retries=1)
        assert not listening()  # beyond loopback
    finally:
        crew.ray.shutdown()
    made = results(tmp_path / "runs")
    again = [RunSpec(tmp_path / "here" / spec.folder.name, spec.config) for spec in specs]
    assert not make_all(again, Here("cpu")) and results(tmp_path / "here") == made


@pytest.mark.slow
def test_an_array_of_submitit_makes_the_same_runs(specs, tmp_path) -> None:
    pytest.importorskip("submitit")
    assert not make_all(specs, SlurmArray(2, tmp_path / "slurm", "cpu", "local"))
    made = results(tmp_path / "runs")
    again = [RunSpec(tmp_path / "here" / spec.folder.name, spec.config) for spec in specs]
    assert not make_all(again, Here("cpu")) and results(tmp_path / "here") == made
