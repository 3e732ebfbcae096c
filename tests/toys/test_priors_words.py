"""Words, captions and scenes of the shipped teacher."""

import numpy as np
import pytest

from splatdistill.errors import UserError
from splatdistill.ops import native
from splatdistill.priors import words as grammar
from splatdistill.teaching import scenes


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_at_least_24_objects_and_all_have_a_usual_color() -> None:
    assert len(grammar.OBJECTS) >= 24
    assert set(grammar.USUAL_COLOR) == set(grammar.THINGS)
    assert set(grammar.USUAL_COLOR.values()) <= set(grammar.COLORS)


def test_every_caption_uses_known_words_only() -> None:
    for seed in range(40):
        things = scenes.sample_structure(rng(seed))
        batch = scenes.build(things, 8, rng(seed))
        cameras = scenes.sample_cameras(8, 16, rng(seed))
        for caption in scenes.captions(batch, cameras, ["white"] * 4 + ["gray", "black"] * 2, rng(seed)):
            assert set(grammar.words(caption)) <= grammar.vocabulary()


def test_captions_name_what_is_seen() -> None:
    batch = scenes.build(("car", "cube"), 64, rng())
    cameras = scenes.sample_cameras(64, 16, rng())
    captions = scenes.captions(batch, cameras, ["gray"] * 64, rng())
    full = [(c, row) for c, row in zip(captions, batch.colors, strict=True) if "on top of" in c]
    assert 45 <= len(full) < 64  # the others are empty or name the background alone
    for caption, (upper, lower) in full:
        first, second = caption.split(" on top of ")
        assert first.endswith("car") and caption.endswith("gray background")
        assert (upper is None) or upper in first.split()
        assert (lower is None) or lower in second.split()


def test_stacked_things_stand_on_their_support() -> None:
    batch = scenes.build(("sphere", "cube"), 4, rng())
    affine = batch.table[:, :, 2:14].reshape(4, 2, 3, 4).astype(float)
    centers = -np.einsum("nkij,nkj->nki", np.linalg.inv(affine[..., :3]), affine[..., 3])
    half = 1 / np.abs(affine[:, :, 2, 2])  # both are upright and unturned
    gap = (centers[:, 0, 2] - half[:, 0]) - (centers[:, 1, 2] + half[:, 1])
    assert np.abs(gap).max() < 1e-4


@pytest.mark.parametrize(
    "text",
    ["a red mushroom", "A Red MUSHROOM.", "an orange teddy bear, front view", "a photo of a christmas tree"],
)
def test_known_words_pass_in_any_case_and_with_punctuation(text: str) -> None:
    assert grammar.check_prompt(text) == []


def test_unknown_words_are_named_with_the_nearest_known_ones() -> None:
    with pytest.raises(UserError) as error:
        grammar.check_prompt("a red dragon on a snowmn")
    message = str(error.value)
    assert '"dragon"' in message and '"snowmn" (nearest known: snowman)' in message
    assert "--prior sd21" in message and "--list-words" in message and "\n" not in message


def test_a_prompt_that_would_not_leave_room_for_the_view_is_refused() -> None:
    assert grammar.check_prompt("a small red ice cream cone on top of a big blue teddy bear") == []
    with pytest.raises(UserError, match="at most 16"):
        grammar.check_prompt("a red car on top of a blue cube on top of a green cube and a ball")


def test_unknown_words_can_be_allowed() -> None:
    warnings = grammar.check_prompt("a red dragon", allow_unknown=True)
    assert len(warnings) == 1 and "dragon" in warnings[0]


def test_the_word_list_holds_the_whole_vocabulary() -> None:
    assert grammar.vocabulary() <= set(grammar.words(grammar.word_list().replace("(", " ").replace(")", " ")))


@pytest.mark.skipif(not native.available(), reason="needs the native extension")
def test_pictures_depend_on_the_seed_alone() -> None:
    first, again = list(scenes.groups(3, 64, 16)), list(scenes.groups(3, 64, 16))
    assert all(
        (a.images == b.images).all() and a.captions == b.captions for a, b in zip(first, again, strict=True)
    )
    other = next(scenes.groups(4, 32, 16))
    assert other.captions != first[0].captions


def test_given_colors_change_nothing_but_colors() -> None:
    drawn = scenes.build(("car", "cube"), 4, rng(), 1.0)
    given = scenes.build(("car", "cube"), 4, rng(), 1.0, ("red", "blue"))
    assert given.colors == [("red", "blue")] * 4 and given.sizes == drawn.sizes
    assert (given.table[..., :14] == drawn.table[..., :14]).all()
    assert (given.table[..., 14:] != drawn.table[..., 14:]).any()
