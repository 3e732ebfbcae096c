import numpy as np
import pytest
import torch
from format_errors import scene
from test_formats_glb import document_of

from splatdistill.errors import UserError
from splatdistill.formats.density import CUT, NARROWEST
from splatdistill.formats.mesh import _grid, surface, write_mesh
from splatdistill.formats.packing import to_splats
from splatdistill.reference.raster import rotation_matrices
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import from_tensors, rgb_to_sh0
from splatdistill.scene.rendering import render

needs_extra = pytest.mark.usefixtures("extra")


@pytest.fixture
def extra():
    for name in ("skimage", "fast_simplification"):
        pytest.importorskip(name, reason="needs the [formats] extra")


def ball(count=400, radius=0.5, scale=0.06):
    """Opaque Gaussians all over a sphere: red where x > 0, else blue."""
    turn = np.pi * (1 + 5**0.5) * np.arange(count)
    z = 1 - 2 * (np.arange(count) + 0.5) / count
    points = np.stack([np.cos(turn) * np.sqrt(1 - z * z), np.sin(turn) * np.sqrt(1 - z * z), z], 1) * radius
    rgb = np.where(points[:, :1] > 0, [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]])
    return from_tensors(
        means=torch.tensor(points),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        scales=torch.full((count, 3), scale).log(),
        opacities=torch.full((count,), 3.0),
        sh0=rgb_to_sh0(torch.tensor(rgb))[:, None],
        shN=torch.zeros(count, 0, 3),
    )


@needs_extra
def test_a_ball_becomes_a_closed_surface_that_faces_outward():
    mesh = surface(to_splats(ball())[0], 64)
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    corners = mesh.vertices[mesh.faces].astype(float)
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    outer = np.linalg.norm(mesh.vertices, axis=1).max()
    assert 0.5 < outer < 0.75 and volume > 0  # a shell: the inner side is a surface too
    radii = np.linalg.norm(mesh.vertices, axis=1)
    outside = radii > 0.5
    assert ((mesh.normals * mesh.vertices).sum(1)[outside] > 0).all()
    assert np.linalg.norm(mesh.normals, axis=1) == pytest.approx(np.ones(len(radii)), abs=1e-5)
    right = mesh.vertices[:, 0] > 0.1
    assert (mesh.colors[right, 0] > mesh.colors[right, 2]).all()
    assert mesh.colors[mesh.vertices[:, 0] > 0.3].mean(0) == pytest.approx([0.9, 0.1, 0.1], abs=0.05)


@needs_extra
def test_the_silhouette_is_that_of_the_render():
    gaussians = ball()
    camera = orbit(30.0, 20.0, 3.0, 40.0, 64, 64)
    with torch.no_grad():
        seen = render(gaussians, camera).alpha[0, :, :, 0].numpy() > 0.5
    vertices = surface(to_splats(gaussians)[0], 96).vertices
    R, t = camera.viewmats[0, :3, :3].numpy(), camera.viewmats[0, :3, 3].numpy()
    points = vertices @ R.T + t
    pixels = points[:, :2] / points[:, 2:] * camera.Ks[0, 0, 0].item() + 32
    width = np.ptp(pixels[:, 0])
    assert width == pytest.approx(seen.any(0).sum(), abs=3)


@needs_extra
def test_small_and_thin_gaussians_do_not_fall_between_the_points_of_the_grid():
    gaussians = ball()
    with torch.no_grad():
        gaussians["scales"][:, 2] = -9.0
    assert len(surface(to_splats(gaussians)[0], 24).faces) > 100


