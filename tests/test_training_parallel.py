"""One scene over two processes, forked from this one, which speak over 127.0.0.1."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks as campaign
import torch
from ranks import as_bytes, commands, side_by_side, trained, trained_together, verb
from test_training_loop import CPU, tiny, toy
from tiny import Hooks, stop_after

from splatdistill.guidance import query as queries
from splatdistill.guidance.query import Query
from splatdistill.training import loop
from splatdistill.training.parallel import Alone, Ranks, joined
from splatdistill.training.state import new_state

ROOT = Path(__file__).resolve().parents[1]
KINDS = ["default", "mcmc", "edit in a mask"]  # in short; all of them below


@pytest.fixture(scope="module")
def kinds(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return commands(tmp_path_factory.mktemp("kinds"), teacher, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_end_with_the_same_bits_after_growth(kinds, tmp_path: Path, kind: str) -> None:
    first, second = trained_together(kinds[kind], tmp_path)
    assert as_bytes(first["state"]) == as_bytes(second["state"]) and first["state"]["step"] == 6
    assert len(first["state"]["gaussians"]["means"]) > first["count"]


@pytest.mark.slow
def test_fifty_steps_of_every_kind_end_with_the_same_bits(teacher, tmp_path: Path) -> None:
    rows = campaign.same(tmp_path, teacher, 50)
    apart = rows.pop("gradients_apart")  # the tiny one rounds so in another batch, in one process as well
    assert apart.pop("tiny") < 1e-5 and max(apart.values()) < 1e-6
    assert len(rows) == 7 and all(row["same_bits"] and row["moved"] for row in rows.values())


@pytest.fixture
def one_noise(monkeypatch) -> None:
    """Give every view the same noise, so that it does not matter which process draws it."""

    def gaussian_like(z: torch.Tensor, generator: Any) -> torch.Tensor:
        return torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(z).contiguous()

    monkeypatch.setattr(queries, "gaussian_like", gaussian_like)
    monkeypatch.setattr(Query, "uniform", lambda self: torch.full((len(self.t),), 0.4, dtype=torch.float64))


FIXED_T = ["method.timesteps.low=[0.4,0.4]", "method.timesteps.high=[0.4,0.4]", "densification.kind=none"]


@pytest.mark.parametrize("group", [1, 4])
def test_first_gradients_are_those_of_one_process(kinds, tmp_path: Path, group: int, one_noise) -> None:
    words, prior = [*kinds["mcmc"], *FIXED_T, "steps=1", "views.count=8"], toy()
    prior.group = group
    alone = trained(words, tmp_path, Alone(), prior)["gradients"]
    for shared in trained_together(words, tmp_path, prior):
        assert float((alone - shared["gradients"]).norm() / alone.norm()) < 1e-6


def test_a_student_learns_from_the_views_of_all(kinds, tmp_path: Path, one_noise) -> None:
    words = [*kinds["vsd"], *FIXED_T, "steps=1"]
    alone, shared = trained(words, tmp_path, Alone()), trained_together(words, tmp_path)[1]
    moments = [
        [m["exp_avg"] for m in one["state"]["method"]["optimizer"]["state"].values()]
        for one in (alone, shared)
    ]
    for a, b in zip(*moments, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    assert any(float(a.abs().max()) > 0 for a in moments[0])


def test_views_that_are_denoised_together_stay_together(tmp_path: Path) -> None:
    config, prior = tiny("views.count=8", "method=sds", "steps=3", "checkpoint_every=9"), toy()
    prior.group = 4
    (tmp_path / "checkpoints").mkdir()
    seen = []

    def work() -> list[Any]:
        encode = prior.encode
        prior.encode = lambda rgb: seen.append(len(rgb)) or encode(rgb)
        with joined() as ranks:
            state = new_state(config, CPU)
            loop.train(config, prior, state, tmp_path, ranks=ranks)
        return [seen, {name: value.detach() for name, value in state.gaussians.items()}]

    (first, a), (second, b) = (one.returned for one in side_by_side(work))
    assert first == second == [4, 4, 4] and as_bytes(a) == as_bytes(b)


def test_processes_that_drifted_apart_go_on_from_the_first(tmp_path: Path) -> None:
    config = tiny("views.count=2", "steps=4", "checkpoint_every=2")
    (tmp_path / "checkpoints").mkdir()

    def work() -> dict[str, torch.Tensor]:
        with joined() as ranks:
            state = new_state(config, CPU)

            def nudge(step: int, metrics: Any) -> None:
                if step == 1 and not ranks.first:
                    state.gaussians["means"].data[0] += 1e-6

            loop.train(config, toy(), state, tmp_path, Hooks(on_step=nudge), ranks=ranks)
        return {name: value.detach() for name, value in state.gaussians.items()}

    a, b = (one.returned for one in side_by_side(work))
    assert as_bytes(a) == as_bytes(b)


def steps_of(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(kinds, tmp_path: Path) -> None:
    out, resume = tmp_path / "run", ["train", "--resume", str(tmp_path / "run")]
    begin = [*kinds["vsd"], "--out", str(out)]
    for words, size, stop in ((begin, 2, 2), (resume, 1, 4), (resume, 2, 99)):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, stop)
            ends = side_by_side(lambda words=words: verb(words), size)
        status = 0 if stop == 99 else 130
        assert [one.status for one in ends] == [status] * size, ends
    assert steps_of(out) == list(range(1, 7)) and (out / "splat.ply").exists()


@pytest.fixture(scope="module")
def whole(kinds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a run over two processes that nobody touched."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert [one.status for one in side_by_side(lambda: verb([*kinds["default"], "--out", str(out)]))] == [
        0,
        0,
    ]
    return campaign.contents(out)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_is_one_line_and_the_run_goes_on(
    kinds, whole: dict[str, bytes], tmp_path: Path, rank: int
) -> None:
    words, out = kinds["default"], tmp_path / "run"
    calls, add_up_ = [], Ranks.add_up_

    def dying(self: Ranks, *given: Any) -> None:
        calls.append(given)
        if self.rank == rank and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        add_up_(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "add_up_", dying)
        ends = side_by_side(lambda: verb([*words, "--out", str(out)]))
    assert ends[rank].status == -signal.SIGKILL and ends[1 - rank].status == 2
    (told,) = [line for one in ends for line in one.text.splitlines() if line.startswith("error:")]
    assert (
        "another of the 2 processes" in told and f"--resume {out}" in told and "Traceback" not in ends[0].text
    )
    ends = side_by_side(lambda: verb(["train", "--resume", str(out)]))
    assert [one.status for one in ends] == [0, 0], ends
    assert campaign.contents(out) == whole


@pytest.mark.slow
def test_either_process_killed_at_random_moments_loses_nothing(teacher, tmp_path: Path) -> None:
    tally = campaign.kills(tmp_path, teacher, 20)
    assert tally["kills"] >= 15 and not (tally["lost"] or tally["different"] or tally["untold"]), tally


def test_mistakes_are_told_once(kinds, tmp_path: Path) -> None:
    for words, said in (
        ([*kinds["default"], "views.count=3"], "views.count is 3, give a multiple of 2"),
        ([*kinds["default"], "--seeds", "0,1"], "splatdistill.batch"),
    ):
        ends = side_by_side(lambda words=words: verb([*words, "--out", str(tmp_path / "run")]))
        lines = [line for one in ends for line in one.text.splitlines() if line.startswith("error:")]
        assert [one.status for one in ends] == [2, 2] and said in lines[0], ends
        assert not (tmp_path / "run").exists()
    assert len(ends) == 2


@pytest.mark.slow
def test_torchrun_starts_the_processes(kinds, whole, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    verb_, *words = [*kinds["default"], "--out", str(tmp_path / "run")]
    command = [*launch, f"splatdistill.{verb_}", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert campaign.contents(tmp_path / "run") == whole
