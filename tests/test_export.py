"""The command, from a file to a file."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from format_errors import scene

from splatdistill import formats
from splatdistill.export import main
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.orientation import reorient


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_ply("in.ply", scene(40, 2), {"prompt": "a red mushroom"})
    return tmp_path


def mistake(capfd, *arguments: str) -> str:
    """Return the one line that a mistake prints; the status is 2 and nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in Path().iterdir()}
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert before == {path: path.stat().st_mtime_ns for path in Path().iterdir()}
    return lines[0]


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_every_format_is_written_and_counted(ending, capfd):
    assert main(["in.ply", f"out{ending}"]) == 0
    line = capfd.readouterr().err
    assert f"out{ending}: 40 Gaussians" in line and ("view-dependent" in line) == (ending == ".splat")
    assert Path(f"out{ending}").stat().st_size > 0


def test_a_ply_keeps_its_comments_and_values():
    assert main(["in.ply", "out.ply"]) == 0
    assert Path("in.ply").read_bytes() == Path("out.ply").read_bytes()


@pytest.mark.parametrize("words", [["--up", "-y"], ["--up=-y"]])
def test_minus_y_is_an_axis_and_no_option(words):
    assert main(["in.ply", "out.ply", *words]) == 0
    turned = reorient(read_ply("in.ply")[0], "z", "-y")
    assert torch.equal(read_ply("out.ply")[0]["means"], turned["means"])


def test_a_file_with_another_axis_up_is_set_upright():
    assert main(["in.ply", "turned.ply", "--up", "y"]) == 0
    assert main(["turned.ply", "back.ply", "--from-up", "y"]) == 0
    torch.testing.assert_close(read_ply("back.ply")[0]["means"], read_ply("in.ply")[0]["means"])


def test_pruning_leaves_out_the_faint_and_says_how_many(capfd):
    gaussians = read_ply("in.ply")[0]
    faint = int((gaussians["opacities"].sigmoid() < 0.5).sum())
    assert 0 < faint < 40 and main(["in.ply", "out.ply", "--prune", "0.5"]) == 0
    assert f"{40 - faint} Gaussians, {faint} of lower opacity than 0.5" in capfd.readouterr().err
    assert (read_ply("out.ply")[0]["opacities"].sigmoid() >= 0.5).all()


def test_gaussians_that_are_not_finite_are_counted_with_and_without_pruning(capfd):
    gaussians = scene(10, 0)
    with torch.no_grad():
        gaussians["opacities"].fill_(3.0)
    write_ply("nan.ply", gaussians)
    content = bytearray(Path("nan.ply").read_bytes())
    start = content.index(b"end_header\n") + len(b"end_header\n")
    content[start : start + 4] = b"\0\0\xc0\x7f"
    Path("nan.ply").write_bytes(content)
    for extra in ([], ["--prune", "0.1"]):
        assert main(["nan.ply", "out.splat", "--overwrite", *extra]) == 0
        assert "1 of 10 Gaussians left out (1 without a finite position)" in capfd.readouterr().err


def test_a_file_is_only_replaced_when_told(capfd):
    Path("out.splat").write_bytes(b"precious")
    assert "--overwrite" in mistake(capfd, "in.ply", "out.splat")
    assert main(["in.ply", "out.splat", "--overwrite"]) == 0
    assert Path("out.splat").stat().st_size == 40 * 32
    assert main(["in.ply", "in.ply", "--prune", "0.5", "--overwrite"]) == 0  # onto itself


def test_a_run_is_exported_by_its_folder(capfd):
    Path("run").mkdir()
    Path("in.ply").rename("run/splat.ply")
    assert main(["run", "out.glb"]) == 0 and "40 Gaussians" in capfd.readouterr().err
    assert len(formats.read_splat("out.glb")[0]["means"]) == 40


@pytest.mark.parametrize("program", formats.CONVENTIONS)
def test_the_files_of_other_programs_are_set_upright(program):
    assert main(["in.ply", "out.ply", "--from", program]) == 0
    turned = read_ply("in.ply")[0]
    formats.set_upright(turned, program, "z")
    assert torch.equal(read_ply("out.ply")[0]["means"], turned["means"])


