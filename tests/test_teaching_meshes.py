import numpy as np
import pytest

from splatdistill.formats.gltf import linear_to_srgb, srgb_to_linear
from splatdistill.scene.cameras import orbit
from splatdistill.teaching import meshes
from splatdistill.teaching.solids import KINDS, Solids, raycast

GREEN = np.array([0.1, 0.6, 0.2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tessellated_solid_lies_on_the_ray_caster_s(kind):
    solids = Solids(1, np.random.default_rng(0))
    turn, place = (20.0, 30.0, 40.0), (0.1, 0.0, -0.1)
    {
        "ellipsoid": lambda: solids.ellipsoid(place, (0.5, 0.3, 0.4), GREEN, turn, clip=-0.3),
        "box": lambda: solids.box(place, (0.5, 0.3, 0.4), GREEN, turn),
        "frustum": lambda: solids.frustum(place, (0.5, 0.3, 0.4), GREEN, 0.4, turn),
        "prism": lambda: solids.prism(place, (0.5, 0.3, 0.4), GREEN, turn),
        "torus": lambda: solids.torus(place, 0.5, 0.3, GREEN, turn),
    }[kind]()
    camera = orbit(30.0, 20.0, 3.0, 40.0, 64, 64)
    covered = raycast(solids.packed(), camera)[0, ..., 3] > 0
    p = meshes.of_solids(solids).positions.astype(np.float64)
    view, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
    projected = (p @ view[:3, :3].T + view[:3, 3]) @ K.T
    u, v = (projected[:, :2] / projected[:, 2:]).T
    rows, columns = np.nonzero(covered)
    assert abs(u.min() - columns.min()) < 1.2 and abs(u.max() - columns.max() - 1) < 1.2
    assert abs(v.min() - rows.min()) < 1.2 and abs(v.max() - rows.max() - 1) < 1.2


def test_fitted_is_centered_and_grounded_stands():
    mesh = meshes.plain(np.random.default_rng(0).normal(3, 2, (30, 3)), np.ones(4))
    low, high = mesh.fitted(0.8).bounds
    np.testing.assert_allclose(low, -high, atol=1e-5)
    assert np.linalg.norm(high) <= 1.25 * 0.8 + 1e-5
    low, high = mesh.grounded(0.5).bounds
    assert low[2] == pytest.approx(0, abs=1e-6) and (high - low).max() == pytest.approx(0.5, rel=1e-5)


def test_normals_stay_perpendicular_when_the_mesh_is_stretched():
    mesh = meshes.plain(np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1)], float), np.ones(4))
    moved = mesh.moved(np.diag([1.0, 2.0, 3.0]))
    edges = moved.positions[1:] - moved.positions[0]
    np.testing.assert_allclose(edges @ moved.normals[0], 0, atol=1e-6)


def test_joined_meshes_keep_their_own_textures():
    def textured(value: int) -> meshes.Mesh:
        mesh = meshes.plain(np.eye(3), np.ones(4))
        picture = np.full((1, meshes.TEXTURE, meshes.TEXTURE, 4), value, np.uint8)
        return meshes.replace(mesh, textures=picture, layers=np.zeros(3, np.float32))

    plain = meshes.plain(np.eye(3), np.ones(4))
    both = meshes.joined([textured(1), plain, textured(2)])
    assert [both.textures[int(k)].max() if k >= 0 else 0 for k in both.layers[::3]] == [1, 0, 2]


def test_srgb_and_linear_are_inverse():
    values = np.linspace(0, 1, 50)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)
