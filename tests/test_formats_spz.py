import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from damage import version_4
from format_errors import BOUNDS, errors, round_trip, scene
from test_formats_ply import by_gaussforge

from splatdistill.errors import UserError
from splatdistill.formats import read_splat, write_splat
from splatdistill.formats.axes import axes_matrix, mirror_z, turn_axes
from splatdistill.formats.spz import AXES, read_spz, write_spz
from splatdistill.reference.raster import sh_basis
from splatdistill.scene.gaussians import NAMES, covariances, select
from splatdistill.scene.orientation import rotate_


def header(version=3, count=10, degree=0, fraction=12, flags=0):
    return struct.pack("<IIIBBBB", 0x5053474E, version, count, degree, fraction, flags, 0)


@pytest.mark.parametrize("degree", range(4))
def test_the_stream_has_niantics_layout(tmp_path, degree):
    gaussians = scene(7, degree)
    with torch.no_grad():
        gaussians["means"][0] = torch.tensor([0.5, -0.25, 0.0])
        gaussians["quats"][0] = torch.tensor([0.5, -0.5, 0.5, 0.5])  # w x y z; all are the largest
        gaussians["scales"][0] = torch.tensor([-10.0, -2.0, 5.9375])
    assert write_spz(tmp_path / "a.spz", gaussians) == 0
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    magic, version, count, sh_degree, fraction, flags, reserved = struct.unpack("<IIIBBBB", content[:16])
    assert (magic, version, count, sh_degree, flags, reserved) == (0x5053474E, 3, 7, degree, 0, 0)
    assert len(content) == 16 + 7 * (20 + 3 * degree * (degree + 2))
    fixed = [int.from_bytes(content[16 + 3 * i : 19 + 3 * i], "little", signed=True) for i in range(3)]
    assert [value / 2**fraction for value in fixed] == [0.5, -0.25, 0.0]
    scales = content[16 + 7 * 13 : 16 + 7 * 13 + 3]
    assert list(scales) == [0, 128, 255]
    word = int.from_bytes(content[16 + 7 * 16 : 16 + 7 * 16 + 4], "little")
    assert word >> 30 == 0  # x, made positive: y z w follow, negative
    assert [word >> shift & 0x3FF for shift in (20, 10, 0)] == [512 + 361] * 3  # 511 / sqrt(2)


@pytest.mark.parametrize("degree", [0, 3])
def test_errors_stay_within_what_is_promised(tmp_path, degree):
    original = scene(700, degree)
    found = errors(original, round_trip(tmp_path / "a.spz", original))
    assert all(found[name] <= bound for name, bound in BOUNDS[".spz"].items()), found


@pytest.mark.parametrize("degree", range(4))
def test_gaussforge_reads_the_same_scene(tmp_path, degree):
    """It is built on Niantic's own library; it keeps the axes of the file."""
    pytest.importorskip("gaussforge")
    write_spz(tmp_path / "a.spz", scene(60, degree))
    theirs, ours = by_gaussforge(tmp_path / "a.spz", "spz"), read_spz(tmp_path / "a.spz")[0]
    found = errors(ours, theirs)
    assert max(found["center"], found["scale"], found["color"], found["sh"]) < 1e-5
    assert found["opacity"] < 2e-3 and found["rotation_deg"] < 0.01


@pytest.mark.parametrize("version", [2, 3, 4])
def test_files_of_niantics_library_are_read(tmp_path, version):
    gaussforge = pytest.importorskip("gaussforge")
    if version == 4:
        pytest.importorskip("zstandard")
    from splatdistill.formats.ply import write_ply

    original = scene(60, 2)
    write_ply(tmp_path / "a.ply", original)
    content = (tmp_path / "a.ply").read_bytes()
    result = gaussforge.GaussForge().convert(content, "ply", "spz", spz_version=version)
    (tmp_path / "a.spz").write_bytes(result["data"])
    back, _ = read_spz(tmp_path / "a.spz")  # it turns nothing
    found = errors(original, back)
    assert found["center"] < 1.3e-4 and found["scale"] < 0.033 and found["opacity"] < 2e-3
    assert found["rotation_deg"] < (12 if version == 2 else 0.3)  # version 2 lacks w
    assert found["color"] < 0.004 and found["sh"] < 0.07


