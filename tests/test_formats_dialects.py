import struct

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from splatdistill.errors import UserError
from splatdistill.formats.ply import read_ply, read_points
from splatdistill.formats.storable import FLAT
from splatdistill.reference.raster import SH0

PLAIN = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
PLAIN += [f"rot_{i}" for i in range(4)]


def rows(names, count=5, types=None):
    """Vertices whose properties are all different."""
    table = np.empty(count, [(name, (types or {}).get(name, "f4")) for name in names])
    for column, name in enumerate(names):
        table[name] = np.arange(count) + 10 * column
    return table


def written(path, vertex, before=(), after=(), **options):
    elements = [*before, PlyElement.describe(vertex, "vertex"), *after]
    PlyData(elements, **{"byte_order": "<", **options}).write(str(path))
    return path


def faces(lists):
    table = np.empty(len(lists), [("vertex_indices", "O")])
    table["vertex_indices"] = lists
    return PlyElement.describe(table, "face", val_types={"vertex_indices": "i4"})


def triangles(count):
    table = np.empty(count, [("vertex_indices", "i4", (3,))])
    table["vertex_indices"] = np.arange(3 * count).reshape(-1, 3) % 5
    return PlyElement.describe(table, "face")


def test_two_scales_are_2d_gaussians_with_a_thin_third(tmp_path):
    notes = []
    path = written(tmp_path / "a.ply", rows([name for name in PLAIN if name != "scale_2"]))
    back, _ = read_ply(path, notes.append)
    assert back["scales"][:, 2].tolist() == [FLAT] * 5 and back["scales"][0, :2].tolist() == [70, 80]
    assert len(notes) == 1 and "2D Gaussians" in notes[0] and "a.ply" in notes[0]


def test_one_scale_is_round(tmp_path):
    notes = []
    names = [name for name in PLAIN if name not in ("scale_1", "scale_2")]
    back, _ = read_ply(written(tmp_path / "a.ply", rows(names)), notes.append)
    assert back["scales"][1].tolist() == [71, 71, 71] and len(notes) == 1


@pytest.mark.parametrize("kind, most", [("u1", 255), ("u2", 65535), ("f4", 1)])
def test_red_green_blue_are_colors(tmp_path, kind, most):
    names = [name for name in PLAIN if not name.startswith("f_dc")] + ["red", "green", "blue"]
    vertex = rows(names, types=dict.fromkeys(("red", "green", "blue"), kind))
    vertex["red"], vertex["green"], vertex["blue"] = most, 0, most * 0.4
    back, _ = read_ply(written(tmp_path / "a.ply", vertex))
    rgb = back["sh0"][0, 0] * SH0 + 0.5
    assert rgb.tolist() == pytest.approx([1, 0, 0.4], abs=1e-3)


def test_coefficients_win_over_red_green_blue(tmp_path):
    back, _ = read_ply(written(tmp_path / "a.ply", rows([*PLAIN, "red", "green", "blue"])))
    assert back["sh0"][0, 0].tolist() == [30, 40, 50]


@pytest.mark.parametrize("degree", [4, 5])
def test_bands_above_3_are_left_out_with_a_note(tmp_path, degree):
    coefficients, notes = degree * (degree + 2), []
    path = written(tmp_path / "a.ply", rows([*PLAIN, *(f"f_rest_{i}" for i in range(3 * coefficients))]))
    back, _ = read_ply(path, notes.append)
    assert back["shN"].shape == (5, 15, 3) and len(notes) == 1 and f"SH degree {degree}" in notes[0]
    first = 10 * len(PLAIN)  # channel-major: the channels lie `coefficients` apart
    assert back["shN"][0, :, 1].tolist() == [first + 10 * (coefficients + i) for i in range(15)]


@pytest.mark.parametrize("total", [1, 10, 46, 44])
def test_incomplete_bands_are_one_line(tmp_path, total):
    path = written(tmp_path / "a.ply", rows([*PLAIN, *(f"f_rest_{i}" for i in range(total))]))
    with pytest.raises(UserError, match="f_rest"):
        read_ply(path)


def test_the_3d_filter_of_mip_splatting_widens_and_fades(tmp_path):
    vertex, notes = rows([*PLAIN, "filter_3D"], 1), []
    for name in ("scale_0", "scale_1", "scale_2"):
        vertex[name] = np.log(0.3)
    vertex["opacity"], vertex["filter_3D"] = 0.0, 0.4
    back, _ = read_ply(written(tmp_path / "a.ply", vertex), notes.append)
    assert back["scales"].exp().detach().numpy() == pytest.approx(np.full((1, 3), 0.5), rel=1e-5)
    assert back["opacities"].sigmoid().item() == pytest.approx(0.5 * 0.6**3, rel=1e-5)
    assert len(notes) == 1 and "filter" in notes[0]


