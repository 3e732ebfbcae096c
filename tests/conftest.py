"""Shared set-up: `gpu` tests are skipped without a CUDA device; generated examples are always the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forks import Forks
from hypothesis import settings

os.environ["SPLATDISTILL_PRIOR"] = (
    "embedded-multiview"  # smaller than the default one, in what tests start too
)
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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
