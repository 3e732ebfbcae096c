"""Finding, recognizing and refusing teachers: one line for every folder that none of the priors reads."""

# pyright: reportArgumentType=false

import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_pipeline

from splatdistill.errors import UserError
from splatdistill.priors import load_prior, loading
from splatdistill.priors.base import ToyPrior
from splatdistill.priors.folders import Folder
from splatdistill.priors.latent import LatentPrior, vae_dtype
from splatdistill.priors.loading import ALIASES, locate_clip, probe


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("plain"), "AutoencoderKL")


@pytest.fixture
def folder(pipeline: Path, tmp_path: Path) -> Path:
    """Return a pipeline of its own to change."""
    return shutil.copytree(pipeline, tmp_path / "teacher")


def change(path: Path, **values: Any) -> None:
    """Replace values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(path: str | Path, *words: str) -> str:
    """Return the one line that a folder is refused with, which holds the words."""
    with pytest.raises(UserError) as caught:
        probe(load_prior(str(path), dtype=torch.float32))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    for word in words:
        assert word in line, line
    return line


UNETS = {
    "an inpainting UNet": {"in_channels": 9},
    "a depth-to-image UNet": {"in_channels": 5},
    "an InstructPix2Pix UNet": {"in_channels": 8},
    "an upscaling UNet": {"in_channels": 7, "num_class_embeds": 1000},
    "an unCLIP UNet": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
    "a class by number": {"num_class_embeds": 10},
    "pictures or hints": {"encoder_hid_dim_type": "image_proj"},
    "DeepFloyd IF": {"encoder_hid_dim_type": "text_proj", "in_channels": 6, "out_channels": 6},
    "few steps": {"time_cond_proj_dim": 256},
    "gated attention": {"attention_type": "gated"},
    "UNet2DModel": {"_class_name": "UNet2DModel"},
    "UNetMotionModel": {"_class_name": "UNetMotionModel"},
}


@pytest.mark.parametrize("kind", UNETS)
def test_a_denoiser_of_another_kind_is_called_by_its_name(folder: Path, kind: str) -> None:
    change(folder / "unet" / "config.json", **UNETS[kind])
    refused(folder, kind)


@pytest.mark.parametrize("pipeline_class, model", [
    ("FluxPipeline", "FluxTransformer2DModel"),
    ("AuraFlowPipeline", "AuraFlowTransformer2DModel"),
])  # fmt: skip
def test_a_transformer_pipeline_is_called_by_its_name(folder: Path, pipeline_class: str, model: str) -> None:
    (folder / "unet").rename(folder / "transformer")
    change(folder / "transformer" / "config.json", _class_name=model)
    change(folder / "model_index.json", _class_name=pipeline_class)
    assert "pickle" not in refused(folder, pipeline_class, model)


SCHEDULERS = {
    "flow matching": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "made for flow": {"use_flow_sigmas": True},
    "flow matching,": {"prediction_type": "flow_prediction"},
    "predicts 'sigma'": {"prediction_type": "sigma"},
    "training timesteps": {"num_train_timesteps": 10**12},
    "alphas_cumprod": {"beta_start": -1.0, "beta_end": 3.0, "beta_schedule": "linear"},
}


@pytest.mark.parametrize("words", SCHEDULERS)
def test_a_schedule_that_is_no_diffusion_of_this_kind_is_refused(folder: Path, words: str) -> None:
    change(folder / "scheduler" / "scheduler_config.json", **SCHEDULERS[words])
    refused(folder, words)


def test_a_scheduler_without_betas_is_refused(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EDMEulerScheduler"}')
    refused(folder, "EDMEulerScheduler", "no betas")


def test_a_square_pair_is_one_side(folder: Path) -> None:
    change(folder / "unet" / "config.json", sample_size=[8, 8])
    prior = load_prior(folder, dtype=torch.float32)
    probe(prior)
    assert prior.latent_shape == (4, 8, 8)


@pytest.mark.parametrize("size", [[8, 16], None, 0, -8, "8", 10**9, [8]])
def test_other_sizes_are_refused(folder: Path, size: Any) -> None:
    change(folder / "unet" / "config.json", sample_size=size)
    refused(folder, "sample_size")


PARTS = {
    "scaling_factor": ("vae", {"scaling_factor": None}),
    "0.18215": ("vae", {"scaling_factor": 0.0}),
    "shift_factor": ("vae", {"shift_factor": "x"}),
    "latents_mean": ("vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}),
    "VQModel": ("vae", {"_class_name": "VQModel"}),
    "its vae has 16": ("vae", {"latent_channels": 16}),
    "T5EncoderModel": ("text_encoder", {"architectures": ["T5EncoderModel"]}),
    "width 16": ("text_encoder", {"hidden_size": 32}),
}


@pytest.mark.parametrize("words", PARTS)
def test_a_part_that_does_not_fit_is_named(folder: Path, words: str) -> None:
    part, values = PARTS[words]
    change(folder / part / "config.json", **values)
    refused(folder, words)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "tokenizer"])
def test_a_missing_part_is_one_line(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    refused(folder)


def test_an_adapter_in_the_text_encoder_is_not_followed(folder: Path) -> None:
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    refused(folder, "adapter")


@pytest.mark.parametrize("place", ["text_encoder/config.json", "unet/config.json", "vae/config.json"])
def test_no_file_of_a_folder_names_code_to_fetch(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(
        folder / place,
        attn_implementation="owner/name:fn",
        _attn_implementation="owner/name:fn",
        experts_implementation="owner/name:fn",
        auto_map={"AutoModel": "owner/name--code.Model"},
        text_config={"attn_implementation": "owner/name:fn"},
    )

    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    for name, module in list(sys.modules.items()):
        if name.startswith("transformers") and hasattr(module, "load_and_register_attn_kernel"):
            monkeypatch.setattr(module, "load_and_register_attn_kernel", fetch)
    monkeypatch.setattr("socket.socket.connect", fetch)
    prior: Any = load_prior(folder, dtype=torch.float32)
    assert prior.text_encoder.config._attn_implementation == "sdpa"


def test_files_are_told_apart(tmp_path: Path) -> None:
    weight = torch.zeros(1)
    for name, key, words in (
        ("lora.safetensors", "lora_unet_down.lora_up.weight", "LoRA"),
        ("model.safetensors", "model.diffusion_model.input_blocks.0.0.weight", "single-file checkpoint"),
        ("flux.safetensors", "double_blocks.0.img_attn.proj.weight", "FLUX"),
        ("other.safetensors", "weight", "lone file of weights"),
    ):
        save_file({key: weight}, tmp_path / name)
        refused(tmp_path / name, words)
    for name, words in (("model.ckpt", "pickled"), ("cut.safetensors", "lone file"), ("a.txt", "a file")):
        (tmp_path / name).write_bytes(b"\xff" * 9)
        refused(tmp_path / name, words)


def test_folders_that_are_no_pipeline_are_told_apart(folder: Path, tmp_path: Path) -> None:
    refused(folder.rename(tmp_path / "whole") / "vae" / "nothing", "no such folder")
    for name, file, words in (
        ("lora", "pytorch_lora_weights.safetensors", "LoRA"),
        ("pickled", "model.ckpt", "pickled"),
        ("empty", "", "model_index.json"),
    ):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_bytes(b"")
        refused(tmp_path / name, words)
    shutil.copytree(tmp_path / "whole" / "unet", tmp_path / "lone")
    refused(tmp_path / "lone", "UNet2DConditionModel", "whole pipeline")


def test_unknown_names_are_one_line_that_says_what_there_is() -> None:
    refused("nosuch", "no such folder", "sd21")
    refused("owner/name", "owner/name@COMMIT")


def test_an_alias_that_cannot_be_downloaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*_: object, **arguments: object) -> None:
        calls.append(arguments.get("local_files_only", False))
        raise OSError("offline\nand far away")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)
    for alias in ALIASES:
        refused(alias, alias, "cannot download", "network")
    assert calls == [True, False] * len(ALIASES)  # what is on the disk first; then the network, asked once


def test_a_whole_snapshot_on_the_disk_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (*folder.glob("unet/*.safetensors"), *folder.glob("vae/*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder/model.fp16.safetensors")

    def local(*_: object, local_files_only: bool = False, **__: object) -> str:
        assert local_files_only
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", local)
    probe(load_prior("sd15", dtype=torch.float32))


def test_a_clip_of_the_hub_is_taken_only_at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("owner/name", "owner/name@main", "nosuch"):
        with pytest.raises(UserError, match="COMMIT"):
            locate_clip(name)
    taken = {}

    def fetch(repository: str, revision: str, **_: object) -> str:
        taken.update(repository=repository, revision=revision)
        return "/nowhere"

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: type("", (), {"head": lambda *_, **__: 0})
    )
    locate_clip("owner/name@" + "0a" * 20)
    assert taken == {"repository": "owner/name", "revision": "0a" * 20}


class Strange(ToyPrior):
    """Somebody's prior: it reads folders with a strange.json."""

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        return bool(folder.json("strange.json"))

    @classmethod
    def load(cls, folder: Folder, device: Any, dtype: Any) -> "Strange":
        return cls(torch.full((3, 8, 8), folder.json("strange.json").get("mean", 0.0)))


