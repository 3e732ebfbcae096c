"""The claims: their figures are those of what was measured, and the page says what the records say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from splatdistill import reproduce
from splatdistill.guidance.core import sample
from splatdistill.measure import runs
from splatdistill.measure.claims import NAMES, all_claims
from splatdistill.measure.claims import latents as flat
from splatdistill.measure.claims import models as of_models
from splatdistill.measure.claims.base import MODELS, Claim, Findings, Lab, below, interval, line, share
from splatdistill.measure.claims.groups import cost
from splatdistill.measure.claims.splats import of_thing, outside, recolored
from splatdistill.measure.jury import Jury
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar

CLAIMS = all_claims()


def test_the_names_are_those_of_the_claims() -> None:
    assert list(CLAIMS) == list(NAMES)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    prior, jury = load_prior("real", dtype=torch.float32).for_run(0, MODELS), Jury.of("real")
    assert jury is not None
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["views.size=16", "views.count=4", "gaussians.count=50", "report.size=16", "report.frames=4"]
    return Lab(prior, jury, folder, 2, 2, 3, 2, [*tiny, "gaussians.final_opacity=0.01"])


@pytest.fixture
def few_steps(monkeypatch, loaded_once) -> None:
    """Let teachers draw their samples in few steps."""
    monkeypatch.setattr(runs, "sample", lambda *given, steps: sample(*given, steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdi-1", "sdi-2", "dsd-1"])
def test_what_is_exact_is_exact_however_little_is_measured(lab: Lab, name: str, monkeypatch) -> None:
    monkeypatch.setattr(flat, "DDIM_STEPS", 10)
    found = CLAIMS[name].measure(lab)
    cells = dict(found.rows)
    if name == "sdi-1":
        assert cells["cached noise, target assigned"][0][0] < 1e-3
        assert cells["DDIM from other noise"][0][0] > 0.1
    if name == "sdi-2":
        assert max(cell[2] for cell in cells["SDI, eta 0"]) < 1e-6
        assert all(cell[0] > 0.01 for cell in cells["SDS"])
    if name == "dsd-1":
        assert cells["DSD*"][0][0] < 1e-3
    assert all(len(row) == len(found.columns) for row in cells.values())


@pytest.mark.slow
def test_inversion_leaves_less_of_the_equation_open_than_chance(lab: Lab) -> None:
    found = dict(CLAIMS["sdi-3"].measure(lab).rows)
    mean = {name: sum(cell[0] for cell in cells) / len(cells) for name, cells in found.items()}
    assert mean["inverted at +0, 10 steps"] < mean["random"]


def test_costs_are_counted_once(lab: Lab) -> None:
    first = cost(lab, "sds")
    assert first[0] == 2 * 4 * 2  # steps, views, branches
    assert cost(lab, "sds") == first


def test_a_claim_about_splats_makes_its_runs_and_reads_them(lab: Lab, few_steps) -> None:
    lab = replace(lab, seeds=1)
    found = CLAIMS["df-1"].measure(lab)
    assert [len(cells) for _, cells in found.rows] == [4, 4]
    made = sorted((lab.runs / "steps-2" / "real-sdi").glob("*/splat.ply"))
    assert len(made) == 2
    shown = Findings([], [], None, "", shown=[[path.parent for path in made]] * 3)
    reproduce.picture(shown, lab.runs / "shown.png")
    assert Image.open(lab.runs / "shown.png").size == (2 * 4 * 64, 3 * 64)


def test_the_mask_of_an_edit_is_the_thing_that_changes() -> None:
    picture = torch.ones(1, 3, 20, 20)
    alpha = torch.zeros(1, 1, 20, 20)
    alpha[..., 2:18, 5:15] = 1.0
    picture[..., 2:10, 5:15] = torch.tensor(grammar.COLORS["red"])[:, None, None] * 0.7  # in shade
    picture[..., 10:18, 5:15] = torch.tensor(grammar.COLORS["blue"])[:, None, None]
    same = outside(picture, alpha, "a red car on top of a blue cube")
    assert not same[..., 2:10, 5:15].any()
    assert same[..., 12:18, 5:15].all() and same[..., :, :3].all()
    there = of_thing(picture, alpha, "a red car on top of a blue cube")
    assert recolored(picture, there, "a red car") and not recolored(picture, there, "a green car")


@pytest.mark.slow
def test_views_apart_agree_less_than_views_together(lab: Lab, monkeypatch) -> None:
    monkeypatch.setattr(of_models, "DDIM_STEPS", 10)
    found = dict(CLAIMS["mv-1"].measure(lab).rows)
    assert found["each by itself"][0].mean < found["together"][0].mean


def test_intervals_hold_their_mean_and_order_is_strict() -> None:
    low, high = interval([1.0, 1.1, 0.9]), interval([2.0, 2.1, 1.9])
    assert low[1] <= low[0] <= low[2] and below(low, high) and not below(high, low)
    assert share([True, True, False])[0] == pytest.approx(2 / 3)
    curve = line("it", [1, 2], [[1.0, 1.0], [3.0, 5.0]])
    assert curve.mean == [1.0, 4.0] and curve.low[1] <= 4.0 <= curve.high[1]


def test_records_become_a_page_and_a_plot(tmp_path, monkeypatch, capfd) -> None:
    curve = line("SDS", [1, 2], [[1.0, 2.0], [3.0, 4.0]])
    found = Findings(["RMSE"], [("SDS", [(1.0, 0.5, 1.5)])], False, "It is not so.", {"g": 4}, [curve])
    claim = Claim("sdi-1", "a paper", "It is so.", lambda lab: found)
    monkeypatch.setattr(reproduce, "all_claims", lambda: {"sdi-1": claim})
    assert reproduce.main(["sdi-1", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "REPRODUCTION.md").read_text("utf-8")
    assert "sdi-1: does not hold here" in page and "**It is not so.**" in page
    assert "| SDS | 1 [0.5, 1.5] |" in page
    assert (tmp_path / "reproduction" / "sdi-1.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "reproduction" / "sdi-1.json").read_text("utf-8"))
    assert record["holds"] is False and record["rows"] == [["SDS", [[1.0, 0.5, 1.5]]]]
    assert record["command"] in page
    (tmp_path / "reproduction" / "sdi-1.before.json").write_text(
        json.dumps(record | {"reading": "It was so."})
    )
    both = reproduce.document(tmp_path / "reproduction", reproduce.all_claims())
    assert both.index("**It is not so.**") < both.index("**It was so.**")


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch) -> None:
    times = []

    def measure(lab: Lab) -> Findings:
        times.append(lab.draws)
        return Findings(["RMSE"], [("SDS", [1.0])], None, "It is one.")

    monkeypatch.setattr(reproduce, "all_claims", lambda: {"sdi-1": Claim("sdi-1", "", "It is.", measure)})
    out = ["--out", str(tmp_path)]
    for words in ([], [], ["--draws", "3"], ["sdi-1", "--draws", "3"]):
        assert reproduce.main([*words, *out]) == 0
    assert times == [32, 3, 3]


def test_mistakes_are_one_line(tmp_path, capfd) -> None:
    for words, said in (
        (["sdi-9"], "sdi-9"),
        (["--seeds", "0"], "--seeds"),
        (["--prompts", "1"], "--prompts"),
        (["--prompts", "99"], "at most 24"),
        (["--jobs", "0"], "--jobs"),
        (["sdi-4", "guidance.scal=3"], "guidance.scal"),
        (["sdi-2", "guidance.scal=3"], "guidance.scal"),
    ):
        assert reproduce.main([*words, "--out", str(tmp_path)]) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]
    assert not Path(tmp_path, "reproduction").exists()
