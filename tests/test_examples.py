"""The notebook runs from its first cell to its last, and shows what it says."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_pipeline

NOTEBOOK = Path(__file__).parents[1] / "examples" / "from_sds_to_ddim.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Return what the cells define and print, with fewer steps and a tiny random teacher."""
    teacher = make_pipeline(tmp_path_factory.mktemp("teacher"), "AutoencoderTiny", timesteps=1000)
    smaller = {'"real"': repr(str(teacher)), "COUNT = 4": "COUNT = 2", "STEPS = 60": "STEPS = 6"}
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                text = "".join(cell["source"])
                for written, small in smaller.items():
                    text = text.replace(written, small)
                exec(compile(text, str(NOTEBOOK), "exec"), names)
    return names, printed.getvalue()


def test_cached_sdi_is_ddim(ran) -> None:
    names, printed = ran
    assert (names["cached"] - names["ddim"]).abs().max() < 1e-3
    assert "largest difference of latents" in printed


def test_sds_varies_and_sdi_does_not(ran) -> None:
    names, _ = ran
    assert names["variance"](names["sds"], 500, draws=6) > 0.1
    assert names["variance"](names["sdi"], 500, draws=6) < 1e-6


def test_the_pages_text_and_code_are_what_the_reader_sees() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and "SDS" in cells[0]["source"][0]
    assert sum(cell["cell_type"] == "code" for cell in cells) >= 5
