"""The scorer: trained in miniature, exported, loaded, and as invariant as it should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.ops import native
from splatdistill.priors.clip import Scorer
from splatdistill.priors.loading import SCORER as EMBEDDED_SCORER
from splatdistill.teaching.scorer import ScorerSettings, contrast, export, train_scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    if not native.available():
        pytest.skip("needs the native extension")
    folder = tmp_path_factory.mktemp("scorer")
    export(folder, *train_scorer(ScorerSettings(steps=2, batch=8, pictures=32), threads=1))
    return Scorer.load(folder)


def test_embeddings_are_unit_vectors_of_one_space(scorer: Scorer) -> None:
    images, texts = (
        scorer.images(torch.rand(2, 3, 64, 64)),
        scorer.texts(["a red car", "a blue cube", "a dog"]),
    )
    assert images.shape[1] == texts.shape[1]
    for vectors in (images, texts):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_larger_pictures_are_resized(scorer: Scorer) -> None:
    small = torch.rand(1, 3, 16, 16)
    large = torch.nn.functional.interpolate(small, (256, 256), mode="bicubic", antialias=True).clamp(0, 1)
    fitting = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    assert (scorer.images(large) * scorer.images(fitting)).sum() > 0.99


def test_equal_texts_do_not_repel_each_other() -> None:
    embeddings = torch.eye(3)[[0, 0, 1]]
    same = embeddings @ embeddings.mT > 0.5
    scale = torch.tensor(50.0)
    assert (
        contrast(embeddings, embeddings, same, scale)
        < contrast(embeddings, embeddings, torch.eye(3) > 0, scale) + 1e-6
    )
    torch.testing.assert_close(
        contrast(embeddings, embeddings, same, scale), torch.tensor(2 * 2 / 6 * 0.6931472), atol=1e-4, rtol=0
    )


def test_a_missing_scorer_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Scorer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot load") as caught:
        Scorer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_scorer_names_no_code_and_cuts_a_prompt_before_what_follows_it(
    scorer: Scorer, tmp_path: Path
) -> None:
    shutil.copytree(EMBEDDED_SCORER, tmp_path / "clip")
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
