"""The command that shows what is finished."""

import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

from splatdistill.formats import FORMATS, write_splat
from splatdistill.formats.mesh import write_mesh
from splatdistill.formats.ply import write_ply
from splatdistill.scene.gaussians import init_blob
from splatdistill.view import main, open_scenes


def scene():
    return init_blob(5, generator=torch.Generator().manual_seed(0))


def test_it_serves_a_file_until_it_is_interrupted(tmp_path):
    write_ply(tmp_path / "ball.ply", scene())
    command = [sys.executable, "-m", "splatdistill.view", str(tmp_path / "ball.ply"), "--viewer", "0"]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("viewer: "))
    with urlopen(line.split()[1], timeout=60) as reply:
        assert b"<html" in reply.read().lower()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and "Traceback" not in err


def test_a_run_is_named_by_its_prompt_and_a_file_by_its_name(tmp_path):
    write_ply(tmp_path / "splat.ply", scene(), {"prompt": "a ball", "method": "sds"})
    scenes, prompt, method = open_scenes(tmp_path)
    assert (prompt, method) == ("a ball", "sds") and scenes.folder == tmp_path
    write_splat(tmp_path / "it.splat", scene())
    scenes, prompt, method = open_scenes(tmp_path / "it.splat")
    assert (prompt, method) == ("it.splat", ".splat") and scenes.folder is None


@pytest.mark.parametrize("ending", FORMATS)
def test_it_opens_every_format_that_export_writes(tmp_path, ending):
    write_splat(tmp_path / f"it{ending}", scene())
    snapshot = open_scenes(tmp_path / f"it{ending}")[0].session.snapshot
    assert snapshot is not None and len(snapshot.gaussians["means"]) == 5


def test_it_opens_the_meshes_that_export_writes(tmp_path):
    pytest.importorskip("fast_simplification")
    blob = init_blob(300, 0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))
    for ending in (".obj", ".glb"):
        write_mesh(tmp_path / f"it{ending}", blob, None, 16, 500)
        scenes, prompt, method = open_scenes(tmp_path / f"it{ending}")
        assert scenes.session.snapshot is not None and (prompt, method) == (f"it{ending}", ending)
        assert scenes.file is None  # what is downloaded is a splat, not the file
        assert b"KHR_gaussian_splatting" in scenes.export(None, ".glb")


def test_a_file_that_lies_on_its_side_is_set_upright(tmp_path):
    write_splat(tmp_path / "it.ply", scene(), up="-y")
    straight, lying = (open_scenes(tmp_path / "it.ply", up)[0].session.snapshot for up in ("-y", None))
    assert straight is not None and lying is not None
    torch.testing.assert_close(straight.gaussians["means"], scene()["means"].detach(), atol=1e-5, rtol=0)
    assert not torch.allclose(lying.gaussians["means"], straight.gaussians["means"], atol=1e-3)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["absent.ply"], "absent.ply"),
        (["."], "no splat.ply"),
        (["absent"], "no file and no run"),
        (["here.obj"], "no triangle"),
        (["here.xyz"], "ending"),
        (["it.ply", "--viewer", "0.0.0.0:1"], "--viewer-remote"),
        (["it.ply", "--viewer", "x"], "[HOST:]PORT"),
        (["it.ply", "--prior", "nothing"], "nothing"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, monkeypatch, capfd, arguments, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("here.obj", "here.xyz", "it.ply"):
        Path(name).touch()
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert expected in line


def test_a_convention_and_an_axis_exclude_each_other(capfd):
    with pytest.raises(SystemExit, match="2"):
        main(["it.ply", "--from", "inria", "--from-up", "y"])
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "not allowed with argument --from" in line