@pytest.mark.parametrize("degree", range(4))
def test_version_4_is_read_like_version_3(tmp_path, degree):
    pytest.importorskip("zstandard")
    write_spz(tmp_path / "a.spz", scene(20, degree))
    (tmp_path / "b.spz").write_bytes(version_4(gzip.decompress((tmp_path / "a.spz").read_bytes())))
    old, new = (read_spz(tmp_path / f"{name}.spz")[0] for name in "ab")
    assert all(torch.equal(old[name], new[name]) for name in NAMES)


def test_equal_scenes_give_equal_bytes(tmp_path):
    for name in "ab":
        write_spz(tmp_path / f"{name}.spz", scene(20, 1))
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_far_points_cost_precision_and_too_far_ones_are_left_out(tmp_path):
    gaussians = scene(4, 0)
    with torch.no_grad():
        gaussians["means"][0, 0] = 5000.0
        gaussians["means"][1, 0] = 1e6
    assert write_spz(tmp_path / "a.spz", gaussians) == 1
    back, _ = read_spz(tmp_path / "a.spz")
    torch.testing.assert_close(back["means"], gaussians["means"][[0, 2, 3]], atol=2**-11, rtol=0)


def test_a_file_without_gaussians_is_an_empty_scene(tmp_path):
    (tmp_path / "a.spz").write_bytes(gzip.compress(header(count=0, degree=2)))
    back, _ = read_spz(tmp_path / "a.spz")
    assert back["means"].shape == (0, 3) and back["shN"].shape == (0, 8, 3)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "start"),
        (b"NGSQ" + bytes(100), "start"),
        (b"NGSP", "within its header|zstandard"),
        (b"\x1f\x8b" + bytes(50), "damaged"),
        (gzip.compress(header()[:9]), "within its header"),
        (gzip.compress(header() + bytes(199)), "ends before"),
        (gzip.compress(header() + bytes(range(200)))[:60], "damaged"),
        (gzip.compress(header(version=0) + bytes(200)), "version 1, 2, 3 or 4"),
        (gzip.compress(header(version=5) + bytes(200)), "version 1, 2, 3 or 4"),
        (gzip.compress(header(degree=5) + bytes(3000)), "SH degree 5"),
        (gzip.compress(header(fraction=24) + bytes(200)), "24 bits"),
        (gzip.compress(b"PSGN" + header()[4:] + bytes(200)), "version 1, 2, 3 or 4"),
        (gzip.compress(header(count=2**32 - 1) + bytes(200)), "224.0 GiB"),
        (gzip.compress(header(count=50_000_000) + bytes(200)), "ends before its last"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else value,  # gzip writes the time
)
def test_what_is_no_whole_spz_is_a_user_error(tmp_path, content, expected):
    (tmp_path / "a.spz").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_spz(tmp_path / "a.spz")


def test_every_truncation_is_a_user_error(tmp_path):
    write_spz(tmp_path / "a.spz", scene(4, 1))
    content = (tmp_path / "a.spz").read_bytes()
    for length in range(len(content) - 8):  # the last 8 bytes, gzip's checksum, are not waited for
        (tmp_path / "b.spz").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_spz(tmp_path / "b.spz")


