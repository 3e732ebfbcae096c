"""Which files of a hub repository a teacher is loaded from."""

import json
from pathlib import Path

import pytest

from splatdistill.priors import loading
from splatdistill.priors.hub import PINNED, chosen_files, whole

REPOSITORY = (
    "README.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "scheduler/scheduler_config.json",
    "safety_checker/model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "tokenizer/spiece.model",
    "tokenizer/chat_template.jinja",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/modeling.py",
    "images/deep/er/picture.json",
)


def test_one_precision_of_each_part_and_no_pickles_or_code() -> None:
    assert chosen_files(REPOSITORY) == (
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model-00002-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/merges.txt",
        "tokenizer/spiece.model",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    )


def test_a_name_of_the_hub_has_its_whole_commit() -> None:
    assert PINNED.fullmatch("nota-ai/bk-sdm-small@" + 40 * "a")
    assert not PINNED.fullmatch("nota-ai/bk-sdm-small@main")
    assert not PINNED.fullmatch("nota-ai/bk-sdm-small")


def test_a_snapshot_is_whole_with_every_part_of_its_index(tmp_path: Path) -> None:
    assert not whole(tmp_path)
    index = {
        "_class_name": "X",
        "unet": ["diffusers", "U"],
        "image_encoder": [None, None],
        "safety_checker": ["a", "b"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert not whole(tmp_path)
    (tmp_path / "unet").mkdir()
    assert whole(tmp_path)


def test_a_teacher_of_the_hub_is_fetched_by_the_files_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def snapshot(repository: str, local_files_only: bool = False, **wanted):
        if local_files_only:
            raise FileNotFoundError
        asked.append((repository, wanted))
        return str(tmp_path)

    class Hub:
        def list_repo_files(self, repository: str, revision: str):
            return list(REPOSITORY)

    class Session:
        def head(self, *args, **kwargs) -> None:
            pass

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    name = "owner/name@" + 40 * "0"
    assert loading.locate(name).root == tmp_path
    assert asked == [("owner/name", {"revision": 40 * "0", "allow_patterns": list(chosen_files(REPOSITORY))})]
    assert loading.words_of(name) is None
