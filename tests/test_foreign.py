"""A file of each named convention stands upright and faces front in the verbs that open it."""

import pytest
import torch
from test_formats_conventions import figure, stored

from splatdistill import edit, export, formats, refine, view
from splatdistill.formats.conventions import CONVENTIONS
from splatdistill.training.inputs import read_start
from splatdistill.training.progress import RunResult

STANDING = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0]])  # the middle, the top, the front


@pytest.fixture(
    params=[*((name, ".ply") for name in CONVENTIONS), *(("sam3d", e) for e in (".splat", ".spz", ".glb"))]
)
def theirs(request, tmp_path):
    """Write a small file in a program's axes; return its path and the program's name."""
    (name, ending), path = request.param, tmp_path / f"theirs{request.param[1]}"
    formats.FORMATS[ending].write(path, stored(figure(name), ending), None)
    return path, name


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


@pytest.mark.parametrize("verb", [edit, refine])
def test_it_stands_in_what_is_edited_and_refined(theirs, verb, monkeypatch):
    begun = []

    def make(config, out, args):
        begun.append(config)
        return RunResult(out, 1, 1, 3, 0.0)

    monkeypatch.setattr("splatdistill.cli.make", make)
    prompts = {
        edit: ["--source-prompt", "a dog", "--target-prompt", "a red dog"],
        refine: ["--prompt", "a dog"],
    }
    assert verb.main(["--splat", str(theirs[0]), "--from", theirs[1], *prompts[verb]]) == 0
    start = read_start(begun[0].edit.splat, begun[0].edit.program, begun[0].edit.up)
    assert torch.allclose(start["means"], STANDING, atol=1e-6)
