"""What becomes of values that are not finite, in every format and both ways."""

import struct

import numpy as np
import pytest
import torch
from format_errors import scene
from plyfile import PlyData, PlyElement

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.formats.ply import write_ply
from splatdistill.formats.storable import FLAT, LARGEST, OPAQUE, storable
from splatdistill.scene.gaussians import NAMES, covariances

PAIRS = [(source, target) for source in formats.FORMATS for target in formats.FORMATS]
INF, NAN = float("inf"), float("nan")


def changed(name, index, value, count=10, degree=1):
    gaussians = scene(count, degree)
    with torch.no_grad():
        gaussians[name][index] = value
    return gaussians


def foreign_ply(path, gaussians):
    """Return a .ply with values as they are, as another program writes it."""
    values = {name: tensor.detach().numpy() for name, tensor in gaussians.items()}
    columns = {"x": values["means"][:, 0], "y": values["means"][:, 1], "z": values["means"][:, 2]}
    columns |= {f"f_dc_{i}": values["sh0"][:, 0, i] for i in range(3)} | {"opacity": values["opacities"]}
    columns |= {f"scale_{i}": values["scales"][:, i] for i in range(3)}
    columns |= {f"rot_{i}": values["quats"][:, i] for i in range(4)}
    rows = np.empty(len(values["means"]), [(name, "f4") for name in columns])
    for name, column in columns.items():
        rows[name] = column
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))


def opaque_scene():
    """60 of alpha 1, 10 of alpha 0, 30 in between."""
    gaussians = scene(100, 0)
    with torch.no_grad():
        gaussians["opacities"].clamp_(-4, 3)
        gaussians["opacities"][:60], gaussians["opacities"][60:70] = INF, -INF
    return gaussians


def test_a_sound_scene_stays_the_very_same_object():
    gaussians = scene(10, 2)
    kept, account = storable(gaussians)
    assert kept is gaussians and account.dropped == 0 and str(account) == ""


def test_alpha_1_is_opaque_and_alpha_0_is_left_out():
    kept, account = storable(opaque_scene())
    assert len(kept["means"]) == 90 and (kept["opacities"][:60] == OPAQUE).all()
    assert "10 of 100 Gaussians left out (10 invisible" in str(account) and "60 of alpha 1" in str(account)


def test_a_thickness_of_0_is_thin_and_finite():
    kept, account = storable(changed("scales", (slice(None), 2), -INF))
    assert len(kept["means"]) == 10 and (kept["scales"][:, 2] == FLAT).all()
    assert "10 flat ones" in str(account)


def test_sizes_that_overflow_are_cut():
    kept, account = storable(changed("scales", (3, 1), 60.0))
    assert kept["scales"].max() == LARGEST and "1 larger than e^40" in str(account)
    for scales in (kept["scales"], kept["scales"] + 100):
        assert covariances(kept["quats"], scales.exp()).isfinite().all()


@pytest.mark.parametrize(
    "name, index, value, why",
    [
        ("means", (4, 1), NAN, "position"),
        ("means", (4, 0), INF, "position"),
        ("means", (4, 2), -INF, "position"),
        ("scales", (4, 1), NAN, "size"),
        ("scales", (4, 1), INF, "size"),
        ("quats", (4, 0), NAN, "rotation"),
        ("quats", (4, 3), INF, "rotation"),
        ("sh0", (4, 0, 2), NAN, "color"),
        ("sh0", (4, 0, 2), INF, "color"),
        ("shN", (4, 1, 1), NAN, "color"),
        ("opacities", 4, NAN, "opacity"),
        ("opacities", 4, -INF, "alpha 0"),
    ],
)
def test_any_other_value_that_is_not_finite_costs_its_gaussian_and_is_named(name, index, value, why):
    gaussians = changed(name, index, value)
    kept, account = storable(gaussians)
    assert account.dropped == 1 and why in str(account) and str(account).startswith("1 of 10")
    rest = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert all(torch.equal(kept[n], gaussians[n][rest]) for n in NAMES)


def test_a_gaussian_with_two_faults_is_counted_once():
    gaussians = changed("means", 4, NAN)
    with torch.no_grad():
        gaussians["sh0"][4] = NAN
    assert storable(gaussians)[1].dropped == 1


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_nothing_left_is_an_error_and_no_file(tmp_path, ending):
    with pytest.raises(UserError, match="none of the 10 Gaussians") as error:
        formats.write_splat(tmp_path / f"a{ending}", changed("means", slice(None), NAN))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_opaque_gaussians_are_written_opaque(tmp_path, ending):
    assert formats.write_splat(tmp_path / f"a{ending}", opaque_scene()) == 10
    back, _ = formats.read_splat(tmp_path / f"a{ending}")
    assert len(back["means"]) == 90 and all(back[name].isfinite().all() for name in NAMES)
    assert int((back["opacities"].sigmoid() >= 0.99).sum()) == 60


@pytest.mark.parametrize("ending", formats.FORMATS)
def test_flat_gaussians_are_written_thin(tmp_path, ending):
    gaussians = changed("scales", (slice(None), 2), -INF, 100, 0)
    assert formats.write_splat(tmp_path / f"a{ending}", gaussians) == 0
    back, _ = formats.read_splat(tmp_path / f"a{ending}")
    assert len(back["means"]) == 100 and back["scales"].isfinite().all()
    assert (back["scales"].sort(1).values[:, 0] <= -9.9).all() and (back["scales"].max(1).values > -8).all()


@pytest.mark.parametrize("source, target", PAIRS)
def test_what_is_read_from_any_format_is_written_to_any_other(tmp_path, source, target):
    formats.write_splat(tmp_path / f"a{source}", opaque_scene())
    gaussians, comments = formats.read_splat(tmp_path / f"a{source}")
    assert formats.write_splat(tmp_path / f"b{target}", gaussians, comments) == 0
    back, _ = formats.read_splat(tmp_path / f"b{target}")
    assert len(back["means"]) == 90 and int((back["opacities"].sigmoid() >= 0.99).sum()) == 60


def test_a_foreign_ply_is_mended_and_its_reader_told(tmp_path):
    gaussians = opaque_scene()
    with torch.no_grad():
        gaussians["scales"][:, 1] = -INF
        gaussians["means"][99] = NAN
    foreign_ply(tmp_path / "a.ply", gaussians)
    notes = []
    back, _ = formats.read_splat(tmp_path / "a.ply", note=notes.append)
    assert len(back["means"]) == 89 and len(notes) == 1 and "a.ply: 11 of 100 Gaussians left out" in notes[0]
    assert "89 flat ones" in notes[0] and "60 of alpha 1" in notes[0]


def test_without_a_place_for_notes_they_are_warnings(tmp_path):
    foreign_ply(tmp_path / "a.ply", opaque_scene())
    with pytest.warns(UserWarning, match="10 of 100 Gaussians left out"):
        formats.read_splat(tmp_path / "a.ply")


def test_a_splat_of_thickness_0_is_read_thin(tmp_path):
    row = struct.pack("<6f8B", 0, 0, 0, 0.1, 0.1, 0.0, 9, 9, 9, 255, 255, 128, 128, 128)
    (tmp_path / "a.splat").write_bytes(row * 3)
    back, _ = formats.read_splat(tmp_path / "a.splat", note=lambda text: None)
    assert len(back["means"]) == 3 and back["scales"].min() == FLAT


def test_a_file_without_gaussians_is_an_error(tmp_path):
    write_ply(tmp_path / "a.ply", scene(0, 0))
    with pytest.raises(UserError, match="holds no Gaussian"):
        formats.read_splat(tmp_path / "a.ply")
