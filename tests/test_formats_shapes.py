from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.formats.gltf import TRIANGLES, Primitive, srgb_to_linear, write_primitive
from splatdistill.formats.ply import write_ply
from splatdistill.formats.shapes import SAMPLES, read_shape
from splatdistill.reference.raster import rotation_matrices
from splatdistill.scene.gaussians import init_blob, sh0_to_rgb

pytestmark = pytest.mark.usefixtures("workplace")
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
RED = np.array([0.8, 0.1, 0.2])


def quiet(text: str) -> None:
    pass


def write_obj(colors: bool = True) -> str:
    tail = " ".join(map(str, RED)) if colors else ""
    lines = [f"v {x} {y} {z} {tail}" for x, y, z in CUBE]
    lines += ["f " + " ".join(f"{i + 1}//1" for i in quad) for quad in QUADS]
    Path("cube.obj").write_text("\n".join(["# a cube", "o cube", *lines]) + "\n")
    return "cube.obj"


def write_mesh_glb() -> str:
    faces = [t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))]
    colors = (srgb_to_linear(np.tile(RED, (8, 1))) * 65535).round().astype("u2")
    attributes = {"POSITION": CUBE, "COLOR_0": colors}
    write_primitive("cube.glb", Primitive(TRIANGLES, attributes, np.array(faces, "u4").ravel()), [], None)
    return "cube.glb"


@pytest.mark.parametrize("write", [write_obj, write_mesh_glb])
def test_a_mesh_becomes_flat_gaussians_evenly_on_its_surface(write):
    scene = read_shape(write(), up="z", note=quiet)
    means = scene["means"].detach()
    assert len(means) == SAMPLES
    onto = (means.abs() < 1e-5) | ((means - 1).abs() < 1e-5)  # on a face: one coordinate is 0 or 1
    assert onto.any(1).all() and means.min() > -1e-5 and means.max() < 1 + 1e-5
    shares = torch.stack([(means[:, axis] - side).abs() < 1e-5 for axis in range(3) for side in (0, 1)])
    torch.testing.assert_close(shares.float().mean(1), torch.full((6,), 1 / 6), atol=0.01, rtol=0.0)
    normals = rotation_matrices(scene["quats"].detach())[:, :, 2]  # the thin axis
    on_one = onto.sum(1) == 1
    assert (normals.abs()[onto & on_one[:, None]] > 0.999).all()
    rgb = sh0_to_rgb(scene["sh0"].detach())[:, 0]
    torch.testing.assert_close(rgb, torch.tensor(RED, dtype=torch.float32).expand_as(rgb), atol=2e-3, rtol=0)


def test_a_mesh_has_y_up_unless_told():
    tall = (
        Path(write_obj(colors=False))
        .read_text()
        .replace("v 0.0 1.0", "v 0.0 3.0")
        .replace("v 1.0 1.0", "v 1.0 3.0")
    )
    Path("tall.obj").write_text(tall)
    extents = [
        np.ptp(read_shape("tall.obj", up, note=quiet)["means"].detach().numpy(), 0) for up in (None, "z")
    ]
    assert extents[0][2] == pytest.approx(3, abs=0.01) and extents[1][1] == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("colored", [True, False])
def test_a_point_cloud_becomes_gaussians_at_its_points(colored):
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype("f4")
    table: Any = np.empty(
        200, [("x", "f4"), ("y", "f4"), ("z", "f4")] + [(c, "u1") for c in ("red", "green", "blue")] * colored
    )
    for axis, column in zip("xyz", points.T, strict=True):
        table[axis] = column
    for channel, value in zip(("red", "green", "blue") * colored, (255, 0, 51), strict=False):
        table[channel] = value
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write("points.ply")
    scene = read_shape("points.ply", note=quiet)
    torch.testing.assert_close(scene["means"].detach(), torch.from_numpy(points))
    rgb = sh0_to_rgb(scene["sh0"].detach())[0, 0].tolist()
    assert rgb == pytest.approx([1.0, 0.0, 0.2] if colored else [0.5] * 3, abs=1e-5)
    apart = (scene["means"][:, None] - scene["means"]).norm(dim=-1)
    distances = apart.fill_diagonal_(torch.inf).amin(1)
    assert scene["scales"].exp()[0, 0].item() == pytest.approx(distances.median().item() / 2, rel=1e-3)


def test_a_splat_is_read_as_one():
    blob = init_blob(20)
    write_ply("splat.ply", blob)
    assert torch.equal(read_shape("splat.ply", note=quiet)["means"], blob["means"])


def test_mistakes_are_one_line():
    Path("broken.ply").write_bytes(b"ply\nnothing")
    Path("empty.obj").write_text("v 0 0 0\n")
    Path("far.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 9\n")
    Path("flat.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 1\n")
    Path("odd.obj").write_text("v 0 a 0\n")
    Path("broken.glb").write_bytes(b"glTF")
    cases = {
        "broken.ply": "broken.ply",
        "empty.obj": "no triangle",
        "far.obj": "that it lacks",
        "flat.obj": "area",
    }
    cases |= {
        "odd.obj": "no sound .obj",
        "broken.glb": "glb",
        "none.obj": "cannot read",
        "none.ply": "none.ply",
    }
    for name, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            read_shape(name, note=quiet)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--from-up"):
        read_shape(write_obj(), program="trellis", note=quiet)
