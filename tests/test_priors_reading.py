from dataclasses import replace
from pathlib import Path

import pytest

from splatdistill.errors import UserError
from splatdistill.priors.reading import MAX_WORDS, Vocabulary, canonical, singulars

THINGS = (
    "chair",
    "office chair",
    "teapot",
    "table",
    "knife",
    "skull and crossbones",
    "pirate",
    "hook",
    "dog",
)
WORDS = " ".join((*THINGS, "red", "blue", "wooden", "legs", "with", "on top of", "next to", "small"))
VOCABULARY = Vocabulary(
    dict.fromkeys(THINGS, ()),
    {thing: thing for thing in THINGS},
    tuple(sorted(set(WORDS.split()))),
    {"couch": "chair", "corgi": "dog"},
)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("A chair.", "chair"),
        ("a photo of a Jack-o'-lantern", "jack o lantern"),
        ("A DSLR photo of a hamburger.", "hamburger"),
        ("an apple, on the table", "apple on table"),
        ("a high-quality 3D render of the red car!", "red car"),
        ("my grandma's couch", "grandma couch"),
        ("a red chair, front view, white background", "red chair"),
        ("", ""),
    ],
)
def test_canonical_text(said, read):
    assert canonical(said) == read


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("a red chair", "red chair"),
        ("Two red office chairs", "red office chair"),
        ("knives", "knife"),
        ("a teapot on a wooden table", "teapot on top of wooden table"),
        ("a blue chair and a red teapot", "blue chair and red teapot"),
        ("a small teapot beside a dog", "small teapot next to dog"),
        ("skull and crossbones", "skull and crossbones"),
        ("a chair with red and blue legs", "chair with red and blue legs"),
        ("a pirate with a hook", "pirate with hook"),
    ],
)
def test_known_things_are_found(said, read):
    assert VOCABULARY.understand(said)[0] == read


def test_a_near_word_is_taken_and_told_in_one_line():
    text, notes = VOCABULARY.understand("my grandma's couch")
    assert text == "chair"
    assert notes == [
        "'couch' is not a word of this teacher: taking 'chair'; left out, as not known: 'grandma'"
    ]
    text, notes = VOCABULARY.understand("corgis on a couch")
    assert text == "dog on top of chair"
    assert notes == ["'corgis' and 'couch' are not words of this teacher: taking 'dog' and 'chair'"]
    assert VOCABULARY.understand("a red chair")[1] == []


@pytest.mark.parametrize("said", ["", "of the and", "xyzzy", "red"])
def test_nonsense_is_an_error_or_at_least_a_line(said):
    with pytest.raises(UserError, match="names nothing"):
        VOCABULARY.understand(said)
    [line] = VOCABULARY.understand(said, strict=False)[1]
    assert "names nothing" in line and "\n" not in line


def test_a_negative_prompt_needs_no_thing():
    assert VOCABULARY.understand("red", thing=False) == ("red", [])
    text, [line] = VOCABULARY.understand("blurry", thing=False)
    assert not text and line == "'blurry' means nothing to this teacher: left out"


def test_a_relation_that_was_not_learned_gets_a_line():
    some = replace(VOCABULARY, pairs={"on top of": ("table",)})
    assert some.understand("a dog on a table")[1] == []
    [line] = some.understand("a dog beside a table")[1]
    assert line == "this teacher learned no pairs with 'next to'"


def test_words_are_listed_by_category_with_colors_and_pairs():
    names = [f"thing {letter}" for letter in "abcdefgh"]
    things = dict.fromkeys(names, ("odd", "furniture")) | {"car": ()}
    words = Vocabulary(things, {n: n for n in things} | {"auto": "car"}, ("car",), {"couch": "thing a"},
                       {"on top of": ("car",), "and": ()}, ("red",), ("small",))  # fmt: skip
    assert words.listing().splitlines() == [
        f"furniture (8): {', '.join(names)}",
        "other things (1): car",
        "colors: red",
        "sizes: small",
        "pairs: X on top of Y (Y one of car)",
        "pairs: X and Y (any two of the things)",
        "9 things; 1 other names of them and 1 other English words are taken for the nearest",
    ]
    assert words.category("thing a") == "furniture" and words.category("car") == "other things"


