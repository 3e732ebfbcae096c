"""The verbs by name: each is found, none costs an import of torch for its help."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import splatdistill
from splatdistill import __main__ as entry

HEAVY = "torch|transformers|diffusers|viser|gsplat"


def test_every_module_with_a_main_is_a_verb() -> None:
    files = Path(splatdistill.__file__).parent.glob("*.py")
    verbs = {path.stem for path in files if re.search(r"^def main\(", path.read_text("utf-8"), re.MULTILINE)}
    assert verbs - {"__main__"} == set(entry.VERBS)


MISTAKES = [
    ["train", "--prompt", "a red car", "--prior", "nosuch"],
    ["train", "--prompt", " "],
    ["sample2d", "--prompt", "a red car", "--prior", "owner/name"],
    ["evaluate", "--clip", "nosuch", "--suite", "objects"],
    ["evaluate", "--clip", "owner/name", "--suite", "objects"],
    ["evaluate", "--suite", "objects", "--priors", "nosuch"],
    ["evaluate", "--suite", "objects", "--methods", "sds,nosuch"],
    ["evaluate", "--suite", "objects", "--seeds", "x"],
    ["evaluate", "nosuch"],
    ["doctor", "--nosuch"],
    ["train"],
    ["train", "--resume", "nosuch"],
    ["edit", "--splat", "nosuch.ply", "--target-prompt", "a blue car"],
    ["export", "nosuch.ply", "nosuch.glb"],
    ["view", "nosuch.ply"],
    ["report", "nosuch"],
    ["reproduce", "--jobs", "0"],
    ["reproduce", "sdi-99"],
    ["train", "--prompt", "a red car", "--method", "sdx"],
    ["train", "--prompt", "a red car", "--steps", "0"],
    ["train", "--prompt", "a red car", "--config", "nosuch.yaml"],
    ["train", "--image", "nosuch.png"],
    ["sample2d", "--prompt", "a red car", "--method", "sdx"],
    ["edit", "--splat", "a.ply", "--target-prompt", "a blue car", "--method", "sdx"],
]


HELP = [["--help"], *([verb, "--help"] for verb in entry.VERBS)]
ONE_AFTER_ANOTHER = f"""
import contextlib, io, json, sys
from splatdistill.__main__ import main
for words in json.load(sys.stdin):
    streams = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
    heavy = [name for name in {HEAVY.split("|")!r} if name in sys.modules]
    print(json.dumps([status, *(stream.getvalue() for stream in streams), heavy]))
"""


@pytest.fixture(scope="module")
def told() -> dict[tuple[str, ...], list[Any]]:
    """Return the status, the output, the errors, and what heavy is imported after each, of one process."""
    given = [*MISTAKES, *HELP]
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        tuple(words): json.loads(line) for words, line in zip(given, done.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(words: list[str], told) -> None:
    status, _, errors, heavy = told[tuple(words)]
    assert status == 2 and not heavy, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors


@pytest.mark.parametrize("words", HELP)
def test_help_imports_nothing_heavy(words: list[str], told) -> None:
    status, output, errors, heavy = told[tuple(words)]
    assert status == 0 and "usage" in output and not heavy, errors


def test_the_rest_of_the_line_goes_to_the_verb(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(import_module("splatdistill.report"), "main", lambda words: seen.append(words) or 7)
    assert entry.main(["report", "RUN"]) == 7 and seen == [["RUN"]]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--version"], 0, f"splatdistill {splatdistill.__version__}"),
        ([], 2, "usage"),
        (["trian"], 2, "did you mean 'train'?"),
        (["zzz"], 2, "expected one of train"),
    ],
)
def test_what_is_no_verb_is_told(words: list[str], status: int, said: str, capsys) -> None:
    assert entry.main(words) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_the_installed_command_is_the_same() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    module, name = project["project"]["scripts"]["splatdistill"].split(":")
    assert getattr(import_module(module), name) is entry.main


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "splatdistill", "doctor", "--foo"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--foo" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("verb", "meant"),
    [("train", '--prompt "a red mushroom"'), ("edit", '--target-prompt "a red mushroom"')],
)
def test_a_prompt_without_its_flag_is_told_by_its_flag(verb: str, meant: str, capsys) -> None:
    given = ["--splat", "it.ply", "--target-prompt", "a car"] if verb == "edit" else []
    with pytest.raises(SystemExit) as stop:
        import_module(f"splatdistill.{verb}").main([*given, "a", "red", "mushroom", "guidance.scale=3"])
    assert stop.value.code == 2 and meant in capsys.readouterr().err
