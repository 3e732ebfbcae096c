import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.scene.cameras import orbit
from splatdistill.scene.captures import load_captures, read_captures
from splatdistill.scene.gaussians import init_blob, moved
from splatdistill.scene.rendering import render

pytestmark = pytest.mark.usefixtures("workplace")
FOV = 40.0


def scene() -> torch.nn.ParameterDict:
    return init_blob(400, 0.4, opacity=0.9, generator=torch.Generator().manual_seed(0))


def write(size: tuple[int, int] = (48, 48), **intrinsics: float) -> str:
    """Write two pictures of the scene, and their cameras in OpenGL's axes."""
    width, height = size
    cameras = orbit([20.0, 130.0], [10.0, 40.0], 3.0, FOV, width, height)
    with torch.no_grad():
        seen = render(scene(), cameras)
    frames = []
    for k, pose in enumerate(cameras.camtoworlds.double()):
        alpha = seen.alpha[k].clamp(0, 1)
        rgba = torch.cat([(seen.rgb[k] / alpha.clamp(min=1e-3)).clamp(0, 1), alpha], -1)
        Image.fromarray((rgba.numpy() * 255).round().astype(np.uint8)).save(f"{k}.png")
        pose[:, 1:3] *= -1
        frames.append({"file_path": f"./{k}.png" if k else "./0", "transform_matrix": pose.tolist()})
    fl = 0.5 * height / math.tan(math.radians(FOV) / 2)
    angle = 2 * math.atan(0.5 * width / fl)
    given = intrinsics or {"camera_angle_x": angle}
    Path("transforms.json").write_text(json.dumps({**given, "frames": frames}))
    return "transforms.json"


@pytest.mark.parametrize("size", [(48, 48), (64, 48)])
def test_the_scene_seen_from_their_cameras_is_what_the_pictures_show(size):
    captures = read_captures(Path(write(size)), 48)
    assert len(captures) == 2 and captures[1].rgb.shape == (3, 48, 48)
    with torch.no_grad():
        seen = render(scene(), captures.cameras, torch.ones(3))
    for k in range(2):
        shown = captures[k].before(torch.ones(1, 3))[0].permute(1, 2, 0)
        assert (seen.rgb[k] - shown).square().mean() < (1e-3 if size[0] > 48 else 1e-4)


def test_they_move_with_the_scene():
    captures, place = read_captures(Path(write()), 48), ((0.5, -1.0, 2.0), 0.3)
    with torch.no_grad():
        before = render(scene(), captures.cameras).rgb
        after = render(moved(scene(), *place), captures.moved(*place).cameras).rgb
    torch.testing.assert_close(after, before, atol=0.02, rtol=0.0)


def test_focal_lengths_in_pixels_say_the_same_as_an_angle():
    first = read_captures(Path(write()), 48).cameras.Ks
    fl = 0.5 * 96 / math.tan(math.radians(FOV) / 2)  # of a picture twice as large
    second = read_captures(Path(write(fl_x=fl, w=96, h=96, cx=48, cy=48)), 48).cameras.Ks
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0.0)


def test_what_is_saved_is_read_as_it_was():
    captures = read_captures(Path(write()), 32)
    captures.save(Path("captures.npz"))
    first = Path("captures.npz").read_bytes()
    again = load_captures(Path("captures.npz"))
    again.save(Path("captures.npz"))
    assert Path("captures.npz").read_bytes() == first
    assert torch.equal(again.rgb, captures.rgb) and torch.equal(again.alpha, captures.alpha)
    assert torch.equal(again.cameras.viewmats, captures.cameras.viewmats)


def test_mistakes_are_one_line():
    whole = json.loads(Path(write()).read_text())
    frame = whole["frames"][0]
    cases = {
        "transforms.json": [],
        "no list of frames": {"camera_angle_x": 1.0},
        "0 frames": {"frames": []},
        "field of view": {"frames": [frame]},
        "camera_angle_x is no number": {"camera_angle_x": "wide", "frames": [frame]},
        "file_path": {"camera_angle_x": 1.0, "frames": [{**frame, "file_path": 7}]},
        "rigid": {"camera_angle_x": 1.0, "frames": [{**frame, "transform_matrix": [[1, 2], [3]]}]},
        "there is no picture": {"camera_angle_x": 1.0, "frames": [{**frame, "file_path": "9.png"}]},
    }
    for said, document in cases.items():
        Path("bad.json").write_text(json.dumps(document))
        with pytest.raises(UserError, match=said) as caught:
            read_captures(Path("bad.json"), 16)
        assert "\n" not in str(caught.value)
    Path("bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(UserError, match="cannot read the cameras"):
            read_captures(Path(name), 16)
    with pytest.raises(UserError, match="no reference pictures"):
        load_captures(Path("bad.json"))
