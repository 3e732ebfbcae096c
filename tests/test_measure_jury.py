import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from splatdistill.measure.jury import NONE, Jury, confusions
from splatdistill.measure.truth import Truth
from splatdistill.priors.judge import FOLDER, TOLD, TRUTH, WEIGHTS, Classifier, Judge, Verdict
from splatdistill.priors.reading import Vocabulary
from splatdistill.scene.likeness import Look

THINGS = {"car": ("auto", "vehicle"), "sports car": ("car", "vehicle"), "dog": ("animal",)}
NAMES = {name: noun for noun, said in THINGS.items() for name in said} | {noun: noun for noun in THINGS}
WORDS = ("car", "auto", "sports", "dog", "vehicle", "animal", "on", "top", "of", "red")
VOCABULARY = Vocabulary(THINGS, NAMES | {"car": "car"}, WORDS, {"sedan": "car"}, colors=("red",))
VIEWS, SIZE = 12, 64


def block(width: int, color: float = 0.2):
    """Return views of a block on white, and their coverage."""
    alpha = torch.zeros(VIEWS, 1, SIZE, SIZE)
    alpha[:, :, 16:48, 32 - width : 32 + width] = 1
    return (1 - alpha * (1 - color)).expand(-1, 3, -1, -1), alpha


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Return a folder with a vocabulary, a judge of random weights, and true models of two nouns."""
    path = tmp_path_factory.mktemp("teacher")
    told = {"things": THINGS, "names": VOCABULARY.names, "words": WORDS, "colors": ["red"]}
    (path / "vocabulary.json").write_text(json.dumps(told))
    (path / "nearest.tsv").write_text("sedan\tcar\n")
    folder = path / FOLDER
    folder.mkdir()
    save_file({name: value.half() for name, value in Classifier(4).state_dict().items()}, folder / WEIGHTS)
    (folder / TOLD).write_text(json.dumps({"nouns": sorted(THINGS), "temperature": 1.0}))
    looks = [Look.of(*block(width)) for width in (6, 10, 16)]
    np.savez_compressed(
        folder / TRUTH,
        shapes=np.stack([np.packbits(look.shapes.numpy(), axis=-1) for look in looks]),
        colors=np.stack([(look.colors * 255).round().byte().numpy() for look in looks]),
        nouns=np.array(["car", "car", "dog"]),
        names=np.array(["car", "dog"]),
        usual=np.array([[0.6, 0.1, 0.0, 0.02], [np.nan, np.nan, 0.0, 0.0]]),
    )
    return path


def test_a_thing_is_compared_with_the_nearest_true_model(teacher):
    truth = Truth.load(teacher / FOLDER)
    found = truth.compare("car", *block(10))
    assert found["iou"] > 0.95 and found["iou_share"] == pytest.approx(found["iou"] / 0.6)
    assert found["color_distance"] < 0.01 and found["color_share"] == 1.0 and found["second_front"] is None
    wrong = truth.compare("dog", *block(4, color=0.9))
    assert wrong["iou"] < 0.5 and wrong["iou_share"] == pytest.approx(wrong["iou"] / 0.6)  # dog has one model
    assert wrong["color_share"] < 0.5
    with pytest.raises(KeyError):
        truth.compare("cat", *block(4))


def jury_that_says(teacher, *nouns, none=False):
    jury = Jury.of(str(teacher))
    assert jury is not None
    said = Verdict(nouns, tuple(1.0 / len(nouns) for _ in nouns), none)
    judge = Judge(Classifier(4), {"nouns": sorted(THINGS)})
    judge.verdict = lambda views, few=5: said
    return Jury(judge, jury.vocabulary, jury.truth)


@pytest.mark.parametrize(
    ("prompt", "said", "first", "among"),
    [
        ("a car", ("car", "dog"), True, True),
        ("a sedan", ("sports car", "dog"), True, True),  # a sports car is a car
        ("an auto", ("dog", "car"), False, True),
        ("a sports car", ("car", "dog"), True, True),  # its class
        ("a vehicle", ("sports car", "dog"), True, True),
        ("a dog", ("car", "sports car"), False, False),
        ("a dog on top of a car", ("car", "dog"), False, True),  # nowhere the first
        ("a dog on top of a car", ("car", "sports car"), False, False),
    ],
)
def test_other_names_and_classes_of_a_noun_are_right(teacher, prompt, said, first, among):
    row = jury_that_says(teacher, *said).verdict(prompt, *block(10))
    assert (row["object"], row["object_first_five"]) == (first, among)


def test_two_things_are_named_each_in_its_part(teacher):
    jury = jury_that_says(teacher, "car")
    dog, car = (Verdict((noun,), (1.0,), False) for noun in ("dog", "car"))
    rgb, alpha = block(10)
    rgb = rgb.clone()
    rgb[:, :, 32:48] += 0.5 * alpha[:, :, 32:48]  # the lower half is brighter
    jury.judge.verdict = lambda views, few=5: dog if views.min() < 0.4 else car  # pyright: ignore
    row = jury.verdict("a dog on top of a car", rgb, alpha)
    assert row["object"] and set(row["called"]) == {"dog", "car"}
    assert not jury.verdict("a dog on top of a car", *block(10))["object"]


def test_what_shows_nothing_is_not_named(teacher):
    row = jury_that_says(teacher, "car", "dog", none=True).verdict("a car", *block(10))
    assert row["nothing"] and not row["object"] and row["called"] == [NONE]


def test_a_color_of_the_prompt_is_not_compared_with_the_models(teacher):
    jury = jury_that_says(teacher, "car", "dog")
    assert jury.verdict("a red car", *block(10))["color_share"] is None
    assert jury.verdict("a car", *block(10))["color_share"] is not None
    assert "iou" not in jury.verdict("a dog on top of a car", *block(10))
    assert jury.verdict("qwrtz", *block(10)) == {}


def test_confusions_count_the_commonest_first():
    rows = [{"asked": ["car"], "called": ["dog"]}, {"asked": ["dog"], "called": ["dog"]}]
    rows += [{"asked": ["car"], "called": ["dog"]}, {}]
    assert confusions(rows) == "asked\tcalled\tcount\ncar\tdog\t2\ndog\tdog\t1\n"


def test_a_folder_without_a_judge_has_no_jury(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"things": {}, "names": {}, "words": []}))
    assert Jury.of(str(tmp_path)) is None
