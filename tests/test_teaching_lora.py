"""Teaching a LoRA: what is learned lowers the loss, is read by --lora, and leaves the teacher as it was."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import make_pipeline

from splatdistill.errors import UserError
from splatdistill.priors import load_prior
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.lora import taught_words
from splatdistill.teaching import lora


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


def loss_of(prior, examples):
    """Return the mean squared error of the predictions under the captions, at fixed noise."""
    rng = torch.Generator().manual_seed(5)
    z = prior.encode(examples.pictures)
    noise, t = torch.randn(z.shape, generator=rng), torch.full((len(z),), 400)
    z_t, target = lora.noised(prior, z, noise, t)
    with torch.no_grad():
        return float((prior.network(z_t, t, prior.embed(examples.captions)) - target).square().mean())


def test_pictures_are_put_on_backgrounds_that_captions_name(pictures):
    plain = lora.read_examples(pictures, 32, named=False)
    assert plain.pictures.shape == (4, 3, 32, 32) and plain.held == [""]
    assert plain.captions == ["a red dog, front view", *["a Gizmo"] * 3]
    torch.testing.assert_close(
        plain.pictures[1, :, 5, 5], torch.tensor([137, 137, 252]) / 255, atol=5e-3, rtol=0
    )
    named = lora.read_examples(pictures, 32, named=True, held=["a mug"])
    assert named.captions[1:] == [f"a Gizmo, {name} background" for name in ("white", "gray", "black")]
    assert "black background" in named.held and "a mug, gray background" in named.held


def test_what_is_taught_lowers_the_loss_and_leaves_the_teacher(folder, pictures, tmp_path):
    prior = load_prior(folder, dtype=torch.float32)
    assert isinstance(prior, LatentPrior)
    examples = lora.read_examples(pictures, prior.image_size, named=False)
    before = {name: p.clone() for name, p in prior.unet.state_dict().items()}
    text = {name: p.clone() for name, p in prior.text_encoder.state_dict().items()}
    loss = loss_of(prior, examples)
    state = lora.teach(prior, examples, lora.LoraSettings(steps=30, batch=8, rank=4, rate=1e-2))
    assert all(torch.equal(before[name], p) for name, p in prior.unet.state_dict().items())
    assert all(torch.equal(text[name], p) for name, p in prior.text_encoder.state_dict().items())
    lora.write_lora(tmp_path / "thing.safetensors", state, "a gizmo")
    taught = load_prior(folder, dtype=torch.float32, lora=[str(tmp_path / "thing.safetensors")])
    assert loss_of(taught, examples) < 0.97 * loss


def test_the_command_writes_a_file_that_names_its_words(folder, pictures, tmp_path):
    out = tmp_path / "thing.safetensors"
    words = [str(pictures), "--prior", str(folder), "--out", str(out), "--steps", "2", "--batch", "4"]
    assert lora.main(words) == 0
    first = load_file(out)
    assert taught_words([str(out)]) == {"a", "red", "dog", "front", "view", "gizmo"}
    assert lora.main(words) == 0
    again = load_file(out)  # equal seeds give equal factors
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_missing_pictures_captions_and_wrong_teachers_are_one_line(folder, views, pictures, tmp_path, capsys):
    out = ["--prior", str(folder), "--out", str(tmp_path / "a.safetensors")]
    (tmp_path / "empty").mkdir()
    (pictures / "b.txt").unlink()
    for words, said in (
        ([str(tmp_path / "empty"), *out], "no pictures"),
        ([str(pictures), *out], "b.png has no caption"),
        ([str(pictures), *out, "--prior", str(views)], "single views"),
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
