import json
import struct

import numpy as np
import pytest
import torch
from format_errors import BOUNDS, decode_glb, errors, round_trip, scene

from splatdistill.errors import UserError
from splatdistill.formats.glb import write_glb
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


def test_the_fallback_colour_is_linear_light(tmp_path):
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
    back = decode_glb(tmp_path / "a.glb")
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
