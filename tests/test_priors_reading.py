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


def test_a_near_word_is_taken_and_told():
    text, notes = VOCABULARY.understand("my grandma's couch")
    assert text == "chair"
    assert "'couch' is not a word of this teacher: taking 'chair'" in notes
    assert "'grandma' is not a word of this teacher: left out" in notes
    assert VOCABULARY.understand("corgis on a table")[0] == "dog on top of table"


@pytest.mark.parametrize("said", ["", "of the and", "xyzzy", "red"])
def test_nonsense_is_an_error(said):
    with pytest.raises(UserError, match="names nothing"):
        VOCABULARY.understand(said)


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
