"""The scorer on a tiny random CLIP: as loaded, and as invariant as it should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_clip

from splatdistill.errors import UserError
from splatdistill.priors.clip import Scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer.load(folder)


def test_embeddings_are_unit_vectors_of_one_space(scorer: Scorer) -> None:
    images, texts = (
        scorer.images(torch.rand(2, 3, 64, 64)),
        scorer.texts(["a red mushroom", "a dog", "a red dog"]),
    )
    assert images.shape[1] == texts.shape[1]
    for vectors in (images, texts):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_larger_pictures_are_resized(scorer: Scorer) -> None:
    small = torch.rand(1, 3, 16, 16)
    large = torch.nn.functional.interpolate(small, (256, 256), mode="bicubic", antialias=True).clamp(0, 1)
    fitting = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    assert (scorer.images(large) * scorer.images(fitting)).sum() > 0.99


def test_a_missing_scorer_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Scorer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot load") as caught:
        Scorer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_scorer_names_no_code_and_cuts_a_prompt_before_what_follows_it(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    for place in (config, config["text_config"], config["vision_config"]):
        place["attn_implementation"] = "owner/name:fn"
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    loaded = Scorer.load(tmp_path / "clip")
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.config.text_config._attn_implementation == "sdpa"
    long = "a red car on top of a blue cube " * 5
    kept = loaded.fit(long, [", side view, white background"])
    assert 0 < len(kept) < len(long) and long.startswith(kept)
    assert loaded.fit("a red car", [", side view"]) == "a red car"


def in_openclip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a transformers' CLIP as OpenCLIP has them: the test's own inversion."""
    plain = {
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    parts = [
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("self_attn", "attn"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ]
    found: dict[str, torch.Tensor] = {"attn_mask": torch.zeros(3, 3)}
    for key, value in state.items():
        if key in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if key[0] == "v" else "text_projection"] = value.mT.contiguous()
            continue
        new = plain.get(key, key)
        for a, b in parts if key not in plain else []:
            new = new.replace(a, b)
        for kind in ("weight", "bias"):
            if new.endswith(f"q_proj.{kind}"):
                all_three = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[new.replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(all_three)
        if not any(f"{letter}_proj." in new for letter in "qkv"):
            found[new] = value
    return found


def test_weights_in_openclips_names_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    halves = {key: value.half() for key, value in load_file(weights).items()}
    save_file(halves, weights)
    save_file(in_openclip(halves), tmp_path / "clip" / "HPS_v2.1.safetensors")
    theirs = Scorer.load(tmp_path / "clip" / "HPS_v2.1.safetensors")
    ours = Scorer.load(tmp_path / "clip")
    pictures = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    found, expected = (scorer.liking(pictures, "a red dog") for scorer in (theirs, ours))
    torch.testing.assert_close(found, expected)
    cosines = ours.images(pictures) @ ours.texts(["a red dog"])[0]
    torch.testing.assert_close(found, ours.model.logit_scale.exp() * cosines)
    weights.unlink()
    torch.testing.assert_close(
        Scorer.load(weights.parent / "HPS_v2.1.safetensors").liking(pictures, "a red dog"), found
    )


def test_a_pickle_is_one_line_that_says_how_to_convert_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="weights_only=True") as caught:
        Scorer.load(tmp_path / "HPS_v2.1_compressed.pt")
    assert "\n" not in str(caught.value)
    state = in_openclip(load_file(folder / "model.safetensors"))
    torch.save({"state_dict": state}, tmp_path / "X.pt")
    said = str(caught.value)
    command = said[said.index('python -c "') + 11 : said.rindex('"')]
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    again = load_file(tmp_path / "X.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


def test_weights_of_another_model_are_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    save_file({"visual.proj": torch.zeros(4, 4)}, tmp_path / "clip" / "other.safetensors")
    with pytest.raises(UserError, match="cannot load") as caught:
        Scorer.load(tmp_path / "clip" / "other.safetensors")
    assert "\n" not in str(caught.value)
