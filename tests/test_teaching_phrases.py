import numpy as np

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


def test_a_tinted_model_is_never_called_by_its_old_color():
    rng = np.random.default_rng(0)
    said = {phrases.name(CHAIR, "red", "", rng) for _ in range(200)}
    assert said == {"red office chair", "red chair", "red furniture"}
    said = {phrases.name(CHAIR, None, "small", rng) for _ in range(200)}
    assert "small black office chair with wheels" in said and "small office chair" in said


def test_vocabulary_has_every_word_that_a_caption_can_say():
    words = set(phrases.vocabulary([CHAIR], ["red"]))
    assert {*SAID} == words


def test_names_lead_to_their_nouns_and_a_noun_to_itself():
    seat = Entry("s", "s.glb", "chair", ("seat",), (), 0.0, False, True, 0)
    told = phrases.describe_vocabulary([CHAIR, seat])
    assert told["things"] == {"office chair": ["chair", "furniture"], "chair": ["seat"]}
    assert told["names"]["chair"] == "chair" and told["names"]["furniture"] == "office chair"
