import json
import math
import struct

import numpy as np
import pytest
import torch
from format_errors import BOUNDS, errors, round_trip, scene

from splatdistill.errors import UserError
from splatdistill.formats.glb import read_glb, write_glb
from splatdistill.formats.gltf import srgb_to_linear
from splatdistill.scene.gaussians import sh_degree_of


def document_of(path):
    content = path.read_bytes()
    magic, version, length, json_length, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    assert json_length % 4 == 0 and len(content) % 4 == 0
    return json.loads(content[20 : 20 + json_length]), content[28 + json_length :]


@pytest.mark.parametrize("degree", range(4))
def test_the_file_says_what_the_extension_asks_for(tmp_path, degree):
    write_glb(tmp_path / "a.glb", scene(9, degree), {"prompt": "ä 🍄"})
    document, binary = document_of(tmp_path / "a.glb")
    assert document["asset"]["version"] == "2.0" and document["asset"]["extras"] == {"prompt": "ä 🍄"}
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    extension = primitive["extensions"]["KHR_gaussian_splatting"]
    assert extension["kernel"] == "ellipse" and extension["colorSpace"] == "srgb_rec709_display"
    higher = [f"SH_DEGREE_{d}_COEF_{n}" for d in range(1, degree + 1) for n in range(2 * d + 1)]
    names = ["ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0", *higher]
    assert list(primitive["attributes"]) == [
        "POSITION",
        "COLOR_0",
        *(f"KHR_gaussian_splatting:{n}" for n in names),
    ]
    for accessor in (document["accessors"][i] for i in primitive["attributes"].values()):
        view = document["bufferViews"][accessor["bufferView"]]
        assert accessor["count"] == 9 and view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= document["buffers"][0]["byteLength"] == len(binary)


@pytest.mark.parametrize("degree", [0, 3])
def test_errors_stay_within_what_is_promised(tmp_path, degree):
    original = scene(300, degree)
    found = errors(original, round_trip(tmp_path / "a.glb", original))
    assert all(found[name] <= bound for name, bound in BOUNDS[".glb"].items()), found


def test_stored_values_are_legal(tmp_path):
    gaussians = scene(50, 1)
    with torch.no_grad():
        gaussians["opacities"][:2] = torch.tensor([90.0, -90.0])
        gaussians["scales"][2] = -300.0
        gaussians["quats"][3] = 0.0
    write_glb(tmp_path / "a.glb", gaussians)
    document, binary = document_of(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def floats(name, width):
        view = document["bufferViews"][document["accessors"][attributes[name]]["bufferView"]]
        return np.frombuffer(binary, "<f4", 50 * width, view["byteOffset"]).reshape(50, width)

    assert (floats("KHR_gaussian_splatting:SCALE", 3) > 0).all()
    opacity = floats("KHR_gaussian_splatting:OPACITY", 1)
    assert opacity.min() >= 0 and opacity.max() <= 1
    rotation = floats("KHR_gaussian_splatting:ROTATION", 4)
    assert np.linalg.norm(rotation, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    assert rotation[3].tolist() == [0, 0, 0, 1]
    position, accessor = floats("POSITION", 3), document["accessors"][attributes["POSITION"]]
    assert accessor["min"] == position.min(0).tolist() and accessor["max"] == position.max(0).tolist()


def test_the_fallback_color_is_linear_light(tmp_path):
    gaussians = scene(5, 0)
    write_glb(tmp_path / "a.glb", gaussians)
    document, binary = document_of(tmp_path / "a.glb")
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"], accessor["normalized"]) == (5123, "VEC4", True)
    stored = np.frombuffer(binary, "<u2", 20, document["bufferViews"][1]["byteOffset"]).reshape(5, 4) / 65535
    shown = (gaussians["sh0"][:, 0] * 0.28209479177387814 + 0.5).clamp(0, 1).detach().numpy()
    assert np.abs(stored[:, :3] - srgb_to_linear(shown)).max() < 1e-5
    assert np.abs(stored[:, 3] - gaussians["opacities"].sigmoid().detach().numpy()).max() < 1e-5
    assert srgb_to_linear(np.array([0.0, 1.0, 0.5])) == pytest.approx([0, 1, 0.21404], abs=1e-5)


def test_gaussians_that_are_not_finite_are_left_out_and_none_left_is_a_user_error(tmp_path):
    gaussians = scene(3, 2)
    with torch.no_grad():
        gaussians["means"][1, 1] = float("inf")
    assert write_glb(tmp_path / "a.glb", gaussians) == 1
    back, _ = read_glb(tmp_path / "a.glb")
    assert len(back["means"]) == 2 and sh_degree_of(back) == 2
    with torch.no_grad():
        gaussians["means"].fill_(float("nan"))
    with pytest.raises(UserError):
        write_glb(tmp_path / "b.glb", gaussians)
    assert not (tmp_path / "b.glb").exists()


def test_what_does_not_fit_the_container_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr("splatdistill.formats.glb.MAX_BYTES", (1 << 20) + 100)
    with pytest.raises(UserError, match="4 GiB"):
        write_glb(tmp_path / "a.glb", scene(3, 2))


def rewritten(path, change):
    """Return a copy of a .glb whose JSON was changed in place by a function."""
    document, binary = document_of(path)
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(binary), len(text), b"JSON")
    target = path.with_name("changed.glb")
    target.write_bytes(head + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary)
    return target


@pytest.mark.parametrize("degree", range(4))
def test_what_is_written_is_read(tmp_path, degree):
    original = scene(50, degree)
    write_glb(tmp_path / "a.glb", original, {"prompt": "ä 🍄"})
    back, comments = read_glb(tmp_path / "a.glb")
    assert comments == {"prompt": "ä 🍄"} and sh_degree_of(back) == degree
    found = errors(original, back)
    assert all(found[name] <= bound for name, bound in BOUNDS[".glb"].items()), found


def test_nodes_move_turn_and_scale_their_gaussians(tmp_path):
    original = scene(30, 2)
    write_glb(tmp_path / "a.glb", original)
    half = math.sqrt(0.5)
    outer = {"children": [1], "translation": [1, 2, 3], "rotation": [0, 0, half, half], "scale": [2, 2, 2]}
    inner = {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0.5, 0, 0, 1]}
    path = rewritten(tmp_path / "a.glb", lambda document: document.update(nodes=[outer, inner]))
    back, _ = read_glb(path)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    means = 2 * (original["means"] + torch.tensor([0.5, 0, 0])) @ turn.T + torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(back["means"], means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back["scales"], original["scales"] + math.log(2), atol=1e-4, rtol=0)


