"""What can be done to the scene that the page shows, and undone."""

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.formats.ply import write_ply
from splatdistill.scene.gaussians import init_blob
from splatdistill.training.monitor import Session
from splatdistill.viewer import desk as module
from splatdistill.viewer.desk import Desk
from splatdistill.viewer.scenes import Scenes


def scene(count: int = 10):
    return init_blob(count, sh_degree=1, generator=torch.Generator().manual_seed(count))


@pytest.fixture
def desk(tmp_path):
    write_ply(tmp_path / "it.ply", scene(), {"prompt": "a ball"})
    scenes = Scenes(Session.showing(scene(), 0, 0), {"prompt": "a ball"}, tmp_path / "it.ply")
    return Desk(scenes, "a ball")


def rows(*chosen: int, count: int = 10):
    return torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(chosen, dtype=torch.long), True)


def count(desk: Desk) -> int:
    assert desk.scene is not None
    return len(desk.scene.gaussians["means"])


def test_choosing_replaces_adds_and_takes_away(desk):
    for how, said, expected in (
        ("replace", (1, 2), [1, 2]),
        ("add", (5,), [1, 2, 5]),
        ("remove", (2, 7), [1, 5]),
        ("replace", (9,), [9]),
    ):
        desk.choose(rows(*said), how)
        assert desk.chosen.nonzero()[:, 0].tolist() == expected
    desk.invert()
    assert desk.chosen.sum() == 9
    desk.choose(rows(*range(10)), "remove")
    assert desk.chosen is None


def test_a_choice_of_another_scenes_rows_is_dropped(desk):
    desk.choose(rows(1, count=11), "replace")
    assert desk.chosen is None


def test_what_is_chosen_is_shown_in_another_color_and_stays_the_same_object(desk):
    assert desk.marked() is desk.scene
    desk.choose(rows(3), "replace")
    marked, own = desk.marked(), desk.scene.gaussians
    assert marked is desk.marked() and marked is not desk.scene
    changed = (marked.gaussians["sh0"] != own["sh0"]).flatten(1).any(1)
    assert changed.tolist() == rows(3).tolist()
    desk.clear()
    assert desk.marked() is desk.scene


@pytest.mark.parametrize("others, left", [(False, 8), (True, 2)])
def test_deleting_and_undoing_gives_every_byte_back(desk, others, left):
    before = {name: value.clone() for name, value in desk.scene.gaussians.items()}
    export = desk._scenes.export(None, ".ply")
    desk.choose(rows(0, 4), "replace")
    assert desk.delete(others=others) == 10 - left and count(desk) == left
    assert desk.chosen is None and desk.undoes == ("crop" if others else "delete")
    assert desk._scenes.export(None, ".ply") != export
    desk.undo()
    assert all(torch.equal(desk.scene.gaussians[name], value) for name, value in before.items())
    assert desk._scenes.export(None, ".ply") == export and desk.before is None


def test_nothing_is_never_left(desk):
    with pytest.raises(UserError, match="nothing is picked"):
        desk.delete()
    desk.choose(rows(*range(10)), "replace")
    with pytest.raises(UserError, match="no Gaussian would be left"):
        desk.delete()
    with pytest.raises(UserError, match="nothing to undo"):
        desk.undo()
    assert count(desk) == 10


def test_a_file_is_opened_and_undo_brings_the_old_one_back(desk, tmp_path):
    write_ply(tmp_path / "other.ply", scene(7), {"prompt": "a box"})
    desk.open(tmp_path / "other.ply", "other.ply", lambda line: None)
    assert (count(desk), desk.title, desk._scenes.comments["prompt"]) == (7, "a box", "a box")
    (tmp_path / "bad.ply").write_bytes(b"ply\nnothing")
    with pytest.raises(UserError):
        desk.open(tmp_path / "bad.ply", "bad.ply", lambda line: None)
    assert count(desk) == 7 and desk.files == 1
    desk.undo()
    assert (count(desk), desk.title, desk.files) == (10, "a ball", 0)


def test_the_history_is_bounded_by_steps_and_by_bytes(desk, monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    for _ in range(5):
        desk.replace(scene(), "refine")
    assert len(desk._history) == 3
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    desk.replace(scene(), "refine")
    assert len(desk._history) == 1  # the last step can be undone in any case
