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


def install(section: str, tmp_path: Path) -> Path:
    """Install a section's example as pip leaves it: a module, and metadata that name its entry points."""
    text = PAGE.read_text("utf-8").partition(f"## {section}\n")[2]
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
    (site / f"{metadata.name.partition('-')[0]}.py").write_text(code)
    return site


def train(site: Path, out: Path, *words: str) -> None:
    places = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "splatdistill.train", *words, "--device", "cpu", "--out", out],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr
    assert (out / "splat.ply").is_file()


def test_the_method_of_the_page_trains_from_the_command_line(tmp_path: Path) -> None:
    site = install("A method", tmp_path)
    words = ["--prompt", "a red mushroom", "--method", "calm_sds", "method.draws=3", "--steps", "2"]
    train(
        site,
        tmp_path / "run",
        *words,
        "views.size=16",
        "report.size=16",
        "report.frames=2",
        "gaussians.count=60",
    )
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: calm_sds" in saved and "draws: 3" in saved


@pytest.mark.slow
def test_the_prior_of_the_page_trains_from_the_command_line(tmp_path: Path) -> None:
    site = install("A prior", tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "color.json").write_text('{"color": [0.9, 0.1, 0.1]}')
    words = ["--prompt", "anything", "--prior", str(tmp_path / "teacher"), "--steps", "2", *SMALL]
    train(site, tmp_path / "run", *words)
