import math
import struct

import numpy as np
import pytest
import torch
from format_errors import BOUNDS, errors, round_trip, scene

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.formats.splat import read_dot_splat, write_dot_splat
from splatdistill.formats.storable import FLAT
from splatdistill.scene.gaussians import rgb_to_sh0


def test_a_row_has_the_layout_of_the_viewer(tmp_path):
    gaussians = scene(1, 2)
    with torch.no_grad():
        gaussians["means"][0] = torch.tensor([1.0, -2.0, 0.5])
        gaussians["scales"][0] = torch.tensor([0.1, 0.2, 0.4]).log()
        gaussians["sh0"][0, 0] = rgb_to_sh0(torch.tensor([1.0, 0.2, -5.0]))
        gaussians["opacities"][0] = 0.0
        gaussians["quats"][0] = torch.tensor([0.0, 2.0, 0.0, -2.0])
    assert write_dot_splat(tmp_path / "a.splat", gaussians) == 0
    content = (tmp_path / "a.splat").read_bytes()
    assert len(content) == 32
    *numbers, r, g, b, a, q0, q1, q2, q3 = struct.unpack("<6f8B", content)
    assert numbers == pytest.approx([1, -2, 0.5, 0.1, 0.2, 0.4], rel=1e-6)
    assert (r, g, b, a) == (255, 51, 0, 128)
    assert (q0, q1, q2, q3) == (128, 219, 128, 37)


def test_errors_stay_within_what_is_promised(tmp_path):
    original = scene(500, 3)
    found = errors(original, round_trip(tmp_path / "a.splat", original))
    assert all(found[name] <= bound for name, bound in BOUNDS[".splat"].items()), found


def test_a_second_round_trip_changes_nothing(tmp_path):
    write_dot_splat(tmp_path / "a.splat", scene(100, 0))
    write_dot_splat(tmp_path / "b.splat", read_dot_splat(tmp_path / "a.splat")[0])
    first, second = (np.fromfile(tmp_path / f"{name}.splat", "u1").reshape(-1, 32) for name in "ab")
    assert np.array_equal(first[:, :12], second[:, :12]) and np.array_equal(first[:, 24:28], second[:, 24:28])
    assert np.abs(first[:, 28:].astype(int) - second[:, 28:]).max() <= 1  # quaternions are normalized again


def test_gaussforge_reads_the_same_scene(tmp_path):
    pytest.importorskip("gaussforge")
    from test_formats_ply import by_gaussforge

    write_dot_splat(tmp_path / "a.splat", scene(50, 0))
    theirs, ours = by_gaussforge(tmp_path / "a.splat", "splat"), read_dot_splat(tmp_path / "a.splat")[0]
    found = errors(ours, theirs)
    assert found["center"] == 0 and found["scale"] < 1e-6 and found["rotation_deg"] < 1


def test_bad_sizes_are_user_errors(tmp_path):
    for size in (0, 1, 31, 33, 63):
        (tmp_path / "a.splat").write_bytes(bytes(size))
        with pytest.raises(UserError, match="multiple of 32"):
            read_dot_splat(tmp_path / "a.splat")


def test_rows_of_zeros_are_flat_and_rows_of_ones_are_left_out(tmp_path):
    (tmp_path / "a.splat").write_bytes(
        bytes(32) + b"\xff" * 32 + struct.pack("<6f8B", *range(1, 7), *[9] * 8)
    )
    gaussians, comments = formats.read_splat(tmp_path / "a.splat")
    assert comments == {} and gaussians["quats"].isfinite().all()
    assert len(gaussians["means"]) == 2 and gaussians["scales"][0].tolist() == [FLAT] * 3
    assert formats.write_splat(tmp_path / "b.splat", gaussians) == 0
    assert math.isclose(
        formats.read_splat(tmp_path / "b.splat")[0]["scales"][1, 2].exp().item(), 6, rel_tol=1e-6
    )
