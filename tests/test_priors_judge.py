import json

import pytest
import torch
from safetensors.torch import save_file

from splatdistill.errors import UserError
from splatdistill.priors.judge import SIDE, TOLD, WEIGHTS, Classifier, Judge, Verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a judge of random weights that knows two nouns."""
    path = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    save_file({name: value.half() for name, value in Classifier(3).state_dict().items()}, path / WEIGHTS)
    (path / TOLD).write_text(json.dumps({"nouns": ["car", "dog"], "temperature": 0.5}))
    return path


def test_probabilities_are_of_all_nouns_and_of_none(folder):
    judge, views = Judge.load(folder), torch.rand(2, 3, SIDE, SIDE)
    found = judge.probabilities(views)
    assert found.shape == (3,) and float(found.sum()) == pytest.approx(1.0)
    said = judge.verdict(views)
    assert set(said.nouns) == {"car", "dog"} and said.probabilities[0] >= said.probabilities[1]


def test_the_views_of_a_thing_count_together(folder):
    judge, views = Judge.load(folder), torch.rand(3, 3, SIDE, SIDE)
    logits = torch.stack([judge.network(view[None])[0].log_softmax(0) for view in views])
    assert torch.allclose(judge.probabilities(views), (logits.mean(0) / 0.5).softmax(0), atol=1e-5)


def test_the_place_of_a_noun():
    said = Verdict(("car", "dog"), (0.7, 0.2), False)
    assert said.place({"dog", "cat"}) == 1 and said.place({"cat"}) is None


def test_strides_pad_at_the_end_first():
    network = Classifier(2)
    assert network.features(torch.rand(1, 3, SIDE, SIDE)).shape == (1, 1280)
    stem = network.stem[0]
    assert stem.padding == (0, 1, 0, 1)


def test_a_broken_folder_is_one_line(folder, tmp_path):
    (tmp_path / TOLD).write_text("{")
    with pytest.raises(UserError) as caught:
        Judge.load(tmp_path)
    assert "\n" not in str(caught.value)
