import hashlib

import numpy as np
import pytest
import torch
from format_errors import errors, scene

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.gaussians import NAMES, from_tensors
from splatdistill.scene.orientation import UPS, reorient


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in NAMES)


def test_a_ply_is_stored_as_it_is(tmp_path):
    gaussians = scene(30, 2)
    formats.write_splat(tmp_path / "a.ply", gaussians, {"prompt": "x"})
    write_ply(tmp_path / "b.ply", gaussians, {"prompt": "x"})
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    back, comments = formats.read_splat(tmp_path / "a.ply")
    assert same(back, gaussians) and comments == {"prompt": "x"}


@pytest.mark.parametrize("ending", formats.FORMATS)
@pytest.mark.parametrize("up", [None, *UPS])
def test_what_is_written_with_an_axis_up_is_read_back_upright(tmp_path, ending, up):
    gaussians = scene(1, 0)  # a single one: the order is no matter
    formats.write_splat(tmp_path / f"a{ending}", gaussians, None, up)
    back, _ = formats.read_splat(tmp_path / f"a{ending}", up)
    found = errors(gaussians, back)
    assert found["center"] < 1e-3 and found["rotation_deg"] < 1 and found["scale"] < 0.04


@pytest.mark.parametrize("up", UPS)
def test_the_axis_up_turns_centers_rotations_and_harmonics(tmp_path, up):
    gaussians = scene(10, 3)
    formats.write_splat(tmp_path / "a.ply", gaussians, None, up)
    assert same(read_ply(tmp_path / "a.ply")[0], reorient(gaussians, "z", up))
    assert up == "z" or not torch.equal(reorient(gaussians, "z", up)["shN"], gaussians["shN"])


@pytest.mark.parametrize(
    "ending, place", [(".splat", (2, -1, -3)), (".spz", (2, 3, 1)), (".sog", None), (".glb", None)]
)
def test_formats_have_their_own_axis_up(tmp_path, ending, place):
    gaussians = scene(1, 0)
    with torch.no_grad():
        gaussians["means"][0] = torch.tensor([1.0, 2.0, 3.0])  # front, right in the picture, up
    formats.write_splat(tmp_path / f"a{ending}", gaussians)
    form = formats.FORMATS[ending]
    assert form.up == {".splat": "-y", ".sog": "-y", ".spz": "y", ".glb": "y"}[ending]
    if place and form.read:
        stored = form.read(tmp_path / f"a{ending}", print)[0]["means"][0].tolist()
        assert stored == pytest.approx([2, -3, -1] if ending == ".splat" else [2, 3, 1], abs=1e-5)


def test_the_longest_ending_counts_in_any_case(tmp_path):
    assert formats.format_of("x.COMPRESSED.PLY") is formats.FORMATS[".compressed.ply"]
    assert formats.format_of("a.b.Ply") is formats.FORMATS[".ply"]
    formats.write_splat(tmp_path / "a.compressed.ply", scene(10, 1))
    (tmp_path / "a.compressed.ply").rename(tmp_path / "b.ply")
    assert len(formats.read_splat(tmp_path / "b.ply")[0]["means"]) == 10  # told by the header


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_a_missing_file_is_a_user_error(tmp_path, ending):
    with pytest.raises(UserError, match="cannot read"):
        formats.read_splat(tmp_path / f"absent{ending}")


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_a_folder_that_is_not_there_is_a_user_error(tmp_path, ending):
    with pytest.raises(UserError, match="cannot write"):
        formats.write_splat(tmp_path / "absent" / f"a{ending}", scene(3, 0))


def test_unknown_endings_axes_and_directions_are_user_errors(tmp_path):
    for path in ("a", "a.obj", "ply", "a.ply.gz"):
        with pytest.raises(UserError, match="no splat format"):
            formats.read_splat(path)
    formats.write_splat(tmp_path / "a.ply", scene(3, 0))
    with pytest.raises(UserError, match="cannot be up"):
        formats.read_splat(tmp_path / "a.ply", "x")
    with pytest.raises(UserError, match="cannot be up"):
        formats.write_splat(tmp_path / "b.ply", scene(3, 0), up="x")


def test_running_out_of_memory_is_a_user_error(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    formats.write_splat(tmp_path / "a.splat", scene(3, 0))
    monkeypatch.setattr("splatdistill.formats.splat.allocate", fail)
    with pytest.raises(UserError, match="memory"):
        formats.read_splat(tmp_path / "a.splat")


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_gaussians_that_are_not_finite_are_left_out_one_by_one_and_counted(tmp_path, ending):
    gaussians = scene(20, 1)
    with torch.no_grad():
        gaussians["quats"][3, 1] = float("nan")
        gaussians["shN"][7, 2, 0] = float("inf")
    assert formats.write_splat(tmp_path / f"a{ending}", gaussians) == 2
    assert len(formats.read_splat(tmp_path / f"a{ending}")[0]["means"]) == 18


BYTES = {  # SHA-256 of what the first version of each writer made of `counted(300, degree)`
    (".ply", 0): "7efd8c92a2042b5ce1406cf0233eeaed7ce5d18d7acd804950d644c4152b2792",
    (".ply", 2): "c3e3ce7916d0f46c3c054ac56d630c5463cce2494158c05591e04ad3703c5d18",
    (".compressed.ply", 0): "484dbf9378aee009575f3cb7ad6e241c52f506660ba12c5dc012b76044d01bd7",
    (".compressed.ply", 2): "fe3bd7aa5552c049cffeb5da49d918db00e502fa9955673a5e89f248de1ddae5",
}


def counted(count, degree):
    """Return a scene of arithmetic alone: the same on every machine."""

    def ramp(*shape, step, low, high):
        numbers = np.arange(np.prod(shape), dtype=np.int64) * step % 1024 / np.float32(1024)
        return torch.from_numpy((numbers * (high - low) + low).astype(np.float32).reshape(shape))

    return from_tensors(
        means=ramp(count, 3, step=37, low=-1, high=1),
        scales=ramp(count, 3, step=101, low=-6, high=-2),
        quats=ramp(count, 4, step=211, low=0.25, high=1),
        opacities=ramp(count, step=5, low=-4, high=4),
        sh0=ramp(count, 1, 3, step=17, low=-1.5, high=1.5),
        shN=ramp(count, (degree + 1) ** 2 - 1, 3, step=29, low=-0.5, high=0.5),
    )


@pytest.mark.parametrize("ending, degree", BYTES)
def test_writers_give_the_bytes_they_always_gave(tmp_path, ending, degree):
    comments = {"prompt": ' a "red"\nmushroom é 🍄 ', "seed": "3"}
    formats.FORMATS[ending].write(tmp_path / "a", counted(300, degree), comments)
    assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == BYTES[ending, degree]


def test_what_every_writer_writes_a_reader_opens(tmp_path):
    for ending in formats.FORMATS:
        formats.write_splat(tmp_path / f"a{ending}", scene(20, 1), {"prompt": "x"})
        back, comments = formats.read_splat(tmp_path / f"a{ending}")
        assert len(back["means"]) == 20 and comments in ({"prompt": "x"}, {})


def test_formats_are_imported_without_the_rest(forks):
    rooms = ("guidance", "priors", "training", "viewer", "media", "measure", "config", "teaching", "cli")
    heavy = ("diffusers", "transformers", "viser", "omegaconf", "rich", *(f"splatdistill.{r}" for r in rooms))
    code = f"import sys, splatdistill.formats; print(set({heavy}) & set(sys.modules))"
    assert forks.run(code).stdout == "set()\n"
