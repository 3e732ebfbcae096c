import pytest
import torch
from format_errors import errors, scene

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.formats.conventions import CONVENTIONS, set_upright
from splatdistill.formats.ply import write_ply
from splatdistill.scene.gaussians import from_tensors, select
from splatdistill.scene.orientation import rotate_

FORMS = [ending for ending in formats.FORMATS if ending != ".compressed.ply"]


def figure(name):
    """Return a splat in a program's axes: one Gaussian in the middle, one at the top, one at the front."""
    convention = CONVENTIONS[name]
    gaussians = scene(3, 0)
    with torch.no_grad():
        gaussians["means"].copy_(torch.tensor([(0, 0, 0), convention.up, convention.front]))
    return gaussians


def stored(gaussians, ending):
    """Return what a tool that follows the rules of a format stores of the scene of a .ply."""
    turned = select(gaussians, slice(None))
    if formats.FORMATS[ending].up == "y":
        rotate_(turned, torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    return turned


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_is_a_rotation(name):
    matrix = CONVENTIONS[name].matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(3).double()) and torch.det(matrix) > 0.999


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_top_comes_to_z_and_the_front_to_x(tmp_path, name):
    write_ply(tmp_path / "a.ply", figure(name))
    back, _ = formats.read_splat(tmp_path / "a.ply", program=name)
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0]])
    assert torch.allclose(back["means"], expected, atol=1e-6)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("ending", FORMS)
def test_a_file_converted_by_the_rules_of_its_format_stands_like_the_ply(tmp_path, name, ending):
    """Such as splat-transform 2's: .ply, .splat and .sog alike, .spz and .glb half a turn about X away."""
    original = scene(1, 1)
    formats.FORMATS[ending].write(tmp_path / f"a{ending}", stored(original, ending), None)
    back, _ = formats.read_splat(tmp_path / f"a{ending}", program=name)
    set_upright(original, name)
    found = errors(original, back)
    assert found["center"] < 1e-3 and found["rotation_deg"] < 1.5


def test_what_the_camera_of_sharp_sees_faces_front():
    """OpenCV axes: x right, y down, z forward; the camera stands at the origin, before the thing."""
    gaussians = from_tensors(**scene(2, 0))
    with torch.no_grad():
        gaussians["means"].copy_(torch.tensor([[0.0, 0, 2.0], [0, 0, 3.0]]))  # near, far
    set_upright(gaussians, "sharp")
    assert gaussians["means"][0, 0] > gaussians["means"][1, 0]


def test_an_unknown_program_and_two_answers_are_user_errors(tmp_path):
    write_ply(tmp_path / "a.ply", scene(3, 0))
    with pytest.raises(UserError, match="no known program"):
        formats.read_splat(tmp_path / "a.ply", program="nobody")
    with pytest.raises(UserError, match="give one of them"):
        formats.read_splat(tmp_path / "a.ply", "y", program="trellis")
