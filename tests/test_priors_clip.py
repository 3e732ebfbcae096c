"""The scorer on a tiny random CLIP: as loaded, and as invariant as it should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
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
