"""Groups of runs: their names, and figures with intervals that hold what they should."""

import pytest
import torch

from splatdistill.config.load import resolve
from splatdistill.config.presets import DEFAULT
from splatdistill.measure import metrics
from splatdistill.measure.groups import SPREADS, Group, diversity, frechet, group_names, summary


def test_summaries_skip_what_does_not_apply() -> None:
    rows = [{"object": True, "janus": None, "view": 0.5}, {"object": False, "janus": None, "view": 1.0}]
    result = summary(rows)
    assert result["object"]["mean"] == 0.5 and result["object"]["count"] == 2
    assert result["object"]["low"] < 0.1 and result["object"]["high"] > 0.9
    assert "janus" not in result and result["view"]["mean"] == 0.75


def test_diversity_is_over_the_seeds_of_one_prompt() -> None:
    a, b = torch.eye(2)
    assert diversity([a, b], ["one", "two"]) == {}
    spread = diversity([a, b, a, a], ["one", "one", "two", "two"])
    assert spread["diversity"]["mean"] == pytest.approx(0.5)
    assert spread["vendi_score"]["mean"] == pytest.approx(1.5)
    assert spread["diversity"]["low"] <= 0.5 <= spread["diversity"]["high"]  # over two prompts


def test_the_interval_of_diversity_holds_the_true_one_as_often_as_it_says() -> None:
    """Features about a mean: the cosine distance of two is known from very many."""
    center = torch.tensor([2.0, 0.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> list[torch.Tensor]:
        return list(center + torch.randn(count, 4, generator=generator))

    true = metrics.pairwise_distance(torch.stack(drawn(3000)))
    inside = 0
    for _ in range(60):
        found = diversity(drawn(8), ["one"] * 8)["diversity"]
        inside += found["low"] <= true <= found["high"]
    assert inside >= 50


def test_a_group_has_the_figures_of_all_its_runs_with_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(6, 5, 8, generator=generator), dim=-1)
    group = Group([{"clip_score": 1.0}] * 6, ["one"] * 3 + ["two"] * 3, list(unit), list(unit.flip(0)))
    found = group.summary()
    for name in SPREADS:
        assert found[name]["low"] <= found[name]["mean"] <= found[name]["high"]
        assert found[name]["low"] < found[name]["high"]
    assert found["frechet_to_teacher"]["mean"] == pytest.approx(0.0, abs=1e-6)  # the same views in all
    apart = frechet(list(unit), [x + 1.0 for x in unit])
    assert apart["mean"] == pytest.approx(8.0, rel=1e-4) and apart["count"] == 6
    group.samples.pop()
    assert "frechet_to_teacher" not in group.summary()


def test_runs_of_one_method_are_parted_by_the_settings_in_which_they_differ() -> None:
    plain = resolve({"prompt": "a red dog"})
    other = resolve({"prompt": "a blue dog", "seed": 3}, None, ["report.size=64"])
    strong = resolve({"prompt": "a red dog"}, None, ["guidance.scale=30"])
    sds = resolve({"method": "sds"})
    names = group_names([plain, other, strong, sds])
    assert names[0] == names[1] != names[2] and names[3] == f"{DEFAULT} sds"
    assert names[2].startswith(f"{DEFAULT} sdi ") and names[2].endswith("=30.0")
    assert group_names([plain, other]) == [f"{DEFAULT} sdi"] * 2
