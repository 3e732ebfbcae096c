import numpy as np
import pytest
import torch
from format_errors import BOUNDS, BYTE, errors, scene
from gsplat import export_splats
from plyfile import PlyData, PlyElement

from splatdistill.errors import UserError
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.formats.splat import read_dot_splat
from splatdistill.scene import gaussians as G

AWKWARD = ' a "red"\nmushroom\r\t\\n: é 🍄 \x00 comment end_header\nelement vertex 9  '


def blob(count=20, degree=1, seed=0):
    scene = G.init_blob(count, sh_degree=degree, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        scene["shN"].normal_()
        scene["opacities"].normal_()
        scene["scales"].normal_()
    return scene


def names(degree):
    rest = [f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1))]
    head = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    return [*head, *rest, "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


@pytest.mark.parametrize("degree", range(4))
def test_round_trip_is_bit_exact(tmp_path, degree):
    scene = blob(degree=degree)
    with torch.no_grad():
        scene["means"][0] = torch.tensor([-0.0, 1e-42, 3e38])
    assert write_ply(tmp_path / "a.ply", scene) == 0
    back, _ = read_ply(tmp_path / "a.ply")
    for name in G.NAMES:
        a, b = (value[name].detach().contiguous() for value in (scene, back))
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
        assert back[name].requires_grad
    write_ply(tmp_path / "b.ply", back)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


@pytest.mark.parametrize("degree", range(4))
def test_another_reader_finds_the_inria_layout(tmp_path, degree):
    scene = blob(degree=degree)
    write_ply(tmp_path / "a.ply", scene, {"prompt": "x"})
    ply = PlyData.read(str(tmp_path / "a.ply"))
    vertex = ply["vertex"]
    assert ply.byte_order == "<" and not ply.text and len(ply.elements) == 1
    assert [p.name for p in vertex.properties] == names(degree)
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    assert not any(vertex[n].any() for n in ("nx", "ny", "nz"))
    K = (degree + 1) ** 2
    for c in range(3):
        assert np.array_equal(vertex[f"f_dc_{c}"], scene["sh0"][:, 0, c].detach().numpy())
        for k in range(K - 1):
            expected = scene["shN"][:, k, c].detach().numpy()
            assert np.array_equal(vertex[f"f_rest_{c * (K - 1) + k}"], expected)
    assert np.array_equal(vertex["rot_0"], scene["quats"][:, 0].detach().numpy())
    assert np.array_equal(vertex["opacity"], scene["opacities"].detach().numpy())


@pytest.mark.parametrize("text", [AWKWARD, "", "a red mushroom", " ", "\\", "\\x20", "\ud800"])
def test_comments_of_any_text_round_trip_on_one_line_each(tmp_path, text):
    write_ply(tmp_path / "a.ply", blob(), {"prompt": text, "seed": "3"})
    header = (tmp_path / "a.ply").read_bytes().split(b"\nend_header\n")[0]
    assert sum(line.startswith(b"comment ") for line in header.split(b"\n")) == 2
    assert len(PlyData.read(str(tmp_path / "a.ply")).comments) == 2
    assert read_ply(tmp_path / "a.ply")[1] == {"prompt": text, "seed": "3"}


def test_non_finite_gaussians_are_dropped_one_by_one_and_counted(tmp_path):
    scene = blob(10)
    with torch.no_grad():
        scene["opacities"][2] = float("nan")
        scene["shN"][5, 1, 2] = float("inf")
    assert write_ply(tmp_path / "a.ply", scene) == 2
    kept = [i for i in range(10) if i not in (2, 5)]
    assert torch.equal(read_ply(tmp_path / "a.ply")[0]["means"], scene["means"][kept])


def test_an_empty_scene_round_trips(tmp_path):
    write_ply(tmp_path / "a.ply", blob(0, 2))
    back, _ = read_ply(tmp_path / "a.ply")
    assert back["means"].shape == (0, 3) and G.sh_degree_of(back) == 2


def test_extra_properties_elements_and_number_types_are_accepted(tmp_path):
    types = [("label", "i4"), *((n, "f8" if n == "x" else "f4") for n in names(0)), ("red", "u1")]
    rows = np.zeros(7, types)
    rows["x"], rows["rot_0"] = np.arange(7), 1
    extra = PlyElement.describe(np.zeros(3, [("a", "i2")]), "camera")
    faces = PlyElement.describe(
        np.array([([0, 1, 2],)], dtype=[("vertex_indices", "O")]), "face", val_types={"vertex_indices": "i4"}
    )
    vertex = PlyElement.describe(rows, "vertex")
    for order in "<>":
        PlyData([extra, vertex, faces], byte_order=order, comments=["made by hand"]).write(
            str(tmp_path / "a.ply")
        )
        back, comments = read_ply(tmp_path / "a.ply")
        assert back["means"][:, 0].tolist() == list(range(7)) and comments == {"": "made by hand"}


def test_a_header_with_carriage_returns_is_read(tmp_path):
    write_ply(tmp_path / "a.ply", blob(), {"prompt": "x"})
    header, data = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    (tmp_path / "b.ply").write_bytes((header + b"end_header\n").replace(b"\n", b"\r\n") + data)
    back, comments = read_ply(tmp_path / "b.ply")
    assert torch.equal(back["means"], read_ply(tmp_path / "a.ply")[0]["means"]) and comments == {
        "prompt": "x"
    }


def test_every_truncation_is_a_user_error(tmp_path):
    write_ply(tmp_path / "a.ply", blob(6, 0), {"prompt": "x"})
    data = (tmp_path / "a.ply").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.ply").write_bytes(data[:length])
        with pytest.raises(UserError):
            read_ply(tmp_path / "b.ply")


def test_flipped_bytes_give_a_scene_or_a_user_error(tmp_path):
    write_ply(tmp_path / "a.ply", blob(4, 0), {"prompt": "x"})
    data = (tmp_path / "a.ply").read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(1500):
        broken = bytearray(data)
        for where in rng.integers(0, data.index(b"end_header") + 20, rng.integers(1, 4)):
            broken[where] = rng.integers(0, 256)
        (tmp_path / "b.ply").write_bytes(broken)
        try:
            read_ply(tmp_path / "b.ply", lambda text: None)
        except UserError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 500


@pytest.mark.parametrize(
    "old, new",
    [
        (b"element vertex 5", b"element vertex 99999999999999999999999999"),
        (b"element vertex 5", b"element vertex 900000000000"),
        (b"element vertex 5", b"element vertex -5"),
        (b"element vertex 5", b"element cloud 5"),
        (b"binary_little_endian", b"ascii"),
        (b"property float x", b"property list uchar float x"),
        (b"property float y", b"property float x"),
        (b"property float opacity", b"property float opacities"),
        (b"property float nx", b"property float f_rest_0"),
        (b"ply\n", b"plx\n"),
        (b"comment prompt: x", b"comment " + b"x" * (1 << 21)),
    ],
)
def test_headers_that_lie_are_user_errors(tmp_path, old, new):
    write_ply(tmp_path / "a.ply", blob(5, 0), {"prompt": "x"})
    data = (tmp_path / "a.ply").read_bytes()
    assert old in data
    (tmp_path / "a.ply").write_bytes(data.replace(old, new, 1))
    with pytest.raises(UserError):
        read_ply(tmp_path / "a.ply")


def test_missing_files_and_folders_are_user_errors(tmp_path):
    for path in (tmp_path / "no.ply", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_ply(path)
    with pytest.raises(UserError, match="cannot write"):
        write_ply(tmp_path / "no" / "a.ply", blob())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_ply(tmp_path / "a.ply", blob())
    before = (tmp_path / "a.ply").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_ply(tmp_path / "a.ply", blob(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == before


def by_gaussforge(path, name):
    """Return the splats of a file as gaussforge converts them to .ply, in the axes of the file."""
    import gaussforge

    result = gaussforge.GaussForge().convert(path.read_bytes(), name, "ply")
    assert "error" not in result, result
    converted = path.with_name("gaussforge.ply")
    converted.write_bytes(result["data"])
    return read_ply(converted)[0]


def by_gsplat(path, scene, kind):
    """Write a scene by gsplat's exporter, in the order of our reading: that of the nearest centers."""
    export_splats(**{name: scene[name].detach() for name in G.NAMES}, format=kind, save_to=str(path))
    read = read_dot_splat if kind == "splat" else read_ply
    back, _ = read(path)
    return G.select(back, torch.cdist(scene["means"], back["means"]).argmin(1))


@pytest.mark.parametrize("degree", range(4))
def test_files_of_gsplat_are_read(tmp_path, degree):
    original = scene(200, degree)
    with torch.no_grad():
        original["opacities"].clamp_(min=-3.0)  # it leaves out what is invisible
    exact = errors(original, by_gsplat(tmp_path / "a.ply", original, "ply"))
    packed = errors(original, by_gsplat(tmp_path / "b.ply", original, "ply_compressed"))
    assert max(exact.values()) == 0
    assert all(packed[name] <= bound for name, bound in BOUNDS[".compressed.ply"].items()), packed
    simple = errors(original, by_gsplat(tmp_path / "c.splat", original, "splat"))
    assert simple["center"] == 0 and simple["scale"] < 1e-6  # it cuts the bytes where we round them
    assert max(simple["opacity"], simple["color"]) <= 2 * BYTE and simple["rotation_deg"] < 1.8


@pytest.mark.parametrize("degree", range(4))
def test_gaussforge_reads_the_same_scene(tmp_path, degree):
    pytest.importorskip("gaussforge")
    scene = blob(degree=degree)
    write_ply(tmp_path / "a.ply", scene)
    theirs = by_gaussforge(tmp_path / "a.ply", "ply")
    assert all(torch.equal(theirs[name], scene[name]) for name in G.NAMES)


def test_large_files_are_read_in_pieces(tmp_path, monkeypatch):
    scene = blob(50, 2)
    write_ply(tmp_path / "a.ply", scene)
    monkeypatch.setattr("splatdistill.formats.ply.MAX_PIECE_BYTES", 1000)
    back, _ = read_ply(tmp_path / "a.ply")
    assert all(torch.equal(back[name], scene[name]) for name in G.NAMES)


def test_a_header_of_many_elements_and_lists_is_no_trap(tmp_path):
    lines = b"".join(b"element e%d 0\nproperty list char char p\n" % i for i in range(900))
    head = b"ply\nformat binary_little_endian 1.0\n"
    (tmp_path / "a.ply").write_bytes(head + lines + b"element vertex 1\nproperty float x\nend_header\n")
    with pytest.raises(UserError, match="too few for its 1 rows of vertex"):
        read_ply(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(head + 3 * lines.replace(b"e", b"ee") + b"end_header\n")
    with pytest.raises(UserError, match="expected"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize(
    "body", [b"", b"comment format ascii 1.0\n", b"element vertex 1\nproperty float x\n"]
)
def test_a_header_that_does_not_say_its_format_is_a_user_error(tmp_path, body):
    (tmp_path / "a.ply").write_bytes(b"ply\n" + body + b"end_header\n" + bytes(8))
    with pytest.raises(UserError):
        read_ply(tmp_path / "a.ply")


def test_a_header_of_too_many_properties_is_a_user_error(tmp_path):
    lines = b"".join(b"property float p%d\n" % i for i in range(3000))
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    (tmp_path / "a.ply").write_bytes(head + lines + b"end_header\n" + bytes(12000))
    with pytest.raises(UserError, match="3001 elements and properties"):
        read_ply(tmp_path / "a.ply")
