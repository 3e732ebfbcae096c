import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.formats.gltf import srgb_to_linear
from splatdistill.teaching.assets import Entry, load_entries, load_mesh, read_glb, read_obj

TRIANGLE = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], "<f4")


def entry(**fields: Any) -> Entry:
    given: dict[str, Any] = dict(
        id="x", file="x.glb", noun="thing", also=(), phrases=(), front_azimuth_deg=None
    )
    given |= dict(symmetric=False, tintable=False, rank=0)
    given |= fields
    return Entry(**given)


def glb(positions: np.ndarray, color=(0.5, 0.25, 0.125, 1.0), colors: np.ndarray | None = None) -> bytes:
    """Return a binary glTF file of loose triangles; `colors` [n, 4] uint16 are normalized vertex colors."""
    indices = np.arange(len(positions), dtype="<u2")
    parts = {"POSITION": (positions.astype("<f4"), 5126, "VEC3")}
    if colors is not None:
        parts["COLOR_0"] = (colors.astype("<u2"), 5123, "VEC4")
    body, views, accessors, attributes = b"", [], [], {}
    for name, (values, kind, shape) in (parts | {"indices": (indices, 5123, "SCALAR")}).items():
        raw = values.tobytes()
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(raw)})
        body += raw + bytes(-len(raw) % 4)
        attributes[name] = len(accessors)
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": kind, "type": shape, "count": len(values)}
        )
        accessors[-1]["normalized"] = name == "COLOR_0"
    primitive = {"indices": attributes.pop("indices"), "attributes": attributes, "material": 0}
    tree = {
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": color}}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(body), 0x004E4942) + body
    )
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def test_glb_factor_is_linear_and_multiplies_vertex_colors():
    half = np.full((3, 4), 32768)
    mesh = read_glb(glb(TRIANGLE, colors=half))
    np.testing.assert_array_equal(mesh.positions, TRIANGLE)
    np.testing.assert_allclose(mesh.colors[0, :3], np.array([0.5, 0.25, 0.125]) * 32768 / 65535, rtol=1e-5)
    assert (mesh.colors[:, 3] == 1).all()
    np.testing.assert_allclose(mesh.normals, [[0, 0, 1]] * 3)


def test_front_turns_to_plus_x_and_up_to_plus_z(tmp_path):
    # front toward +z in the file is declared as 90; up is +y
    points = np.array([(0, 0, 0), (0, 0, 1), (0, 0.5, 0)], float)
    (tmp_path / "x.glb").write_bytes(glb(points))
    mesh = load_mesh(entry(front_azimuth_deg=90.0), tmp_path)
    size = np.ptp(mesh.positions, axis=0)
    np.testing.assert_allclose(size, [1.0, 0.0, 0.5], atol=1e-6)
    tip = mesh.positions[1] - mesh.positions[0]
    np.testing.assert_allclose(tip, [1, 0, 0], atol=1e-6)
    assert mesh.positions[:, 2].min() == pytest.approx(0, abs=1e-6)


def archive(files: dict[str, bytes]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for name, data in files.items():
            written.writestr(name, data)
    return zipfile.ZipFile(stream)


def test_obj_quads_are_cut_and_kd_is_what_a_screen_shows():
    obj = b"mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nusemtl m\nf 1 2 3 -1\n"
    mesh = read_obj(archive({"d/a.obj": obj, "d/a.mtl": b"newmtl m\nKd 0.5 0.2 0.1\nd 1\n"}), "d/a.obj")
    assert len(mesh.positions) == 6
    np.testing.assert_allclose(mesh.colors[0, :3], srgb_to_linear(np.array([0.5, 0.2, 0.1])), rtol=1e-5)
    np.testing.assert_array_equal(mesh.positions[5], [0, 1, 0])


def test_obj_picture_is_read_upright():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0] = 255  # the top row, where v is 1
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    obj = b"mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nusemtl m\nf 1/1 2/2 3/3\n"
    files = {"a.obj": obj, "a.mtl": b"newmtl m\nmap_Kd p.png\n", "p.png": stream.getvalue()}
    mesh = read_obj(archive(files), "a.obj")
    assert mesh.textures.shape == (1, 128, 128, 4)
    v = mesh.uvs[:, 1] % 1.0  # OpenGL's first row of texels is v = 0: the picture's top
    np.testing.assert_allclose(v, [0, 0, 0], atol=1e-6)
    assert mesh.uvs[2, 1] == -1 and mesh.uvs[0, 1] == 0
    assert (mesh.textures[0, 0, :, :3] == 255).all()


def test_a_missing_material_file_leaves_gray():
    mesh = read_obj(archive({"a.obj": b"mtllib no.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"}), "a.obj")
    assert np.ptp(mesh.colors[:, :3]) == 0


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "a"}]'])
def test_a_broken_list_is_one_clear_error(tmp_path, text):
    (tmp_path / "assets.json").write_text(text)
    with pytest.raises(UserError, match=r"assets\.json"):
        load_entries(tmp_path)


def test_a_broken_model_names_itself(tmp_path):
    (tmp_path / "x.glb").write_bytes(b"glTF")
    with pytest.raises(UserError, match=r"model x"):
        load_mesh(entry(), tmp_path)
    with pytest.raises(UserError, match="sweethome3d-furniture"):
        load_mesh(entry(file="no.sh3f!/a.obj"), tmp_path, tmp_path)
