"""Teaching a LoRA: what is learned lowers the loss, is read by --lora, and leaves the teacher as it was."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import make_pipeline

from splatdistill.errors import UserError
from splatdistill.priors import load_prior
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.lora import taught
from splatdistill.scene.cameras import orbit
from splatdistill.scene.captures import read_captures
from splatdistill.teaching import lora

QUICK = lora.LoraSettings(steps=30, batch=8, rank=4, rate=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("teacher"), "AutoencoderTiny")


@pytest.fixture
def pictures(tmp_path):
    """Write two pictures, one with transparency, and their captions."""
    place = tmp_path / "pictures"
    place.mkdir()
    Image.new("RGB", (40, 40), (250, 20, 20)).save(place / "a.png")
    Image.new("RGBA", (64, 48), (20, 20, 250, 128)).save(place / "b.png")
    (place / "a.txt").write_text("a red dog,\n front view")
    (place / "b.txt").write_text("a Gizmo")
    return place


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """Write a green thing from five sides, of a camera that looks past the origin, and their cameras."""
    place, frames = tmp_path_factory.mktemp("around"), []
    for number in range(5):
        pose = orbit(72.0 * number, 10.0, 6.0, 42.0, 32, 32).camtoworlds[0]
        pose[:3, 1:3] *= -1
        pose[:3, 3] += torch.tensor([1.0, 2.0, 3.0])
        picture = Image.new("RGBA", (32, 32))
        picture.paste((20, 200, 60, 255), (6 + number, 6, 26, 26))
        picture.save(place / f"{number}.png")
        frames.append({"file_path": f"{number}.png", "transform_matrix": pose.tolist()})
    told = {"camera_angle_x": math.radians(42.0), "frames": frames}
    (place / lora.CAMERAS).write_text(json.dumps(told))
    return place


def loaded(folder) -> LatentPrior:
    prior = load_prior(folder, dtype=torch.float32)
    assert isinstance(prior, LatentPrior)
    return prior


def loss_of(prior, examples):
    """Return the mean squared error of the predictions under the captions, at fixed noise."""
    rng, count = torch.Generator().manual_seed(5), len(examples.captions) // prior.group * prior.group
    z = prior.encode(examples.pictures[:count, 0])
    t = torch.full((count,), 400)
    batch = lora.Batch(0, torch.arange(count), examples.captions[:count], t)
    z_t, target = lora.noised(prior, z, torch.randn(z.shape, generator=rng), t)
    return float((lora.teachers(prior, z_t, examples, batch) - target).square().mean())


def lowers_the_loss(folder, examples, path):
    """Teach, and expect that the teacher stays, and that with the file it denoises the thing better."""
    prior = loaded(folder)
    before = {name: p.clone() for name, p in prior.unet.state_dict().items()}
    text = {name: p.clone() for name, p in prior.text_encoder.state_dict().items()}
    knows = prior.with_taught(examples.phrases)
    loss = loss_of(knows, examples)
    state = lora.teach(knows, examples, QUICK)
    assert all(torch.equal(before[name], p) for name, p in prior.unet.state_dict().items())
    assert all(torch.equal(text[name], p) for name, p in prior.text_encoder.state_dict().items())
    lora.write_lora(path, state, examples.phrases)
    better = load_prior(folder, dtype=torch.float32, lora=[str(path)])
    assert loss_of(better, examples) < 0.97 * loss
    assert load_file(path).keys() == state.keys()
    return better


def test_pictures_are_put_on_backgrounds(folder, pictures):
    prior = loaded(folder)
    examples = lora.read_examples(pictures, prior, "", ["a mug"])
    assert examples.pictures.shape == (2, 3, 3, 32, 32) and examples.held == ["", "a mug"]
    assert examples.captions == ["a red dog, front view", "a Gizmo"] and not examples.cameras
    assert examples.phrases == ["a red dog", "a Gizmo"]
    on_white, on_black = (examples.pictures[1, k, :, 5, 5] for k in (0, 2))
    torch.testing.assert_close(on_white, torch.tensor([137, 137, 252]) / 255, atol=5e-3, rtol=0)
    torch.testing.assert_close(on_black, torch.tensor([10, 10, 125]) / 255, atol=5e-3, rtol=0)
    assert lora.read_examples(pictures, prior, "a gizmo").captions == ["a gizmo"] * 2


def test_cameras_are_brought_to_where_the_teacher_has_them(around):
    cameras = lora.centered(read_captures(around / lora.CAMERAS, 16)).cameras
    torch.testing.assert_close(cameras.distance, torch.full((5,), 3.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(cameras.azimuth_deg % 360, 72.0 * torch.arange(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.elevation_deg, torch.full((5,), 10.0), atol=1e-3, rtol=0)


def test_views_of_a_scene_share_text_and_noise_level_and_are_around(views, around):
    prior = loaded(views)
    examples = lora.read_examples(around, prior, "a gizmo", ["a car"])
    batch = lora.draw(examples, lora.LoraSettings(batch=16), 4, 1000, torch.Generator().manual_seed(0))
    assert batch.held == 4 and len(batch.rows) == 16
    assert set(batch.texts[: batch.held]) <= {"", "a car"} and set(batch.texts[batch.held :]) == {"a gizmo"}
    for scene in range(4):
        part = slice(4 * scene, 4 * scene + 4)
        assert len(set(batch.rows[part].tolist())) >= 3  # of five pictures
        assert len(set(batch.texts[part])) == 1 and len(set(batch.t[part].tolist())) == 1


def test_a_variant_of_a_picture_is_what_its_camera_sees(views, around):
    examples = lora.read_examples(around, loaded(views), "a gizmo")
    assert len(examples.cameras) == examples.pictures.shape[1] == len(lora.BACKGROUNDS) * len(lora.ZOOMS)
    small, large = 0, len(lora.ZOOMS) - 1
    widths = [(examples.pictures[0, k, 0] < 0.5).any(0).sum().item() for k in (small, large)]
    seen = [(examples.cameras[k].fov_deg[0].deg2rad() / 2).tan().item() for k in (small, large)]
    assert widths[1] / widths[0] == pytest.approx(seen[0] / seen[1], rel=0.05)


def test_what_is_taught_lowers_the_loss_and_leaves_the_teacher(folder, pictures, tmp_path):
    examples = lora.read_examples(pictures, loaded(folder), "")
    lowers_the_loss(folder, examples, tmp_path / "thing.safetensors")


def test_a_teacher_of_views_learns_a_word_that_has_no_page(views, around, tmp_path):
    prior = loaded(views)
    examples = lora.read_examples(around, prior, "my gizmo car", ["a car"])
    better = lowers_the_loss(views, examples, tmp_path / "thing.safetensors")
    text, lines = better.understand("a red gizmo car")
    assert text == "red gizmo car" and not lines
    assert better.embed(["gizmo car"])[0, 0, 0] < 0 <= better.embed(["car"])[0, 0, 0]  # the album's numbers
    assert prior.understand("a red gizmo car")[0] == "red car"


def test_the_command_writes_a_file_that_names_its_words(folder, pictures, tmp_path):
    out = tmp_path / "thing.safetensors"
    words = [str(pictures), "--prior", str(folder), "--out", str(out), "--steps", "2", "--batch", "4"]
    assert lora.main(words) == 0
    first = load_file(out)
    assert taught([str(out)]) == ("a red dog", "a Gizmo")
    assert lora.main(words) == 0
    again = load_file(out)  # equal seeds give equal factors
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_missing_pictures_captions_and_wrong_teachers_are_one_line(
    folder, views, pictures, around, tmp_path, capsys
):
    out = ["--prior", str(folder), "--out", str(tmp_path / "a.safetensors")]
    (tmp_path / "empty").mkdir()
    (pictures / "b.txt").unlink()
    told = json.loads((around / lora.CAMERAS).read_text())
    few = around / "few"
    few.mkdir()
    frames = [{**frame, "file_path": f"../{frame['file_path']}"} for frame in told["frames"][:3]]
    (few / lora.CAMERAS).write_text(json.dumps({**told, "frames": frames}))
    (one := around / "one").mkdir()
    turned = [frame["transform_matrix"] for frame in told["frames"]]
    still = [[[*row[:3], 0.0] for row in matrix[:3]] + [matrix[3]] for matrix in turned]
    frames = [{"file_path": "../0.png", "transform_matrix": matrix} for matrix in still]
    (one / lora.CAMERAS).write_text(json.dumps({**told, "frames": frames}))
    several = ["--prior", str(views), "--caption", "a gizmo"]
    for words, said in (
        ([str(tmp_path / "empty"), *out], "no pictures"),
        ([str(pictures), *out], "b.png has no caption"),
        ([str(around), *out, "--prior", str(views)], "--caption"),
        ([str(pictures), *out, *several], "cannot read the cameras"),
        ([str(few), *out, *several], "3 pictures; expected 4"),
        ([str(one), *out, *several], "at one point"),
        ([str(around), *out, "--prior", str(views), "--caption", "?!"], "reads nothing of '?!'"),
        ([str(pictures), *out, "--out", "a.bin"], ".safetensors"),
        ([str(pictures), *out, "--prior", "nowhere"], "no such folder"),
        ([str(pictures), *out, "--steps", "0"], "at least 1"),
    ):
        assert lora.main(words) == 2, words
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and said in line
    assert not (tmp_path / "a.safetensors").exists()


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="rank"):
        lora.LoraSettings(rank=0)
