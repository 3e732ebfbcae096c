from dataclasses import replace

import numpy as np
import pytest

from splatdistill.errors import UserError
from splatdistill.formats.gltf import srgb_to_linear
from splatdistill.scene.cameras import orbit
from splatdistill.teaching import shelf
from splatdistill.teaching.assets import Entry
from splatdistill.teaching.meshes import TEXTURE, joined, of_solids, plain, unit_solid
from splatdistill.teaching.renderer import Light, Renderer
from splatdistill.teaching.solids import KINDS, Solids, raycast

pytest.importorskip("moderngl")
SIZE = 48


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    try:
        return Renderer(SIZE)
    except UserError as error:
        pytest.skip(str(error))


def solids(*balls) -> Solids:
    made = Solids(1, np.random.default_rng(0))
    for place, radius, color in balls:
        made.ball(place, radius, np.array(color))
    return made


def test_silhouettes_are_the_ray_caster_s(renderer):
    scene = solids(((0.3, 0.2, 0.1), 0.4, (1, 0, 0)), ((-0.3, -0.4, 0.2), 0.3, (0, 1, 0)))
    cameras = orbit([0, 70, 200], [0, 30, 70], 3.0, 42.0, SIZE, SIZE)
    drawn = renderer.draw(of_solids(scene), cameras, Light())[..., 3] / 255.0
    cast = raycast(np.repeat(scene.packed(), 3, 0), cameras)[..., 3] / 255.0
    assert np.abs(drawn - cast).mean() < 0.01


def test_unlit_color_is_the_given_one(renderer):
    color = np.array([0.8, 0.4, 0.2])
    image = renderer.draw(
        of_solids(solids(((0, 0, 0), 0.8, color))), orbit(0, 0, 3.0, 40.0, SIZE, SIZE), shelf.UNLIT
    )
    np.testing.assert_allclose(image[0, SIZE // 2, SIZE // 2, :3] / 255.0, color, atol=0.01)


def test_pictures_are_the_same_every_time(renderer):
    mesh, camera = of_solids(solids(((0, 0, 0), 0.6, (1, 0, 0)))), orbit(20, 10, 3.0, 40.0, SIZE, SIZE)
    first = renderer.draw(mesh, camera, Light())
    np.testing.assert_array_equal(first, renderer.draw(mesh, camera, Light()))


def test_the_main_color_is_tinted_and_no_other(renderer):
    box = unit_solid(KINDS["box"], 0.0)
    red = np.append(srgb_to_linear(np.array([0.8, 0.1, 0.1])), 1.0)
    blue = np.append(srgb_to_linear(np.array([0.1, 0.1, 0.8])), 1.0)
    mesh = joined([plain(box, red), plain(box * 0.3 + [0, 0, 1.3], blue)])
    main = shelf.main_color(mesh, renderer)
    assert main is not None
    np.testing.assert_allclose(main, [0.8, 0.1, 0.1], atol=0.01)
    green = shelf.tinted(mesh, main, np.array([0.1, 0.7, 0.2]))
    np.testing.assert_allclose(green.colors[0, :3], srgb_to_linear(np.array([0.1, 0.7, 0.2])), rtol=0.02)
    np.testing.assert_array_equal(green.colors[-1], mesh.colors[-1])


def test_a_model_whose_texture_has_many_colors_is_not_tinted(renderer):
    """Its main color is that of a half of a texture, which is tinted whole or not at all."""
    box = plain(unit_solid(KINDS["box"], 0.0), np.ones(4))
    texture = np.full((1, TEXTURE, TEXTURE, 4), 255, np.uint8)
    texture[:, :, : TEXTURE // 2, :3] = (200, 30, 30)
    uvs = np.full((len(box.positions), 2), 0.25, np.float32)
    uvs[len(uvs) // 2 :, 0] = 0.75
    mesh = replace(box, uvs=uvs, layers=np.zeros(len(uvs), np.float32), textures=texture)
    assert shelf.main_color(mesh, renderer) is None
    whole = replace(mesh, uvs=np.full_like(uvs, 0.25))
    assert shelf.main_color(whole, renderer) is not None


def test_one_model_of_many_is_held_out(renderer, tmp_path):
    many = [Entry(f"c{i}", f"c{i}.glb", "chair", (), (), 0.0, False, False, i) for i in range(6)]
    one = Entry("d", "d.glb", "desk", (), (), 0.0, False, False, 0)
    whole = shelf.Shelf((*many, one), tmp_path, tmp_path, renderer)
    kept, out = whole.split(False), whole.split(True)
    assert [e.id for e in out.entries] == ["c2"] and len(kept.entries) == 6


def test_a_procedural_thing_gets_the_color_that_it_is_said_to_have(renderer, tmp_path):
    things = shelf.procedural_entries(["snowman"])
    assert "snowman" not in {e.noun for e in things} and "cube" in {e.noun for e in things}
    cube = next(e for e in things if e.noun == "cube")
    mesh, color = shelf.Shelf((cube,), tmp_path, tmp_path, renderer).take(cube, np.random.default_rng(0))
    assert color is not None
    distance = {
        name: np.abs(srgb_to_linear(np.array(c)) - mesh.colors[0, :3]).sum()
        for name, c in shelf.COLORS.items()
    }
    assert min(distance, key=lambda name: distance[name]) == color
