"""Logs and pictures of a run: what a service gets, what is kept on the way; neither changes the run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from tiny import SMALL

from splatdistill.folder import TENSORBOARD, VALIDATION
from splatdistill.train import main

pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


def command(teacher: str, *arguments: str) -> list[str]:
    fixed = ["--prompt", "a red mushroom", "--prior", teacher, "--method", "sds", "--steps", "4", *arguments]
    return [*fixed, *SMALL, "prior.dtype=float32"]


class Service:
    """Stands for TensorBoard's writer and for a run of wandb: keeps what it is told."""

    def __init__(self, place: str = "") -> None:
        self.place, self.numbers, self.pictures, self.closed = place, {}, [], 0

    def add_text(self, name: str, text: str) -> None:
        assert text == "a red mushroom"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.numbers.setdefault(step, {})[name] = value

    def add_image(self, name: str, pixels, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures.append((step, pixels.shape))

    def log(self, values: dict, step: int) -> None:
        if "validation" in values:
            self.pictures.append((step, values["validation"].shape))
        else:
            self.numbers[step] = values

    def close(self) -> None:
        self.closed += 1

    finish = close


@pytest.fixture
def services(monkeypatch) -> list[Service]:
    """Both packages, as far as they are used; what was opened."""
    opened: list[Service] = []

    def open_one(place: str = "", **told) -> Service:
        opened.append(Service(place or told["dir"]))
        if told:
            assert told["project"] == "splatdistill" and told["config"]["prompt"] == "a red mushroom"
        return opened[-1]

    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    setattr(board, "SummaryWriter", open_one)  # noqa: B010
    setattr(wandb, "init", open_one)  # noqa: B010
    setattr(wandb, "Image", lambda pixels: pixels)  # noqa: B010
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return opened


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logged_run_sends_every_step_and_ends_in_the_same_bytes(teacher, services, name: str) -> None:
    assert main(command(teacher, "--out", "alone")) == 0
    assert main(command(teacher, "--out", "logged", "--log", name, "--validate", "2")) == 0
    (service,) = services
    assert service.place == str(Path("logged") / (TENSORBOARD if name == "tensorboard" else ""))
    assert sorted(service.numbers) == [1, 2, 3, 4] and {"loss", "gradient_norm"} <= service.numbers[4].keys()
    assert service.pictures == [(step, (16, 32, 3)) for step in (1, 2, 3, 4)] and service.closed == 1
    for file in ("splat.ply", "metrics.jsonl"):
        assert Path("alone", file).read_bytes() == Path("logged", file).read_bytes()


def test_pictures_are_kept_at_every_tenth_and_leave_with_their_run(teacher) -> None:
    words = command(teacher, "--out", "run", "--validate", "3", "steps=25")
    words.remove("--steps")
    words.remove("4")
    assert main(words) == 0
    steps = [int(path.stem.removeprefix("step-")) for path in sorted(Path("run", VALIDATION).iterdir())]
    assert steps == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    with Image.open(Path("run", VALIDATION, "step-00000025.png")) as picture:
        assert picture.size == (3 * 16, 16)
    assert main(command(teacher, "--out", "run", "--overwrite")) == 0
    assert not Path("run", VALIDATION).exists()


def test_a_logger_that_breaks_is_told_once_and_the_run_goes_on(teacher, services, monkeypatch, capfd) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nroute")

    monkeypatch.setattr(Service, "add_scalar", fail)
    assert main(command(teacher, "--out", "run", "--log", "tensorboard")) == 0
    assert capfd.readouterr().err.count("no more logging: RuntimeError: no route") == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_made(
    teacher, monkeypatch, capfd, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(command(teacher, "--out", "run", "--log", name)) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"splatdistill[{name}]" in line and not Path("run").exists()


@pytest.mark.parametrize("views", ["-1", "1000"])
def test_a_number_of_views_that_makes_no_picture_is_refused(teacher, capfd, views: str) -> None:
    assert main(command(teacher, "--out", "run", "--validate", views)) == 2
    assert "--validate" in capfd.readouterr().err and not Path("run").exists()
