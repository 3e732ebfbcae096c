"""docs/EXTENDING.md: its example, installed as a package beside this one, runs from the command line."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import SMALL

PAGE = Path(__file__).parents[1] / "docs" / "EXTENDING.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return the page's example as pip leaves it: a module, and metadata that name its entry points."""
    text = PAGE.read_text("utf-8").partition("## A prior")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:1]
    (project,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[:1]
    about = tomllib.loads(project)["project"]
    site = tmp_path / "site"
    metadata = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {about['name']}\nVersion: {about['version']}\n")
    lines = []
    for group, entries in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (site / "plain_color.py").write_text(code)
    return site


@pytest.mark.slow
def test_the_prior_of_the_page_trains_from_the_command_line(package: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "color.json").write_text('{"color": [0.9, 0.1, 0.1]}')
    words = ["--prompt", "anything", "--prior", str(tmp_path / "teacher"), "--steps", "2", *SMALL]
    places = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "splatdistill.train", *words, "--device", "cpu", "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "splat.ply").is_file()
