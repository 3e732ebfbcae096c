"""The texture of a mesh, and what is read of the textures of others."""

import json
import struct

import numpy as np
import pytest
from test_formats_shapes import CUBE, QUADS, quiet

from splatdistill.errors import UserError
from splatdistill.formats.mesh import write_mesh
from splatdistill.formats.shapes import read_shape
from splatdistill.formats.texture import fill, lay_out
from splatdistill.scene.gaussians import init_blob, rgb_to_sh0, sh0_to_rgb

pytest.importorskip("xatlas")
FACES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))], np.uint32)


def colored(places: np.ndarray) -> np.ndarray:
    return 0.2 + 0.6 * places


def test_every_face_has_its_place_and_its_own_colors():
    layout = lay_out(CUBE, FACES, 128)
    assert layout.places.min() >= 0 and layout.places.max() <= 1
    cut = CUBE[layout.vertices][layout.faces]
    assert np.array_equal(np.sort(cut.sum((1, 2))), np.sort(CUBE[FACES].sum((1, 2))))
    picture = fill(layout, CUBE, colored, 128)
    middles = layout.places[layout.faces].mean(1)
    x, y = (middles * 128).astype(int).T
    expected = colored(cut.mean(1)) * 255
    assert np.abs(picture[y, x] - expected).max() < 4


def test_what_no_triangle_covers_has_a_color_of_the_mesh():
    picture = fill(lay_out(CUBE, FACES, 64), CUBE, lambda places: np.full_like(places, 0.5), 64)
    assert (picture == 128).all()


def blob():
    ball = init_blob(400, 0.5, opacity=0.9, color_noise=0.0)
    ball["sh0"].data.copy_(rgb_to_sh0((ball["means"].detach() + 0.5).clamp(0, 1))[:, None])
    return ball


def test_a_mesh_that_is_written_is_read_with_its_colors(tmp_path):
    pytest.importorskip("fast_simplification")
    write_mesh(tmp_path / "a.glb", blob(), None, 32, 2_000)
    heard = []
    back = read_shape(tmp_path / "a.glb", "z", note=heard.append)
    assert len(heard) == 1  # that it is no splat
    means, rgb = back["means"].detach(), sh0_to_rgb(back["sh0"].detach())[:, 0]
    expected = (means + 0.5).clamp(0, 1)
    assert (rgb - expected).abs().mean() < 0.12  # of the surface, colors of what is near it mixed in
    assert np.corrcoef(rgb[:, 2], expected[:, 2])[0, 1] > 0.95


def broken(path, change) -> None:
    """Change the JSON of a .glb."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    document = json.loads(content[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = content[20 + length :]
    head = b"glTF" + struct.pack("<IIII", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    path.write_bytes(head + text + rest)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the bytes of a mesh with a texture."""
    pytest.importorskip("fast_simplification")
    path = tmp_path_factory.mktemp("mesh") / "a.glb"
    write_mesh(path, blob(), None, 16, 500)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["images"][0].pop("bufferView"),
        lambda it: it["images"][0].update(bufferView=0),  # numbers, and no picture
        lambda it: it["meshes"][0]["primitives"][0]["attributes"].pop("TEXCOORD_0"),
        lambda it: it["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"].update(texCoord=1),
    ],
)
def test_a_texture_of_another_kind_is_told_and_left_out(tmp_path, written, change):
    (tmp_path / "a.glb").write_bytes(written)
    broken(tmp_path / "a.glb", change)
    heard = []
    read_shape(tmp_path / "a.glb", note=heard.append)
    assert any("textures" in line for line in heard)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["textures"][0].update(source=7),
        lambda it: it["images"][0].update(bufferView=99),
        lambda it: it["bufferViews"][-1].update(byteLength=1 << 31),
        lambda it: it["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"].update(index=-1),
    ],
)
def test_a_texture_that_is_not_there_is_one_line(tmp_path, written, change):
    (tmp_path / "a.glb").write_bytes(written)
    broken(tmp_path / "a.glb", change)
    with pytest.raises(UserError):
        read_shape(tmp_path / "a.glb", note=quiet)
