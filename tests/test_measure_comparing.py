"""Paired comparison of two evaluations."""

import json
from pathlib import Path

import pytest
import torch

from splatdistill import evaluate
from splatdistill.errors import UserError
from splatdistill.folder import RESULT
from splatdistill.formats.ply import write_ply
from splatdistill.measure.comparing import differences, page, paired, rows_of, table
from splatdistill.scene.gaussians import init_blob


def row(prompt: str, seed: int, score: float, **more):
    return {"run": f"runs/{prompt}-{seed}", "prompt": prompt, "seed": seed, "clip_score": score, **more}


def written(folder: Path, rows: list) -> Path:
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"groups": {"real sdi": {"rows": rows}}}))
    return folder


def test_only_the_same_prompt_and_seed_are_compared() -> None:
    first = [row("a", 0, 1.0), row("a", 1, 2.0), row("b", 0, 3.0)]
    second = [row("b", 0, 5.0), row("a", 1, 2.5), row("c", 0, 9.0)]
    pairs = paired(first, second)
    assert [(a["prompt"], a["seed"], b["clip_score"]) for a, b in pairs] == [("a", 1, 2.5), ("b", 0, 5.0)]
    with pytest.raises(UserError, match="share no prompt"):
        paired(first, [row("z", 0, 1.0)])


def test_what_a_prompt_does_to_both_drops_out() -> None:
    """Scores spread over 100 with a difference of 1 in each pair: the interval is that of the differences."""
    generator = torch.Generator().manual_seed(0)
    base = (100 * torch.rand(40, generator=generator)).tolist()
    apart = (1 + 0.1 * torch.randn(40, generator=generator)).tolist()
    pairs = [(row("a", i, x), row("a", i, x + d)) for i, (x, d) in enumerate(zip(base, apart, strict=True))]
    found = differences(pairs)["clip_score"]
    assert found["difference"] == pytest.approx(sum(apart) / 40)
    assert 0.9 < found["low"] < found["difference"] < found["high"] < 1.1
    assert found["pairs"] == 40 and "*" in table({"clip_score": found}, ("A", "B"))[1][3]


def test_figures_that_one_lacks_are_left_out() -> None:
    pairs = [(row("a", 0, 1.0, quality=0.5, diverged=False), row("a", 0, 2.0, quality=None, diverged=True))]
    found = differences(pairs)
    assert "quality" not in found and found["diverged"]["difference"] == 1.0


def test_a_file_that_is_no_evaluation_is_one_line(tmp_path: Path) -> None:
    for text in ("", "{}", '{"groups": 3}', "[1]"):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(UserError, match="no result of an evaluation"):
            rows_of(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"groups": {"x": {"rows": []}, "y": {"rows": []}}}')
    with pytest.raises(UserError, match="2 groups"):
        rows_of(tmp_path)


def test_the_command_writes_a_page_with_the_pictures_of_every_pair(tmp_path: Path, capsys) -> None:
    runs = []
    for name in ("one", "two"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        write_ply(folder / RESULT, init_blob(20, 0.5, generator=torch.Generator().manual_seed(0)))
        runs.append(str(folder))
    first = written(tmp_path / "A", [row("<b>a dog</b>", 0, 1.0) | {"run": runs[0]}])
    second = written(tmp_path / "B", [row("<b>a dog</b>", 0, 2.0) | {"run": runs[1]}])
    out = tmp_path / "out"
    assert evaluate.main(["--compare", str(first), str(second), "--out", str(out)]) == 0
    text = (out / "comparison.html").read_text()
    assert text.count("data:image/png") == 2 and "<b>a dog" not in text and "http://" not in text
    told = json.loads((out / "comparison.json").read_text())
    assert told["figures"]["clip_score"]["difference"] == 1.0 and "torch" in told["versions"]
    assert "clip score" in capsys.readouterr().out
    assert evaluate.main(["--compare", str(first), str(tmp_path / "nothing"), "--out", str(out)]) == 2


def test_a_run_that_is_gone_leaves_a_note() -> None:
    pairs = [(row("a", 0, 1.0), row("a", 0, 2.0))]
    assert page(pairs, differences(pairs), ("A", "B")).count("is gone") == 2
