"""Measures of runs, by a scorer that reads colors exactly, and the command on a tiny run."""

# pyright: reportArgumentType=false

import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.text import Text
from tiny import SMALL, make_clip, make_pipeline

from splatdistill import train
from splatdistill.cli import numbers
from splatdistill.config.load import dump, load
from splatdistill.config.schema import Config
from splatdistill.evaluate import main, table
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.guidance.core import sample
from splatdistill.measure import runs
from splatdistill.measure.groups import FIGURES
from splatdistill.measure.runs import (
    RenderedRun,
    colorless,
    diverged,
    ranked_first,
    right_names,
    views_followed,
)
from splatdistill.measure.suites import SUITES, distractors, make_runs, published, run_folder
from splatdistill.priors import words as grammar
from splatdistill.scene.cameras import turntable
from splatdistill.training import run

WORDS = sorted(
    {*["a", "on", "top", "of", "front", "side", "back", "view", "dog"], *" ".join(distractors()).split()}
)


class Reader:
    """Its pictures are texts already: equal words, equal embeddings."""

    def texts(self, texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), len(WORDS))
        for row, text in zip(rows, texts, strict=True):
            for word in grammar.words(text):
                row[WORDS.index(word)] += 1.0
        return torch.nn.functional.normalize(rows, dim=-1)


def test_a_run_is_named_by_what_it_shows() -> None:
    reader = Reader()
    shown = reader.texts(["a red car on top of a blue cube"] * 3)
    assert right_names(reader, shown, "a red car on top of a blue cube") == (True, True)
    assert right_names(reader, shown, "a red dog on top of a blue cube") == (False, True)
    assert right_names(reader, shown, "a red car on top of a green cube") == (True, False)
    assert right_names(reader, shown, "a car on top of a cube") == (True, None)
    assert right_names(reader, shown, "a corgi in a beret") == (None, None)


def test_a_front_seen_from_behind_is_a_janus() -> None:
    reader = Reader()
    words = [
        "front view" if abs((a + 180) % 360 - 180) < 45 else "back view" if 135 < a < 225 else "side view"
        for a in turntable(12, 15.0, 3.0, 40.0, 8).azimuth_deg.tolist()
    ]
    right = reader.texts([f"a red dog, {word}" for word in words])
    assert views_followed(reader, right, "a red dog") == (1.0, False)
    doubled = ["front view" if word == "back view" else word for word in words]
    shown = reader.texts([f"a red dog, {word}" for word in doubled])
    followed, janus = views_followed(reader, shown, "a red dog")
    assert janus and followed == pytest.approx(9 / 12)
    once = [*words[:6], "front view", *words[7:]]  # one misread view is no second front
    assert (
        views_followed(reader, reader.texts([f"a red dog, {word}" for word in once]), "a red dog")[1] is False
    )
    assert views_followed(reader, right, "a red sphere") == (None, None)  # has no front


def test_r_precision_ranks_the_own_text_first_or_not() -> None:
    reader = Reader()
    shown = reader.texts(["a red car", "a red car", "a blue dog", "a red car"])
    assert ranked_first(reader, shown, "a red car", distractors()) == 0.75
    assert colorless("a red car on top of a blue cube") == "a car on top of a cube"


def seen(color: torch.Tensor, alpha: float, finite: bool = True) -> RenderedRun:
    pictures = color.view(1, 3, 1, 1).expand(2, 3, 8, 8)
    return RenderedRun(Path(), Config(), pictures, pictures, torch.full((2, 1, 8, 8), alpha), finite)


def test_empty_fogged_burned_and_broken_runs_have_diverged() -> None:
    gray = torch.full((3,), 0.5)
    assert not diverged(seen(gray, 0.3))
    assert diverged(seen(gray, 0.001)) and diverged(seen(gray, 0.95)) and diverged(seen(gray, 0.3, False))
    assert diverged(seen(torch.tensor([1.0, 0.0, 0.0]), 0.3))


