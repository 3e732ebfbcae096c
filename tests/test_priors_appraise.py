"""What the doctor says of a teacher, from its files alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import RESULTS
from diffusers import AutoencoderKL
from families import make_family
from true_size import SIZES

from splatdistill import doctor
from splatdistill.errors import UserError
from splatdistill.priors import load_prior
from splatdistill.priors.appraise import appraise, licence, lines
from splatdistill.priors.pipeline import PipelinePrior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_family(tmp_path_factory.mktemp("appraise"), "SD3Prior")
    (made / "README.md").write_text(
        "---\nlicense: other\nlicense_name: stabilityai-ai-community\n---\n# A card\n"
    )
    return made


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate as on a processor without bfloat16."""
    monkeypatch.setattr("splatdistill.priors.appraise.default_dtype", lambda device: torch.float32)


def test_it_counts_what_the_networks_have(folder: Path) -> None:
    prior = load_prior(folder, "cpu", torch.float32)
    found = appraise(str(folder))
    assert isinstance(prior, PipelinePrior)
    assert found.denoiser.parameters == sum(value.numel() for value in prior.network_.state_dict().values())
    assert set(found.parts) == {"transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
    assert found.pixels == prior.image_size and "Stable Diffusion 3" in found.reader
    assert found.licence == "stabilityai-ai-community"
    assert found.memory > sum(4 * part.parameters for part in found.parts.values()) / 2


@pytest.mark.usefixtures("without_bfloat16")
def test_a_step_that_does_not_fit_is_told_with_what_it_needs(folder: Path) -> None:
    found = appraise(str(folder))
    told = {name: (ok, text) for name, ok, text, _ in lines(found, found.memory)}
    assert told["memory"][0] and told["licence"][0] and "evaluations" in told["cost of a step"][1]
    ok, advice = next(
        (ok, advice) for name, ok, _, advice in lines(found, found.memory - 1) if name == "memory"
    )
    assert not ok and found.halved < found.memory and "prior.dtype=bfloat16" in advice
    advice = next(advice for name, _, _, advice in lines(found, found.halved - 1) if name == "memory")
    assert "smaller teacher" in advice and "bfloat16" not in advice


def test_where_smaller_pictures_would_fit_their_size_is_told(folder: Path) -> None:
    found = replace(appraise(str(folder)), pixels=1024)
    free = found.memory + found.reading - found.pictured + int(0.6 * found.pictured)  # sqrt(.6) 1024 is 793
    advice = next(advice for name, _, _, advice in lines(found, free) if name == "memory")
    assert advice.endswith("in this precision pictures of 768 pixels would")


def test_the_command_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--prior", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "fits here" in out and "stabilityai" in out
    assert doctor.main(["--prior", "no such thing"]) == 2


def test_a_folder_that_nothing_reads_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no diffusers pipeline"):
        appraise(str(tmp_path))


def test_a_folder_that_lacks_a_part_does_not_fit(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "text_encoder_3")
    with pytest.raises(UserError, match=r"text_encoder_3/config\.json is missing"):
        appraise(str(tmp_path / "half"))


def test_a_card_without_a_licence_says_nothing(tmp_path: Path) -> None:
    assert licence(tmp_path) == ""
    (tmp_path / "README.md").write_text("# no front matter\nlicense: mit\n")
    assert licence(tmp_path) == ""


def write_head(network: Any, folder: Path) -> None:
    """Write a network's configuration, and its weights as a file with a header and a hole behind it."""
    folder.mkdir(parents=True)
    network.save_config(folder)
    told, end = {}, 0
    for name, tensor in network.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        told[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(told).encode()
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize(
    "family", ["if", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd35", "sdxl"))]
)
def test_its_estimate_is_near_what_a_step_of_the_true_size_took(family: str, tmp_path: Path) -> None:
    """Libraries and the denoiser's own activations come on top: half a GiB to one."""
    size = SIZES[family]
    taken = json.loads((RESULTS / "true_size.json").read_text())["families"][family]
    config = size.config | {"sample_size": taken["pixels"] // (8 if size.vae else 1)}
    with torch.device("meta"):
        write_head(size.network(config), tmp_path / size.reader.place)
        if size.vae:
            write_head(AutoencoderKL(**size.vae), tmp_path / "vae")
    for part in size.reader.encoders:
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    kind = "FlowMatchEulerDiscreteScheduler" if family == "sd35" else "DDPMScheduler"
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "model_index.json").write_text("{}")
    found = appraise(str(tmp_path))
    assert found.pixels == taken["pixels"]
    told = (found.memory if taken["dtype"] == str(torch.float32)[6:] else found.halved) / 2**30
    assert told - 0.5 < taken["peak_gib"] < told + 1.5