def test_the_gaussians_of_several_nodes_come_together(tmp_path):
    write_glb(tmp_path / "a.glb", scene(30, 1))

    def twice(document):
        document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0]}]
        document["scenes"] = [{"nodes": [0, 1]}]

    back, _ = read_glb(rewritten(tmp_path / "a.glb", twice))
    assert back["means"].shape == (60, 3) and back["shN"].shape == (60, 3, 3)


def test_fractions_in_whole_numbers_are_read(tmp_path):
    original = scene(30, 0)
    write_glb(tmp_path / "a.glb", original)

    def packed(document):  # COLOR_0 is [N, 4] uint16: its alpha is the opacity
        accessors, views = document["accessors"], document["bufferViews"]
        color = document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
        opacity = document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:OPACITY"]
        view = views[accessors[color]["bufferView"]]
        views.append(
            {
                **view,
                "byteOffset": view["byteOffset"] + 6,
                "byteLength": view["byteLength"] - 6,
                "byteStride": 8,
            }
        )
        accessors[opacity].update(bufferView=len(views) - 1, componentType=5123, normalized=True)

    back, _ = read_glb(rewritten(tmp_path / "a.glb", packed))
    assert (back["opacities"].sigmoid() - original["opacities"].sigmoid()).abs().max() < 1e-4


def test_a_mesh_is_no_splat_and_says_so(tmp_path):
    write_glb(tmp_path / "a.glb", scene(3, 0))

    def mesh(document):
        del document["meshes"][0]["primitives"][0]["extensions"]

    with pytest.raises(UserError, match="a mesh is none"):
        read_glb(rewritten(tmp_path / "a.glb", mesh))


def first(document):
    return document["meshes"][0]["primitives"][0]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: d["nodes"][0].update(scale=[1, 1, 2]), "stretches"),
        (lambda d: d["nodes"][0].update(scale=[1, 1, -1]), "mirrors"),
        (lambda d: d["nodes"][0].update(scale=[0, 0, 0]), "stretches"),
        (lambda d: d["nodes"][0].update(scale="big"), "no list of 3 numbers"),
        (lambda d: d["nodes"][0].update(children=[0]), "hold themselves"),
        (lambda d: d["nodes"][0].update(mesh=7), "refers to meshes"),
        (lambda d: d["buffers"][0].update(uri="a.bin"), "another file"),
        (lambda d: d["bufferViews"][0].update(byteLength=10), "ends before"),
        (lambda d: d["bufferViews"][0].update(byteOffset=10**9), "ends before"),
        (lambda d: d["bufferViews"][0].update(byteOffset=-4), "no sound place"),
        (lambda d: d["bufferViews"][0].update(extensions={"EXT_meshopt_compression": {}}), "meshopt"),
        (lambda d: d["accessors"][0].update(count=10**9), "ends before"),
        (lambda d: d["accessors"][0].update(count=2), "different lengths"),
        (lambda d: d["accessors"][0].update(componentType=5130), "no plain one"),
        (lambda d: d["accessors"][0].update(type="VEC2"), "no plain one"),
        (lambda d: d["accessors"][0].update(sparse={}), "sparse"),
        (lambda d: first(d)["attributes"].pop("POSITION"), "no attribute POSITION"),
        (lambda d: first(d)["attributes"].pop("KHR_gaussian_splatting:SH_DEGREE_1_COEF_2"), "no attribute"),
        (lambda d: first(d).update(mode=4), "no points"),
        (
            lambda d: first(d)["extensions"]["KHR_gaussian_splatting"].update(
                extensions={"KHR_spz_compression": {}}
            ),
            "compressed by KHR_spz",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, change, says):
    write_glb(tmp_path / "a.glb", scene(3, 1))
    with pytest.raises(UserError, match=says) as error:
        read_glb(rewritten(tmp_path / "a.glb", change))
    assert "\n" not in str(error.value)


def test_every_truncation_is_a_user_error(tmp_path):
    write_glb(tmp_path / "a.glb", scene(2, 0))
    content = (tmp_path / "a.glb").read_bytes()
    for length in range(len(content)):
        (tmp_path / "b.glb").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_glb(tmp_path / "b.glb")