@needs_extra
def test_both_files_hold_the_same_triangles(tmp_path):
    count = write_mesh(tmp_path / "a.obj", ball(), None, 16)
    assert write_mesh(tmp_path / "a.glb", ball(), {"prompt": "x"}, 16) == count
    lines = (tmp_path / "a.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    faces = [[int(word.split("//")[0]) - 1 for word in line.split()[1:]] for line in lines if line[0] == "f"]
    document, binary = document_of(tmp_path / "a.glb")
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 4 and document["extensionsUsed"] == ["KHR_materials_unlit"]
    accessors, views = document["accessors"], document["bufferViews"]
    position = accessors[primitive["attributes"]["POSITION"]]
    stored = np.frombuffer(binary, "<f4", 3 * position["count"], views[position["bufferView"]]["byteOffset"])
    indices = accessors[primitive["indices"]]
    corners = np.frombuffer(binary, "<u4", indices["count"], views[indices["bufferView"]]["byteOffset"])
    assert len(faces) == count == indices["count"] / 3 and indices["componentType"] == 5125
    placed = stored.reshape(-1, 3)[corners].reshape(count, 9)  # its vertices are doubled at seams
    given = vertices[:, :3].astype("f4")[np.array(faces)].reshape(count, 9)
    assert np.abs(np.sort(placed, 0) - np.sort(given, 0)).max() < 1e-4
    assert vertices[:, 3:].min() >= 0 and vertices[:, 3:].max() <= 1


@needs_extra
def test_a_scene_too_thin_for_a_surface_and_a_bad_grid_are_user_errors(tmp_path):
    gaussians = ball(3)
    with torch.no_grad():
        gaussians["opacities"].fill_(-3.0)
    with pytest.raises(UserError, match="no surface"):
        write_mesh(tmp_path / "a.obj", gaussians)
    for resolution in (0, 7, 513):
        with pytest.raises(UserError, match="expected 8 to 512"):
            write_mesh(tmp_path / "a.obj", ball(), None, resolution)
    assert not list(tmp_path.iterdir())


def test_without_scikit_image_a_mesh_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.measure", None)
    with pytest.raises(UserError, match=r"splatdistill\[formats\]"):
        write_mesh(tmp_path / "a.obj", scene(5, 0))


def told(gaussians, resolution=64, **options):
    notes = []
    mesh = surface(to_splats(gaussians)[0], resolution, note=notes.append, **options)
    assert (
        np.isfinite(mesh.vertices).all()
        and np.isfinite(mesh.normals).all()
        and np.isfinite(mesh.colors).all()
    )
    return mesh, notes


@needs_extra
@pytest.mark.parametrize("places", [[1e30], [3e38, -3e38], [1e6, 1e12, 1e20]])
def test_what_lies_far_off_is_left_out_with_a_note(places):
    gaussians = ball()
    with torch.no_grad():
        for row, place in enumerate(places):
            gaussians["means"][row] = place
    mesh, notes = told(gaussians)
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.8 and len(mesh.faces) > 1000
    assert len(notes) == 1 and f"{len(places)} of 400 Gaussians" in notes[0]


@needs_extra
def test_what_is_huge_is_left_out_with_a_note():
    gaussians = ball()
    with torch.no_grad():
        gaussians["scales"][7] = 20.0
    mesh, notes = told(gaussians)
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.8 and "1 of 400" in notes[0]


@needs_extra
@pytest.mark.parametrize("places", [[1e30], [3e38, -3e38]])
def test_a_scene_that_float32_cannot_hold_is_one_line(places):
    gaussians = ball(len(places))
    with torch.no_grad():
        gaussians["means"].copy_(torch.tensor(places)[:, None].expand(-1, 3))
    with pytest.raises(UserError, match="too large, or too far"):
        told(gaussians)


@needs_extra
def test_large_gaussians_that_overlap_are_visited_in_bounded_work(monkeypatch):
    """50 of them cover the whole grid: work is counted, in cells that are visited."""
    from splatdistill.formats import density

    gaussians = ball(50)
    with torch.no_grad():
        gaussians["means"].mul_(0.01)
        gaussians["scales"].fill_(0.0)
    visited, plain = [], np.add.at

    class Counting:
        @staticmethod
        def at(target, place, values):
            visited.append(len(place))
            plain(target, place, values)

    monkeypatch.setattr(density.np, "add", Counting, raising=True)
    told(gaussians, 128)
    assert sum(visited) / 4 < 50 * 128**3 / 20


@needs_extra
@pytest.mark.parametrize("size", [0.0, 1.5, 3.0])
def test_the_sum_is_that_of_every_gaussian_at_every_point(size):
    gaussians = scene(40, 0)
    with torch.no_grad():
        gaussians["scales"] += size
    splats = to_splats(gaussians)[0]
    grid, middle = _grid(splats, 40)
    axes = [grid.origin[k] + middle[k] + grid.cell * np.arange(grid.density.shape[k]) for k in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    rotations = rotation_matrices(torch.from_numpy(splats.quats).double()).numpy()
    scales = np.maximum(np.exp(splats.log_scales.astype(float)), NARROWEST * grid.cell)
    total = np.zeros(grid.density.shape)
    for n in range(40):
        squared = (((points - splats.means[n]) @ (rotations[n] / scales[n])) ** 2).sum(-1)
        total += splats.opacities[n] * np.exp(-0.5 * squared) * (squared <= CUT * CUT)
    total[[0, -1]] = total[:, [0, -1]] = total[:, :, [0, -1]] = 0
    assert np.abs(grid.density - total).max() < (1e-5 if size == 0 else 0.02 * total.max())


@needs_extra
def test_a_mesh_is_thinned_to_its_size_and_keeps_its_shape():
    full, _ = told(ball(), triangles=10**9)
    thin, _ = told(ball(), triangles=3000)
    assert len(full.faces) > 10_000 and 2500 < len(thin.faces) <= 3000
    volumes = [
        np.einsum("ij,ij->i", c[:, 0], np.cross(c[:, 1], c[:, 2])).sum() / 6
        for c in (m.vertices[m.faces].astype(float) for m in (full, thin))
    ]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.02)
    right = thin.vertices[:, 0] > 0.3
    assert thin.colors[right].mean(0) == pytest.approx([0.9, 0.1, 0.1], abs=0.05)
    with pytest.raises(UserError, match="at least 100"):
        told(ball(), triangles=99)
