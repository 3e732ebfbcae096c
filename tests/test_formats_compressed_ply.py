import numpy as np
import pytest
import torch
from format_errors import BOUNDS, errors, round_trip, scene
from plyfile import PlyData
from test_formats_ply import by_gaussforge

from splatdistill.errors import UserError
from splatdistill.formats.compressed_ply import morton_order
from splatdistill.formats.ply import read_ply, write_compressed_ply
from splatdistill.scene.gaussians import NAMES, select


@pytest.mark.parametrize("degree", range(4))
def test_another_reader_finds_the_playcanvas_layout(tmp_path, degree):
    write_compressed_ply(tmp_path / "a.compressed.ply", scene(600, degree), {"prompt": "x"})
    ply = PlyData.read(str(tmp_path / "a.compressed.ply"))
    assert [(e.name, len(e.data)) for e in ply.elements][:2] == [("chunk", 3), ("vertex", 600)]
    assert {p.val_dtype for p in ply["chunk"].properties} == {"f4"} and len(ply["chunk"].properties) == 18
    names = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
    assert [(p.name, p.val_dtype) for p in ply["vertex"].properties] == [(name, "u4") for name in names]
    if degree:
        sh = ply["sh"]
        assert [p.name for p in sh.properties] == [f"f_rest_{i}" for i in range(3 * degree * (degree + 2))]
        assert {p.val_dtype for p in sh.properties} == {"u1"} and len(sh.data) == 600
    assert ply.comments == ["prompt: x"]


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("count", [1, 255, 257, 700])
def test_errors_stay_within_what_is_promised(tmp_path, degree, count):
    original = scene(count, degree)
    found = errors(original, round_trip(tmp_path / "a.compressed.ply", original))
    assert all(found[name] <= bound for name, bound in BOUNDS[".compressed.ply"].items()), found


def test_gaussforge_reads_the_same_scene(tmp_path):
    pytest.importorskip("gaussforge")
    write_compressed_ply(tmp_path / "a.compressed.ply", scene(300, 0))
    theirs = by_gaussforge(tmp_path / "a.compressed.ply", "compressed.ply")
    found = errors(read_ply(tmp_path / "a.compressed.ply")[0], theirs)
    assert max(found["center"], found["scale"], found["color"], found["sh"]) < 1e-5
    assert found["opacity"] < 1e-3 and found["rotation_deg"] < 0.01


def test_chunks_without_colors_are_read(tmp_path):
    """The first files of the format bounded no colors: those were fractions of [0, 1]."""
    write_compressed_ply(tmp_path / "a.ply", scene(1, 0))
    header, rows = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    for name in (f"property float {side}_{c}\n".encode() for side in ("min", "max") for c in "rgb"):
        header = header.replace(name, b"")
    words = rows[72:84] + bytes([255, 0, 128, 0])  # opacity, blue, green, red: little endian
    (tmp_path / "b.ply").write_bytes(header + b"end_header\n" + rows[:48] + words)
    back, _ = read_ply(tmp_path / "b.ply")
    rgb = back["sh0"][0, 0] * 0.28209479177387814 + 0.5
    assert rgb.tolist() == pytest.approx([0, 128 / 255, 0], abs=1e-6)


def test_neighbors_on_the_curve_are_close():
    means = np.random.default_rng(0).uniform(-1, 1, (4096, 3)).astype(np.float32)
    ordered = means[morton_order(means)]
    assert sorted(morton_order(means)) == list(range(4096))
    chunks = ordered.reshape(16, 256, 3)
    assert (chunks.max(1) - chunks.min(1)).prod(1).mean() < 2
    assert morton_order(means[:1]).tolist() == [0] and morton_order(np.ones((5, 3), np.float32)).tolist() == [
        *range(5)
    ]


def test_both_byte_orders_are_read(tmp_path):
    write_compressed_ply(tmp_path / "a.ply", scene(300, 1))
    ply = PlyData.read(str(tmp_path / "a.ply"))
    ply.byte_order = ">"
    ply.write(str(tmp_path / "b.ply"))
    little, big = (read_ply(tmp_path / f"{name}.ply")[0] for name in "ab")
    assert all(torch.equal(little[name], big[name]) for name in NAMES)


def test_colors_beyond_white_survive(tmp_path):
    gaussians = select(scene(3, 0), slice(0, 3))
    with torch.no_grad():
        gaussians["sh0"][1] = 6.0
    write_compressed_ply(tmp_path / "a.ply", gaussians)
    back, _ = read_ply(tmp_path / "a.ply")
    assert back["sh0"].max().item() == pytest.approx(6.0, abs=1e-5)


@pytest.mark.parametrize(
    "old, new",
    [
        (b"element chunk 3", b"element chunk 2"),
        (b"element chunk 3", b"element chunk 4"),
        (b"element vertex 600", b"element vertex 601"),
        (b"element vertex 600", b"element vertex 90000000000"),
        (b"element sh 600", b"element sh 599"),
        (b"property uint packed_scale", b"property int packed_scale"),
        (b"property uint packed_color", b"property uint packed_hue"),
        (b"property float max_scale_z", b"property float maximum"),
        (b"property uchar f_rest_8", b"property uchar f_rest_9"),
        (b"property uchar f_rest_8\n", b""),
        (b"property uchar f_rest_0", b"property char f_rest_0"),
    ],
)
def test_headers_that_lie_are_user_errors(tmp_path, old, new):
    write_compressed_ply(tmp_path / "a.ply", scene(600, 1))
    content = (tmp_path / "a.ply").read_bytes()
    assert old in content
    (tmp_path / "a.ply").write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError):
        read_ply(tmp_path / "a.ply")
