import numpy as np
import pytest

from splatdistill.teaching import phrases
from splatdistill.teaching.assets import Entry

CHAIR = Entry(
    "c",
    "c.glb",
    "office chair",
    ("chair", "furniture"),
    ("a black office chair with wheels",),
    0.0,
    False,
    True,
    0,
)

SAID = (
    "small", "big", "on", "top", "of", "next", "to", "and", "red", "black", "office", "chair", "with",
    "wheels", "furniture",
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("A chair.", "chair"),
        ("a photo of a Jack-o'-lantern", "jack o lantern"),
        ("A DSLR photo of a hamburger.", "hamburger"),
        ("an apple, on the table", "apple on table"),
        ("a high-quality 3D render of the red car!", "red car"),
        ("my grandma's couch", "my grandma couch"),
        ("", ""),
    ],
)
def test_canonical_text(said, read):
    assert phrases.canonical(said) == read


def test_a_tinted_model_is_never_called_by_its_old_color():
    rng = np.random.default_rng(0)
    said = {phrases.name(CHAIR, "red", "", rng) for _ in range(200)}
    assert said == {"red office chair", "red chair", "red furniture"}
    said = {phrases.name(CHAIR, None, "small", rng) for _ in range(200)}
    assert "small black office chair with wheels" in said and "small office chair" in said


def test_read_words_ends_in_padding():
    known = {"red": 2, "car": 3}
    numbers = phrases.read_words("red flying car", known)
    assert numbers[:4] == [2, 1, 3, 0] and len(numbers) == phrases.MAX_WORDS
    assert phrases.read_words("red " * 50, known)[-1] == 0


def test_vocabulary_has_every_word_that_a_caption_can_say():
    words = set(phrases.vocabulary([CHAIR], ["red"]))
    assert {*SAID} == words
