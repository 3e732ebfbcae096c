"""Shared set-up: `gpu` tests are skipped without a CUDA device; generated examples are always the same."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks
from hypothesis import settings

OWN = tempfile.TemporaryDirectory(prefix="splatdistill-tests-")
DEFAULT = Path(OWN.name, "tiny")  # the teacher where none is named, in what tests start too
os.environ["SPLATDISTILL_PRIOR"] = str(DEFAULT)
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def views() -> Path:
    """Return the folder of a tiny random teacher in the layout of the shipped one: the default."""
    from tiny import make_views

    return make_views(DEFAULT)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random pipeline in diffusers layout."""
    from tiny import make_pipeline

    return str(make_pipeline(tmp_path_factory.mktemp("teacher"), "AutoencoderTiny"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Return what runs code in fresh processes that hold torch alone."""
    with Forks() as forks:
        yield forks


_loaded: dict[Any, Any] = {}


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs share a teacher that is loaded for the first of them: it is frozen."""
    from splatdistill import priors

    load = priors.load_prior

    def load_prior(*given: Any) -> Any:
        if given not in _loaded:
            _loaded[given] = load(*given)
        return _loaded[given]

    monkeypatch.setattr(priors, "load_prior", load_prior)


@pytest.fixture(params=[signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give a signal its usual meaning, also where the tests run under nohup or in the background."""
    usual = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, usual)
    yield request.param
    signal.signal(request.param, before)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