def entry(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(loading, "entry_points", lambda group: [EntryPoint("strange", value, group)])


def test_an_installed_prior_reads_its_folders_and_has_a_name(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(monkeypatch, f"{__name__}:Strange")
    (tmp_path / "strange.json").write_text('{"mean": 0.25}')
    prior: Any = load_prior(tmp_path)
    assert type(prior).__name__ == "Strange" and prior.mean[0, 0, 0] == 0.25
    assert type(load_prior("strange")).__name__ == "Strange"
    assert "strange" in refused("nosuch")
    assert type(load_prior(pipeline)) is LatentPrior


def test_an_installed_prior_that_is_broken_is_one_line(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(monkeypatch, "no_such_package:Prior")
    refused("strange", "no_such_package", "cannot be imported")
    assert type(load_prior(pipeline)) is LatentPrior


def test_a_prior_that_cannot_run_is_one_line_by_the_probe() -> None:
    class Broken(ToyPrior):
        def network(self, z_t: Any, t: Any, embeddings: Any) -> torch.Tensor:
            raise RuntimeError("shapes\ncannot be multiplied")

    class Wrong(ToyPrior):
        def encode(self, rgb: torch.Tensor) -> torch.Tensor:
            return super().encode(rgb)[:, :2]

    probe(ToyPrior(torch.zeros(3, 8, 8)))
    for cls, words in ((Broken, "shapes cannot be multiplied"), (Wrong, "latents")):
        with pytest.raises(UserError, match=words):
            probe(cls(torch.zeros(3, 8, 8)))


def test_the_autoencoder_is_never_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vae_dtype(torch.float32, "cpu") == torch.float32
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda n=native: {"avx512_bf16": n}, raising=False)
        assert vae_dtype(torch.float16, "cpu") == expected
    monkeypatch.setattr("torch.cuda.device", lambda _: torch.no_grad())
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, n=native: n)
        assert vae_dtype(torch.float16, "cuda:0") == expected