def test_streams_that_lie_are_user_errors(tmp_path):
    pytest.importorskip("zstandard")
    write_spz(tmp_path / "a.spz", scene(20, 1))
    sound = version_4(gzip.decompress((tmp_path / "a.spz").read_bytes()))
    table = struct.unpack_from("<I", sound, 16)[0]

    def changed(place, value):
        return sound[:place] + value + sound[place + len(value) :]

    other_axes = version_4(
        gzip.decompress((tmp_path / "a.spz").read_bytes()), struct.pack("<III", 0xADBE0003, 4, 17)
    )
    for content, expected in [
        (changed(15, b"\5"), "no room"),
        (changed(16, b"\xff\xff\xff\xff"), "no room"),
        (changed(table, b"\xff" * 8), "beyond its end"),
        (changed(table + 6 * 16, b"\0\0\0\0"), "damaged"),
        (changed(8, struct.pack("<I", 25)), "ends before|damaged"),
        (sound[:-3], "ends before|damaged"),
        (other_axes, "axes number 17"),
    ]:
        (tmp_path / "b.spz").write_bytes(content)
        with pytest.raises(UserError, match=expected):
            read_spz(tmp_path / "b.spz")


@pytest.mark.parametrize("packed", [gzip.compress, version_4])
@pytest.mark.parametrize("claimed", [30_000_000, 4_000_000_000])
def test_a_stream_shorter_than_it_claims_is_refused_before_memory_is_asked_for(tmp_path, packed, claimed):
    pytest.importorskip("zstandard")
    content = packed(header(count=1_000_000) + bytes(20_000_000))
    if packed is gzip.compress:
        content = packed(header(count=claimed) + bytes(20_000_000))
    else:
        content = content[:8] + struct.pack("<I", claimed) + content[12:]
    (tmp_path / "a.spz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"ends before|GiB"):
        read_spz(tmp_path / "a.spz")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [gzip.compress, version_4])
def test_a_sound_file_is_read_however_well_it_is_compressed(tmp_path, packed):
    """Voxels, planes and other regular scenes unpack to many times their size."""
    pytest.importorskip("zstandard")
    content = packed(header(count=200_000) + bytes(200_000 * 20))
    (tmp_path / "a.spz").write_bytes(content)
    assert len(content) < 200_000 * 20 / 100
    back, _ = read_spz(tmp_path / "a.spz")
    assert len(back["means"]) == 200_000 and all(back[name].isfinite().all() for name in NAMES)


def test_the_oldest_version_has_half_floats(tmp_path):
    content = header(version=1, count=1) + struct.pack("<3e", 0.5, -0.25, 3.0)
    content += bytes([255, 128, 128, 128, 160, 160, 160, 128, 128, 128])
    (tmp_path / "a.spz").write_bytes(gzip.compress(content))
    back, _ = read_spz(tmp_path / "a.spz")
    assert back["means"].tolist() == [[0.5, -0.25, 3.0]] and back["scales"].tolist() == [[0.0] * 3]
    assert back["quats"][0, 0] > 0.99


@pytest.mark.parametrize("packed", [gzip.compress, version_4])
def test_a_fifth_band_is_left_out_with_a_note(tmp_path, packed):
    pytest.importorskip("zstandard")
    steps = np.arange(2 * 72, dtype=np.uint8)
    (tmp_path / "a.spz").write_bytes(packed(header(count=2, degree=4) + bytes(2 * 20) + steps.tobytes()))
    notes = []
    back, _ = read_spz(tmp_path / "a.spz", notes.append)
    assert len(notes) == 1 and "SH degree 4" in notes[0]
    kept = (steps.reshape(2, 24, 3)[:, :15] - 128.0) / 128
    assert np.array_equal(back["shN"].detach().numpy(), kept)


@pytest.mark.parametrize("degree", range(4))
def test_version_4_is_written_with_its_axes_and_read_back(tmp_path, degree):
    pytest.importorskip("zstandard")
    write_spz(tmp_path / "a.spz", scene(20, degree))
    assert write_spz(tmp_path / "b.spz", scene(20, degree), None, 4) == 0
    content = (tmp_path / "b.spz").read_bytes()
    assert content[:8] == b"NGSP\4\0\0\0" and content[15] == (6 if degree else 5)
    assert struct.unpack_from("<III", content, 32) == (0xADBE0003, 4, 4)  # right, up, back
    old, new = (read_spz(tmp_path / f"{name}.spz")[0] for name in "ab")
    assert all(torch.equal(old[name], new[name]) for name in NAMES)