def test_a_teacher_with_brackets_in_its_name_is_named_as_it_is() -> None:
    group = {"rows": [{}], "summary": {}}
    (_, column) = table({"my[red]teacher[/] sdi": group}).columns
    assert isinstance(column.header, Text) and column.header.plain == "my[red]teacher[/] sdi"


def test_suites_are_fixed_lists_of_known_words() -> None:
    assert len(set(distractors())) == 153
    assert len(set(SUITES["objects"]())) == 24 and len(set(SUITES["compositions"]())) == 30
    for text in SUITES["objects"]() + SUITES["compositions"]() + distractors():
        assert grammar.parse(text) is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a tiny scorer and a tiny teacher."""
    clip, teacher = (tmp_path_factory.mktemp(name) for name in ("clip", "teacher"))
    return make_clip(clip), make_pipeline(teacher, "AutoencoderTiny")


TINY = [*SMALL, "prior.dtype=float32", "steps=2"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch, loaded_once) -> None:
    """Let teachers draw their samples in few steps."""
    monkeypatch.setattr(runs, "sample", lambda *given, steps: sample(*given, steps=3))


def test_a_suite_makes_each_run_once(folders: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    calls = []
    original = run.make_run
    monkeypatch.setattr(run, "make_run", lambda *a, **k: calls.append(a) or original(*a, **k))
    prompts, where = ["a red dog", "a dog"], ([str(folders[1])], [0, 1])
    made = make_runs(prompts, tmp_path, ["sds"], *where, TINY)
    assert len(made) == len(calls) == 4 and all((one / "splat.ply").exists() for one in made)
    assert make_runs(prompts, tmp_path, ["sds"], *where, TINY) == made and len(calls) == 4


@pytest.mark.slow
def test_runs_side_by_side_are_the_same_runs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    where, threads = ([str(folders[1])], [0, 1], TINY), torch.get_num_threads()
    torch.set_num_threads(max((os.cpu_count() or 1) // 2, 1))  # each of two has so many; sums depend on it
    alone = make_runs(["a red dog"], tmp_path / "alone", ["sds"], *where)
    torch.set_num_threads(threads)
    together = make_runs(["a red dog", "a thing"], tmp_path / "together", ["sds"], *where, jobs=2)
    assert [run.name for run in together][:2] == [run.name for run in alone]
    for one, other in zip(alone, together, strict=False):
        assert (one / "splat.ply").read_bytes() == (other / "splat.ply").read_bytes()


def test_the_command_writes_a_table_json_and_a_picture(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--prompt", "a red dog", "--prior", str(folders[1]), "--out", "run", *TINY]
    assert train.main(words) == 0
    assert main(["run", "--clip", str(folders[0]), "--out", "report"]) == 0
    result = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    (group,) = result["groups"].values()
    measured = set(group["summary"])
    assert {"r_precision", "clip_score", "object", "diverged", "saturation_to_teacher"} <= measured
    assert group["rows"][0]["prompt"] == "a red dog"
    assert (tmp_path / "report" / "evaluation.png").stat().st_size > 0
    assert "sdi" in capsys.readouterr().out
    lines = (tmp_path / "report" / "evaluation.md").read_text().splitlines()
    assert lines[0].endswith("sdi |") and any(line.startswith("| object | 0.00 [0.00,") for line in lines)


@pytest.mark.parametrize("count", [2, pytest.param(43, marks=pytest.mark.slow)])
def test_a_papers_suite_on_finished_runs_has_every_measure_with_its_interval(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch, count: int
) -> None:
    """Any CLIP reads any prompt; the runs are finished, so that nothing is made."""
    monkeypatch.chdir(tmp_path)
    prompts = published("sdi43")[:count]
    monkeypatch.setitem(SUITES, "sdi43", lambda: prompts)
    teacher, words = str(folders[1]), [*TINY, "gaussians.bound=0.95"]
    (first,) = make_runs(prompts[:1], tmp_path / "out", ["sds"], [teacher], [0], words)
    for prompt, seed in product(prompts, (0, 1, 2)):
        folder = run_folder(tmp_path / "out", teacher, "sds", prompt, seed)
        folder.mkdir(parents=True, exist_ok=True)
        config = replace(load(first / "config.yaml"), prompt=prompt, seed=seed)
        (folder / "config.yaml").write_text(dump(config))
        gaussians, _ = read_ply(first / "splat.ply")
        with torch.no_grad():
            gaussians["sh0"] += 0.1 * seed
        write_ply(folder / "splat.ply", gaussians)
    clip = str(make_clip(tmp_path))
    monkeypatch.setattr("splatdistill.measure.suites.make_all", lambda specs, how: {})
    options = ["--methods", "sds", "--priors", teacher, "--seeds", "0-2", "--out", "out", *words]
    assert main(["--suite", "sdi43", "--clip", clip, "--preference", clip, *options]) == 0
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["clip"] == clip and "torch" in told["versions"]
    (group,) = told["groups"].values()
    assert len(group["rows"]) == 3 * count
    by_words = {"object", "object_first_five", "nothing", "color", "janus", "view"}  # of the shipped teachers
    by_models = {"iou_share", "color_share", "loose", "holes"}  # of a teacher that has true models
    assert set(group["summary"]) == set(FIGURES) - by_words - by_models
    for name, figure in group["summary"].items():
        assert figure["low"] <= figure["mean"] <= figure["high"], name
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert all(f"| {name.replace('_', ' ')} |" in table for name in group["summary"])


def test_a_suite_says_how_many_of_its_runs_are_missing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts, teacher = published("sdi43")[:2], str(folders[1])
    monkeypatch.setitem(SUITES, "sdi43", lambda: prompts)
    (made,) = make_runs(prompts[:1], tmp_path / "out", ["sds"], [teacher], [0], TINY)
    monkeypatch.setattr("splatdistill.measure.suites.make_all", lambda specs, how: {})  # all others fail
    words = ["--suite", "sdi43", "--clip", str(folders[0]), "--methods", "sds", "--priors", teacher, *TINY]
    assert main([*words, "--no-teacher", "--out", "out"]) == 0
    assert "1 of 2 runs are missing" in capsys.readouterr().err
    (made / "splat.ply").unlink()
    assert main([*words, "--no-teacher", "--out", "out"]) == 2
    assert "none of the 2 runs finished" in capsys.readouterr().err


def test_a_teacher_without_a_judge_wants_a_clip_model(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--prompt", "a corgi in a beret", "--prior", str(folders[1]), "--out", "run", *TINY]
    assert train.main(words) == 0
    capsys.readouterr()
    assert main(["run", "--no-teacher", "--out", "report"]) == 2
    assert "give a CLIP model by --clip" in capsys.readouterr().err
    assert main(["run", "--no-teacher", "--out", "report", "--clip", str(folders[0])]) == 0
    (group,) = json.loads((tmp_path / "report" / "evaluation.json").read_text())["groups"].values()
    assert {"clip_score", "r_precision", "diverged"} <= set(group["summary"])


def test_mistakes_are_one_line(tmp_path: Path, folders: tuple[Path, Path], capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = ["--clip", str(folders[0]), "--priors", "real"]
    for words, said in (
        ([str(tmp_path / "nothing"), *clip], "no finished run"),
        ([*clip], "nothing to evaluate"),
        (["--suite", "objects", "--seeds", "x", *clip], "--seeds"),
        (["--suite", "objects", "run", *clip], "settings"),
        (["--suite", "objects", "--methods", "foo", *clip], "foo"),
        (["--suite", "objects", "--methods", "pds", *clip], "splatdistill.edit"),
        (["--suite", "objects", "--priors", "foo", *clip[:2]], "foo"),
        (["--suite", "objects", "guidance.scal=3", *clip], "guidance.scal"),
        (["--suite", "dreamfusion", *clip[:2]], "names nothing"),
        (["run", *clip], "no finished run (no splat.ply)"),
        (["--suite", "objets", *clip], "objects"),
        (["--suite", "objects", "--jobs", "0", *clip], "--jobs"),
    ):
        assert main(words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]
        assert not (tmp_path / "outputs").exists()
    assert numbers("0,3-5", "--seeds") == [0, 3, 4, 5]