def test_both_versions_of_spz_are_written_and_hold_the_same():
    pytest.importorskip("zstandard")
    assert main(["in.ply", "3.spz"]) == 0 and main(["in.ply", "4.spz", "--spz", "4"]) == 0
    assert Path("3.spz").read_bytes()[:2] == b"\x1f\x8b" and Path("4.spz").read_bytes()[:5] == b"NGSP\4"
    old, new = (formats.read_splat(f"{version}.spz")[0] for version in (3, 4))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)


def test_a_scene_of_which_nothing_can_be_shown_is_no_empty_file(capfd):
    content = bytearray(Path("in.ply").read_bytes())
    start = content.index(b"end_header\n") + len(b"end_header\n")
    rows = np.frombuffer(content, "<f4", offset=start).reshape(40, -1)
    rows[:, 0] = np.nan
    Path("nan.ply").write_bytes(content)
    for ending in formats.FORMATS:
        assert "none of the 40 Gaussians" in mistake(capfd, "nan.ply", f"out{ending}")


def test_a_failed_export_keeps_the_old_file(capfd, monkeypatch):
    Path("out.spz").write_bytes(b"precious")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert "No space left" in mistake(capfd, "in.ply", "out.spz", "--overwrite")
    assert Path("out.spz").read_bytes() == b"precious"


def test_meshes_are_written_and_counted(capfd):
    pytest.importorskip("fast_simplification")
    assert main(["in.ply", "out.obj", "--resolution", "32"]) == 0
    assert main(["in.ply", "out.glb", "--mesh", "--resolution", "32"]) == 0
    counts = re.findall(r": (\d+) triangles", capfd.readouterr().err)
    assert len(counts) == 2 and counts[0] == counts[1] and int(counts[0]) > 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "IN, OUT"),
        (["in.ply"], "OUT"),
        (["absent.ply", "out.ply"], "absent.ply"),
        (["in.ply", "out.xyz"], "expected one of .compressed.ply, .ply"),
        (["in.glb", "out.ply"], "cannot read in.glb"),
        (["in.ply", "absent/out.ply"], "cannot write"),
        (["in.ply", "in.ply/out.spz"], "cannot write"),
        (["in.ply", "/proc/out.spz"], "/proc/out.spz"),
        (["in.ply", "out.ply", "--up", "x"], "--up"),
        (["in.ply", "out.ply", "--up"], "--up"),
        (["in.ply", "out.ply", "--prune", "2"], "--prune 2"),
        (["in.ply", "out.ply", "--prune", "nan"], "--prune nan"),
        (["in.ply", "out.ply", "--prune", "much"], "--prune"),
        (["in.ply", "out.ply", "--prune", "1"], "no Gaussian"),
        (["in.ply", "out.ply", "--mesh"], "expected .obj or .glb"),
        (["in.ply", "out.ply", "--resolution", "9"], "--resolution"),
        (["in.ply", "out.obj", "--resolution", "0"], "expected 8 to 512"),
        (["in.ply", "out.ply", "--bogus"], "--bogus"),
        ([".", "out.ply"], "no finished run"),
        (["in.ply", "out.ply", "--spz", "4"], "--spz"),
        (["in.ply", "out.spz", "--spz", "5"], "--spz"),
        (["in.ply", "out.ply", "--triangles", "9"], "--triangles"),
        (["in.ply", "out.obj", "--triangles", "9"], "at least 100"),
        (["in.ply", "out.ply", "--from", "nobody"], "no known program"),
        (["in.ply", "out.ply", "--from", "trellis", "--from-up", "y"], "--from"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capfd, arguments, expected):
    if "out.obj" in arguments:
        pytest.importorskip("fast_simplification")
    assert expected in mistake(capfd, *arguments)


def test_strange_files_are_one_line_and_status_2(capfd):
    for ending in (".ply", ".splat", ".spz"):
        Path(f"strange{ending}").write_bytes(b"no such thing\n" * 3)
        assert f"strange{ending}" in mistake(capfd, f"strange{ending}", "out.ply")


def test_a_mistake_shows_no_traceback_from_the_shell():
    command = [sys.executable, "-m", "splatdistill.export", "absent.ply", "out.glb"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert process.returncode == 2 and process.stdout == ""
    assert re.fullmatch(r"error: cannot read absent.ply: .*\n", process.stderr)
