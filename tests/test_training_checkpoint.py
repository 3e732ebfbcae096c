import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.folder import checkpoint_name
from splatdistill.scene.gaussians import activated, init_blob
from splatdistill.training import checkpoint


def small(step):
    return {"step": step, "values": torch.full((50,), float(step)), "config": {"prompt": "a red mushroom"}}


def test_gaussians_optimizers_and_rng_round_trip(tmp_path):
    scene = init_blob(10)
    optimizer = torch.optim.Adam([scene["means"]], lr=1e-2)
    activated(scene).means.square().sum().backward()
    optimizer.step()
    state = {
        "step": 3,
        "gaussians": scene.state_dict(),
        "optimizers": {"means": optimizer.state_dict()},
        "rng": {"torch": torch.get_rng_state()},
        "densifier": {"count": torch.ones(10)},
        "config": {"prompt": "é 🍄", "lr": 1e-2, "range": (1, 2), "none": None},
    }
    checkpoint.save(tmp_path / "step-00000003.pt", state)
    back = checkpoint.load(tmp_path / "step-00000003.pt")
    assert back.pop("config") == state.pop("config")
    torch.testing.assert_close(back, state, rtol=0, atol=0)
    other = torch.optim.Adam([torch.nn.Parameter(torch.zeros(10, 3))])
    other.load_state_dict(back["optimizers"]["means"])
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_the_last_two_are_kept_in_numeric_order(tmp_path):
    (tmp_path / "step-final.pt").write_bytes(b"not ours")
    for step in (5, 40, 300, 99999999, 100000000):
        checkpoint.save(tmp_path / checkpoint_name(step), small(step))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-100000000.pt", "step-99999999.pt", "step-final.pt"]
    assert checkpoint.latest(tmp_path)["step"] == 100000000


def test_a_save_replaces_what_came_later_and_keeps_the_one_before(tmp_path):
    for step in (1, 2, 3, 9):
        checkpoint.save(tmp_path / checkpoint_name(step), small(step))
    checkpoint.save(tmp_path / checkpoint_name(4), small(4))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"step-0000000{k}.pt" for k in (3, 4)]


def test_any_damage_falls_back_to_the_one_before(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / checkpoint_name(step), small(step))
    path = tmp_path / checkpoint_name(2)
    whole = path.read_bytes()
    payload = whole.index(
        torch.full((50,), 2.0).numpy().tobytes()
    )  # a flip here changes values, not structure
    flipped = bytearray(whole)
    flipped[payload + 9] ^= 1
    damaged = [flipped, b"", b"garbage", *(whole[: len(whole) * k // 7] for k in range(1, 7))]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError, match="checkpoint"):
            checkpoint.load(path)
        assert checkpoint.latest(tmp_path)["step"] == 1


def test_nothing_to_resume_is_a_user_error(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="found none"):
            checkpoint.latest(directory)
    (tmp_path / checkpoint_name(1)).write_bytes(b"x")
    with pytest.raises(UserError, match="1 damaged"):
        checkpoint.latest(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path / "no.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"x": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError):
        checkpoint.load(tmp_path / "step-00000001.pt")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from splatdistill.folder import checkpoint_name
from splatdistill.training import checkpoint
moment, directory = sys.argv[1], Path(sys.argv[2])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
for step in range(1, 5):
    if step == 4:
        if moment == "writing":
            os.fsync = die
        elif moment == "renaming":
            os.replace = die
        elif moment == "deleting":
            checkpoint.Path.unlink = die
    checkpoint.save(directory / checkpoint_name(step), {"step": step, "x": torch.ones(1000)})
"""


@pytest.mark.parametrize("moment, step", [("writing", 3), ("renaming", 3), ("deleting", 4)])
def test_kill_at_any_moment_of_a_save_leaves_a_loadable_run(tmp_path, forks, moment, step):
    assert forks.run(KILLED, moment, str(tmp_path)).returncode == -9
    assert checkpoint.latest(tmp_path)["step"] == step
    checkpoint.save(tmp_path / checkpoint_name(4), small(4))  # the resumed run clears up after the killed one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.pt", "step-00000004.pt"]