@pytest.mark.parametrize("order", "<>")
def test_faces_before_the_vertices_are_passed_over(tmp_path, order):
    path = written(tmp_path / "a.ply", rows(PLAIN), before=[triangles(7)], byte_order=order)
    back, _ = read_ply(path)
    assert back["means"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_faces_of_different_sizes_are_passed_over_behind_and_one_line_before(tmp_path):
    mixed = faces([[0, 1, 2], [0, 1, 2, 3]])
    back, _ = read_ply(written(tmp_path / "a.ply", rows(PLAIN), after=[mixed]))
    assert len(back["means"]) == 5
    with pytest.raises(UserError, match="faces") as error:
        read_ply(written(tmp_path / "b.ply", rows(PLAIN), before=[mixed]))
    assert "\n" not in str(error.value)


def test_files_of_text_are_read(tmp_path):
    written(tmp_path / "a.ply", rows(PLAIN), text=True, before=[faces([[0, 1, 2], [0, 1, 2, 3]])])
    written(tmp_path / "b.ply", rows(PLAIN))
    a, b = (read_ply(tmp_path / f"{name}.ply")[0] for name in "ab")
    assert all((a[name] == b[name]).all() for name in a)


def test_a_large_file_of_text_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("splatdistill.formats.ply.MAX_TEXT_BYTES", 100)
    with pytest.raises(UserError, match="convert it to a binary one"):
        read_ply(written(tmp_path / "a.ply", rows(PLAIN), text=True))


@pytest.mark.parametrize(
    "extra, without, says",
    [
        ([], [name for name in PLAIN if name not in "xyz"], "point cloud or a mesh"),
        (["f_anchor_feat_0"], [], "Scaffold-GS"),
        (["trbf_center"], [], "moves"),
        ([], ["rot_3"], "no property rot_3"),
        ([], ["x"], "no property x"),
        ([], ["f_dc_1"], "no property f_dc_1"),
    ],
)
def test_what_is_no_splat_is_named_in_one_line(tmp_path, extra, without, says):
    names = [name for name in PLAIN if name not in without] + extra
    with pytest.raises(UserError, match=says) as error:
        read_ply(written(tmp_path / "a.ply", rows(names)))
    assert "\n" not in str(error.value)


def test_comments_of_other_programs_are_kept(tmp_path):
    lines = ["SplatRenderMode: mip", "made by hand", "Vertical axis: y", "two: colons: here"]
    vertex = rows(PLAIN)
    PlyData([PlyElement.describe(vertex, "vertex")], comments=lines).write(str(tmp_path / "a.ply"))
    gaussians, comments = read_ply(tmp_path / "a.ply")
    assert comments["SplatRenderMode"] == "mip" and comments[""] == "made by hand"
    from splatdistill.formats import write_splat

    for ending in (".ply", ".compressed.ply"):
        write_splat(tmp_path / f"b{ending}", gaussians, comments)
        assert sorted(PlyData.read(str(tmp_path / f"b{ending}")).comments) == sorted(lines)


def test_comments_that_are_no_ascii_are_read(tmp_path):
    written(tmp_path / "a.ply", rows(PLAIN))
    content = (tmp_path / "a.ply").read_bytes()
    line = "comment prompt: ein grüner Würfel 🍄\n".encode()
    (tmp_path / "a.ply").write_bytes(content.replace(b"element vertex", line + b"element vertex"))
    assert read_ply(tmp_path / "a.ply")[1] == {"prompt": "ein grüner Würfel 🍄"}


def test_counts_are_held_against_the_file_before_anything_is_mapped(tmp_path, monkeypatch):
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000000000\n"
    head += b"".join(f"property float {name}\n".encode() for name in PLAIN) + b"end_header\n"
    (tmp_path / "a.ply").write_bytes(head + bytes(560))
    monkeypatch.setattr("numpy.memmap", None)
    with pytest.raises(UserError, match="too few"):
        read_ply(tmp_path / "a.ply")


def test_a_list_that_claims_to_be_long_is_one_line(tmp_path):
    head = b"ply\nformat binary_little_endian 1.0\nelement face 1\nproperty list uint double a\n"
    head += b"element vertex 1\n"
    head += b"".join(f"property float {name}\n".encode() for name in PLAIN) + b"end_header\n"
    (tmp_path / "a.ply").write_bytes(head + struct.pack("<I", 0xFFFFFFFF) + bytes(500))
    with pytest.raises(UserError, match="too few for its 1 rows of face"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("text", [False, True])
def test_points_are_read_with_and_without_colors(tmp_path, text):
    vertex = rows(
        ["x", "y", "z", "red", "green", "blue"], types=dict.fromkeys(("red", "green", "blue"), "u1")
    )
    vertex["red"], vertex["green"], vertex["blue"] = 255, 0, 51
    points, colors = read_points(written(tmp_path / "a.ply", vertex, text=text, after=[triangles(2)]))
    assert points.dtype == np.float32 and points[3].tolist() == [3, 13, 23]
    assert colors is not None and colors[0].tolist() == pytest.approx([1, 0, 0.2])
    points, colors = read_points(written(tmp_path / "b.ply", rows(["x", "y", "z"]), text=text))
    assert len(points) == 5 and colors is None


def test_what_holds_no_points_is_one_line(tmp_path):
    for content in (
        b"",
        b"ply\n",
        b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1\n2\n3\n",
    ):
        (tmp_path / "a.ply").write_bytes(content)
        with pytest.raises(UserError):
            read_points(tmp_path / "a.ply")


def test_damaged_text_is_one_line(tmp_path):
    written(tmp_path / "a.ply", rows(PLAIN), text=True)
    content = (tmp_path / "a.ply").read_bytes()
    start = content.index(b"end_header\n") + 11
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(content)
        for place in random.integers(start, len(content), 3):
            broken[place] = random.integers(256)
        (tmp_path / "b.ply").write_bytes(broken)
        try:
            read_ply(tmp_path / "b.ply")
        except UserError as error:
            assert "\n" not in str(error)


def test_plyfile_is_imported_by_one_file_alone():
    from pathlib import Path

    import splatdistill

    folder = Path(splatdistill.__file__).parent
    using = [
        path.name
        for path in folder.rglob("*.py")
        if "import PlyData" in path.read_text() or "import plyfile" in path.read_text()
    ]
    assert using == ["ply.py"]
