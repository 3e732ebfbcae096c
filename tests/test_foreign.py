"""A file of each named convention stands upright and faces front in the verbs that open it."""

import pytest
import torch
from test_formats_conventions import figure

from splatdistill import export, formats, view
from splatdistill.formats.conventions import CONVENTIONS
from splatdistill.formats.ply import write_ply

STANDING = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0]])  # the middle, the top, the front


@pytest.fixture(params=CONVENTIONS)
def theirs(request, tmp_path):
    """Write a small file in a program's axes; return its path and the program's name."""
    write_ply(tmp_path / "theirs.ply", figure(request.param))
    return tmp_path / "theirs.ply", request.param


def test_it_stands_in_the_viewer(theirs):
    scenes, _, _ = view.open_scenes(theirs[0], None, theirs[1])
    shown = scenes.get(None)
    assert shown is not None
    assert torch.allclose(shown.gaussians["means"], STANDING, atol=1e-6)


@pytest.mark.parametrize("ending", [".ply", ".glb", ".spz"])
def test_it_stands_in_what_is_exported(theirs, ending):
    ours = theirs[0].with_name(f"ours{ending}")
    assert export.main([str(theirs[0]), str(ours), "--from", theirs[1]]) == 0
    back, _ = formats.read_splat(ours)
    assert torch.allclose(back["means"], STANDING, atol=1e-6)
