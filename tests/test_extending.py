"""docs/EXTENDING.md: its example, installed as a package beside this one, runs from the command line."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import SMALL

from splatdistill.train import main

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


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes a run in tmp_path/run beside an example that is installed."""

    def started(section: str, *words: str) -> None:
        site = install(section, tmp_path)
        (module,) = (path.stem for path in site.glob("*.py"))
        monkeypatch.syspath_prepend(site)
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)  # and again at the end
        out = tmp_path / "run"
        assert main([*words, "--device", "cpu", "--out", str(out)]) == 0
        assert (out / "splat.ply").is_file()

    return started


def test_the_method_of_the_page_trains_from_the_command_line(tmp_path: Path, train) -> None:
    words = ["--prompt", "a red mushroom", "--method", "calm_sds", "method.draws=3", "--steps", "2"]
    train("A method", *words, *SMALL, "views.count=4")
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: calm_sds" in saved and "draws: 3" in saved


def test_the_prior_of_the_page_trains_from_the_command_line(tmp_path: Path, train) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "color.json").write_text('{"color": [0.9, 0.1, 0.1]}')
    train(
        "A prior",
        *("--prompt", "anything", "--prior", str(tmp_path / "teacher"), "--method", "sds"),
        *("--steps", "2"),
        *SMALL,
    )
