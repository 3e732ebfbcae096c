"""The flat playground, end to end on a tiny random pipeline."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import make_pictured

from splatdistill import sample2d
from splatdistill.guidance.registry import METHODS
from splatdistill.priors.latent import LatentPrior

DRAW = [name for name, method in METHODS.items() if method.reads_latents and not method.edits]


pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch) -> None:
    monkeypatch.setattr(sample2d, "DDIM_STEPS", 12)


def words(teacher: str, *more: str) -> list[str]:
    return ["--prompt", "a red mushroom", "--prior", teacher, "--count", "2", *more, "prior.dtype=float32"]


def figures(folder: str) -> dict:
    return json.loads(Path(folder, "metrics.json").read_text("utf-8"))


@pytest.mark.parametrize("method", DRAW)
def test_every_method_draws(teacher, method):
    assert sample2d.main(words(teacher, "--method", method, "--steps", "3", "--out", "o")) == 0
    with Image.open("o/picture.png") as picture, Image.open("o/trajectory.png") as trajectory:
        assert picture.size == (64, 32) and trajectory.size == (96, 64)
    assert figures("o")["latent_rmse_to_ddim"] > 0


@pytest.mark.parametrize("method", ["dds", "pds"])
def test_editing_starts_from_a_sample_of_the_source(teacher, method):
    source = ["--source-prompt", "a red dog", "--method", method, "--steps", "3", "--out", "o"]
    assert sample2d.main(words(teacher, *source)) == 0
    assert figures("o")["method"] == method


def test_cached_noise_is_ddim_and_ddim_is_itself(teacher):
    for mode, limit in (("cached", 1e-3), ("ddim", 1e-6)):
        assert sample2d.main(words(teacher, "--mode", mode, "--out", mode)) == 0
        assert figures(mode)["latent_rmse_to_ddim"] < limit
    assert Image.open("cached/trajectory.png").width == 10 * 32


def test_the_seed_decides(teacher):
    steps = ["--method", "vsd", "--steps", "3"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert sample2d.main(words(teacher, *steps, "--seed", seed, "--out", name)) == 0
    first, same, other = (Path(name, "picture.png").read_bytes() for name in "abc")
    assert first == same and first != other


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "pds"], "--source-prompt"),
        (["--method", "clip"], "splatdistill.train"),
        (["--method", "sds", "--mode", "cached"], "--mode"),
        (["--count", "0"], "--count"),
        (["--rate", "0"], "--rate"),
    ],
)
def test_mistakes_are_one_line(teacher, capfd, more, said):
    assert sample2d.main(words(teacher, *more)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not Path("outputs").exists()


def test_a_teacher_of_pictures_is_one_line(workplace, capfd):
    folder = str(make_pictured(workplace))
    capfd.readouterr()
    assert sample2d.main(["--prompt", "a red dog", "--prior", folder, "--out", "o"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "--image" in lines[0] and not Path("o").exists()


def test_pictures_that_are_not_finite_are_not_written(teacher, capfd, monkeypatch):
    def broken(self, *given, **named):
        return predict(self, *given, **named) * float("nan")

    predict = LatentPrior.predict
    monkeypatch.setattr(LatentPrior, "predict", broken)
    assert sample2d.main(words(teacher, "--steps", "2", "--out", "o")) == 1
    assert "not finite" in capfd.readouterr().err and not Path("o", "picture.png").exists()


def test_what_a_long_prompt_loses_is_said(teacher, capsys):
    source = ["--source-prompt", "a red mushroom " * 9, "--method", "pds", "--steps", "2", "--out", "o"]
    long = ["--prompt", "a red dog " * 9 + "front view", "--prior", teacher, "--count", "2", *source]
    assert sample2d.main(long) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("the prompt is longer than the teacher reads") and lines[0].endswith(
        "front view"
    )
    assert lines[1].startswith("the source prompt is longer than the teacher reads")