def test_gaussforge_reads_version_4(tmp_path):
    pytest.importorskip("gaussforge")
    pytest.importorskip("zstandard")
    write_spz(tmp_path / "a.spz", scene(60, 2), None, 4)
    theirs, ours = by_gaussforge(tmp_path / "a.spz", "spz"), read_spz(tmp_path / "a.spz")[0]
    found = errors(ours, theirs)
    assert max(found["center"], found["scale"], found["color"], found["sh"]) < 1e-5


def test_a_file_that_names_its_axes_is_read_upright(tmp_path):
    pytest.importorskip("zstandard")
    gaussians = scene(50, 3)
    for up in ("y", "-y"):
        write_splat(tmp_path / f"{up}.spz", gaussians, None, up, spz=4)
    a, b = (read_splat(tmp_path / f"{up}.spz")[0] for up in ("y", "-y"))
    found = errors(a, b)
    assert found["center"] < 1e-5 and found["rotation_deg"] < 0.4 and found["sh"] < 0.03


@pytest.mark.parametrize("axes", AXES)
def test_all_named_axes_show_the_same_picture(tmp_path, axes):
    """Also the left-handed ones, which mirror."""
    original = scene(40, 3)
    stored = select(original, slice(None))
    matrix = axes_matrix(axes).T  # from right, up, back
    if torch.det(matrix) < 0:
        matrix = torch.diag(torch.tensor([1.0, 1.0, -1.0]).double()) @ matrix
        rotate_(stored, matrix)
        mirror_z(stored)
    else:
        rotate_(stored, matrix)
    assert torch.allclose(stored["means"].double(), original["means"].double() @ axes_matrix(axes), atol=1e-5)
    turn_axes(stored, axes)
    found = errors(original, stored)
    assert max(found["center"], found["sh"]) < 1e-5 and found["rotation_deg"] < 1e-2


def test_a_mirrored_scene_is_its_mirror_image():
    gaussians = scene(30, 3)
    mirrored = select(gaussians, slice(None))
    mirror_z(mirrored)
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    scales = gaussians["scales"].exp()
    expected = flip @ covariances(gaussians["quats"], scales) @ flip
    torch.testing.assert_close(covariances(mirrored["quats"], scales), expected, atol=1e-5, rtol=1e-4)
    directions = torch.nn.functional.normalize(torch.randn(9, 3), dim=-1)
    old, new = (sh_basis(d, 3)[:, 1:] for d in (directions, directions @ flip))
    for a, b in zip(gaussians["shN"], mirrored["shN"]):
        torch.testing.assert_close(new.float() @ b, old.float() @ a, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("version", [3, 4])
def test_the_render_mode_is_kept(tmp_path, version):
    pytest.importorskip("zstandard")
    for comments in ({"SplatRenderMode": "mip"}, {}):
        write_spz(tmp_path / "a.spz", scene(3, 0), comments | {"prompt": "x"}, version)
        assert read_spz(tmp_path / "a.spz")[1] == comments


def test_version_4_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.spz").write_bytes(header(version=4) + bytes(100))
    with pytest.raises(UserError, match=r"splatdistill\[formats\]"):
        read_spz(tmp_path / "a.spz")


def test_scales_and_harmonics_are_clipped_to_what_fits(tmp_path):
    gaussians = scene(1, 1)
    with torch.no_grad():
        gaussians["scales"][0] = torch.tensor([-50.0, 50.0, 0.0])
        gaussians["shN"][0] = torch.tensor([[-9.0, 9.0, 0.0]])
    write_spz(tmp_path / "a.spz", gaussians)
    back, _ = read_spz(tmp_path / "a.spz")
    assert back["scales"][0].tolist() == [-10, 5.9375, 0]
    assert np.allclose(back["shN"][0, 0].detach(), [-1, 127 / 128, 0])
