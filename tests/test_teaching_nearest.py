from pathlib import Path

import numpy as np
import pytest

from splatdistill.teaching.nearest import WordNet, corrected, nearest_names

# number, words, kinds: a tree of WordNet's form, with "object" at its top
TREE = (
    (1, ("entity",), ()),
    (2, ("object",), (1,)),
    (3, ("substance",), (1,)),
    (4, ("food",), (3,)),
    (5, ("body_of_water",), (2,)),
    (6, ("living_thing",), (2,)),
    (7, ("imaginary_being",), (1,)),
    (10, ("animal", "beast"), (6,)),
    (11, ("dog", "hound"), (10,)),
    (12, ("corgi",), (11,)),
    (13, ("cat",), (10,)),
    (20, ("furniture",), (2,)),
    (21, ("sofa", "couch"), (20,)),
    (30, ("idea",), (1,)),
    (31, ("Rover",), (11,)),
    (32, ("mutt",), (11,)),
    (40, ("person",), (6,)),
    (41, ("speaker",), (40,)),
    (42, ("speaker", "loudspeaker"), (20,)),
    (43, ("poet",), (40,)),
    (44, ("woofer",), (42,)),
    (45, ("man",), (40,)),
    (46, ("scholar",), (40,)),
    (47, ("botanist",), (46,)),
)
ANIMAL, THING, PERSON = 5, 6, 18  # fields of WordNet
FIELDS = {
    **dict.fromkeys((10, 11, 12, 13, 31, 32), ANIMAL),
    **dict.fromkeys((40, 41, 43, 45, 46, 47), PERSON),
}


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    data, senses = ["  a licence"], {}
    for number, words, kinds in TREE:
        pointers = " ".join(f"@ {kind:08d} n 0000" for kind in kinds)
        fields = f"{number:08d} {FIELDS.get(number, THING):02d} n {len(words):02x} " + " ".join(
            f"{w} 0" for w in words
        )
        data.append(
            f"{fields} {len(kinds):03d} {pointers} | a gloss; with | signs" + " (offensive)" * (number == 32)
        )
        for word in words:
            senses.setdefault(word.lower(), []).append(number)
    index = [
        f"{word} n {len(numbers)} 1 @ {len(numbers)} 0 " + " ".join(f"{n:08d}" for n in numbers) + "  "
        for word, numbers in sorted(senses.items())
    ]
    (tmp_path / "data.noun").write_text("\n".join(data) + "\n")
    (tmp_path / "index.noun").write_text("\n".join(["  a licence", *index]) + "\n")
    return WordNet.load(tmp_path)


def test_what_can_be_seen_is_known_by_its_kind(wordnet):
    words = wordnet.visible_words()
    assert {"corgi", "couch", "animal"} <= set(words)
    assert not {"idea", "entity", "Rover"} & set(words)


def test_words_are_taken_for_the_nearest_name(wordnet):
    names = {"dog": "dog", "cat": "cat", "sofa": "sofa"}
    table = nearest_names(wordnet, names, ["corgi", "couch", "idea", "dog", "hound", "nonsense"])
    assert table == {"corgi": "dog", "couch": "sofa", "hound": "dog"}


def test_a_second_sense_counts_less(wordnet):
    twice = WordNet(wordnet.synsets, {**wordnet.senses, "seat": (13, 21)})
    table = nearest_names(twice, {"cat": "cat", "sofa": "sofa"}, ["seat"])
    assert table == {"seat": "cat"}


def test_a_name_means_what_its_classes_say(wordnet):
    names, classes = {"speaker": "speaker", "dog": "dog"}, {"speaker": ("furniture",)}
    table = nearest_names(wordnet, names, ["poet", "woofer"], classes=classes)
    assert table == {"woofer": "speaker"}
    table = nearest_names(wordnet, names, ["poet", "woofer"], classes={"speaker": ("person",)})
    assert table == {"poet": "speaker"}


def test_people_whom_nothing_is_near_are_somebody(wordnet):
    names = {"man": "man", "scholar": "scholar", "speaker": "speaker"}
    classes = dict.fromkeys(names, ("person",))
    words = ["botanist", "poet"]
    assert nearest_names(wordnet, names, words, None, classes)["botanist"] == "scholar"

    def unlike(words):  # no word is like any name: what WordNet says is halved
        return np.tile([1.0, 0.0] if "poet" in words else [0.0, 1.0], (len(words), 1))

    assert nearest_names(wordnet, names, words, unlike, classes) == {"botanist": "man", "poet": "man"}


def test_offensive_words_and_words_that_first_mean_nothing_visible_are_left_out(wordnet):
    twice = WordNet(wordnet.synsets, {**wordnet.senses, "state": (30, 13)})
    assert nearest_names(twice, {"dog": "dog", "cat": "cat"}, ["mutt", "state", "corgi"]) == {"corgi": "dog"}
    assert "mutt" not in wordnet.visible_words()


def test_corrections_name_only_what_the_teacher_has():
    table = corrected({"rose": "yucca", "three": "card"}, {"flower": "flower", "horse": "horse"})
    assert table["rose"] == "flower" and table["unicorn"] == "horse"
    assert "three" not in table and "violin" not in table
