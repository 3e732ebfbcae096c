"""Suites of prompts, those of papers among them."""

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.measure import metrics, suites
from splatdistill.measure.suites import PUBLISHED, SUITES, make_runs, published
from splatdistill.priors.loading import ASSETS


def test_published_suites_have_as_many_prompts_as_their_papers_say() -> None:
    counts = {
        "sdi43": 43,
        "t3bench": 300,
        "t3bench-single": 100,
        "t3bench-surroundings": 100,
        "t3bench-multi": 100,
    }
    assert {name: len(SUITES[name]()) for name in PUBLISHED} == counts
    assert len(set(published("t3bench"))) == 300
    assert published("sdi43")[0] == "A car made out of sushi"


def test_every_list_says_where_it_is_from() -> None:
    for path in (ASSETS / "suites").glob("*.txt"):
        assert path.read_text("utf-8").startswith("# ")


def test_a_teacher_with_a_vocabulary_takes_the_nearest_words_of_a_published_prompt(
    views, tmp_path, monkeypatch
) -> None:
    made = []
    monkeypatch.setattr(suites, "check", lambda spec: None)
    monkeypatch.setattr(suites, "make", lambda specs, jobs: made.extend(specs) or [])
    prompts = ["A delicious croissant", "A DSLR photo of Cthulhu"]
    make_runs(prompts, tmp_path, ["sdi"], [str(views)], [0], allow_unknown=True)
    assert [spec.config.prompt for spec in made] == prompts
    with pytest.raises(UserError, match="Cthulhu"):
        make_runs(["A DSLR photo of Cthulhu"], tmp_path, ["sdi"], [str(views)], [0])


def test_clip_iqa_is_the_softmax_of_two_texts() -> None:
    images = torch.nn.functional.normalize(
        torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    good, bad = torch.nn.functional.normalize(
        torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    found = metrics.antonym_score(images, good, bad)
    torch.testing.assert_close(found, torch.sigmoid(100 * (images @ good - images @ bad)))


def test_the_likeness_to_the_front_is_that_of_the_views_behind() -> None:
    azimuths = torch.tensor([0.0, 90.0, 180.0, 270.0])
    front, side, back = torch.eye(3)
    assert metrics.likeness_to_front(torch.stack([front, side, back, side]), azimuths) == 0.0
    assert metrics.likeness_to_front(torch.stack([front, side, front, side]), azimuths) == 1.0
