"""The notebook runs from its first cell to its last, and shows what it says."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "from_sds_to_ddim.ipynb"


@pytest.fixture(scope="module")
def ran() -> tuple[dict[str, Any], str]:
    """Return what the cells define and print, with fewer steps."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                text = (
                    "".join(cell["source"])
                    .replace("COUNT = 4", "COUNT = 2")
                    .replace("STEPS = 60", "STEPS = 6")
                )
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