def test_numbers_end_in_padding():
    numbers = VOCABULARY.numbers("red flying chair")
    assert numbers[1] == 1 and numbers[3:] == [0] * (MAX_WORDS - 3)
    assert VOCABULARY.numbers("red " * 50)[-1] == 0


def test_singulars():
    assert "berry" in singulars("berries") and "box" in singulars("boxes") and "glass" in singulars("glass")


def test_a_tail_whose_words_are_unknown_goes_with_them():
    assert VOCABULARY.understand("a chair with gargoyles")[0] == "chair"
    assert VOCABULARY.understand("a chair with wooden legs")[0] == "chair with wooden legs"
    assert VOCABULARY.understand("a dog with reds")[0] == "dog with red"


DATA = Path(__file__).parent / "data"
PROMPTS = [line.split("\t") for line in (DATA / "prompts.tsv").read_text("utf-8").splitlines()]


def test_prompts_in_ordinary_english_are_taken_sensibly():
    """The folder holds a real vocabulary, and the rows of its table that these prompts need."""
    words = Vocabulary.load(DATA / "words")
    read = {said: words.understand(said) for said, _ in PROMPTS}
    wrong = {
        said: read[said][0]
        for said, right in PROMPTS
        if not any(r in read[said][0] for r in right.split("|"))
    }
    assert len(PROMPTS) >= 200 and not wrong
    assert all(len(notes) <= 1 for _, notes in read.values())
    taken = [notes[0] for _, notes in read.values() if notes and ": taking '" in notes[0]]
    assert len(taken) > 100


def test_the_names_of_a_prompt_are_right_for_more_than_one_noun():
    words = Vocabulary.load(DATA / "words")
    [asked] = words.asked("A DSLR photo of a wooden chair.")
    assert asked.noun == "chair" and {"chair", "armchair"} <= asked.right and "table" not in asked.right
    assert [thing.noun for thing in words.asked("a kitten on a couch")] == ["cat", "sofa"]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("a gizmo", "gizmo"),
        ("two red Gizmos", "red gizmo"),
        ("a clockwork owl", "clockwork owl"),
        ("a red clockwork owl, side view", "red clockwork owl"),
        ("a robot dog with legs", "robot dog with legs"),
        ("a gizmo dog", "gizmo dog"),
        ("a dog on wheels", "dog on wheels"),
        ("a gizmo on a table", "gizmo on top of table"),
        ("a dog next to a clockwork owl", "dog next to clockwork owl"),
        ("a fancy gizmo", "gizmo"),
    ],
)
def test_taught_phrases_are_kept_whatever_their_words_mean(said, read):
    phrases = ["a gizmo", "a Clockwork owl", "robot dog", "dog on wheels", " ", "gizmo"]
    taught = VOCABULARY.with_taught(phrases)
    assert taught.understand(said)[0] == read == taught.understand(read)[0]  # reading again changes nothing
    assert not any("taking" in line for line in taught.understand(said)[1])


def test_a_taught_phrase_is_no_noun_that_others_have():
    taught = VOCABULARY.with_taught(["a dog", "clockwork dog"])
    [(noun, words)] = taught.scene("dog")[0]
    assert noun not in THINGS and words == [noun]
    things, relation = taught.scene("clockwork dog on top of table")
    assert things[0][0] not in THINGS and things[1][0] == "table" and relation == "on top of"
    assert VOCABULARY.scene("dog")[0] == [("dog", ["dog"])]
    assert taught.numbers("clockwork dog")[:3] == [1, VOCABULARY.known["dog"], 0]
    assert taught.known == VOCABULARY.known  # what is taught has no index of its own
