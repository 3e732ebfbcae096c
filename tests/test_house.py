"""The rooms of the package: imports point downward, without a circle; each thing has one definition."""

import ast
import re
from pathlib import Path

import pytest

import splatdistill
from splatdistill import folder

ROOT = Path(splatdistill.__file__).parent
VERBS = (
    "train",
    "batch",
    "refine",
    "edit",
    "sample2d",
    "evaluate",
    "export",
    "view",
    "report",
    "reproduce",
    "doctor",
)
ROOMS = (  # from the top down: a room imports itself and what stands after it
    "__main__",
    *VERBS,
    "cli",
    "measure",
    "viewer",
    "training",
    "media",
    "config",
    "teaching",  # makes the shipped weights; nothing imports it
    "guidance",
    "priors",
    "formats",
    "scene",
    "ops",
    "reference",
    "folder",
    "files",
    "console",
    "errors",
)


def room_of(module: str) -> str:
    return module.removeprefix("splatdistill.").partition(".")[0]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py")) if "configs" not in path.parts}


def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, wherever in its text."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("splatdistill")}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [
                        *package.split(".")[: len(package.split(".")) - node.level + 1],
                        *([base] if base else []),
                    ]
                )
            if base.partition(".")[0] == "splatdistill":
                found |= {full if (full := f"{base}.{name.name}") in MODULES else base for name in node.names}
    return found - {module, "splatdistill"}


ARROWS = {module: imports(module) for module in MODULES if module != "splatdistill"}


def test_every_room_has_its_floor() -> None:
    assert {room_of(module) for module in ARROWS} <= set(ROOMS)


def test_imports_point_downward() -> None:
    upward = [
        f"{module} -> {other}"
        for module, others in ARROWS.items()
        for other in others
        if ROOMS.index(room_of(other)) < ROOMS.index(room_of(module))
    ]
    assert not upward


def test_verbs_do_not_import_verbs() -> None:
    crossed = [
        f"{verb} -> {other}"
        for verb in VERBS
        for other in ARROWS[f"splatdistill.{verb}"]
        if room_of(other) in VERBS
    ]
    assert not crossed


def test_only_verbs_import_cli() -> None:
    users = {room_of(module) for module, others in ARROWS.items() if "splatdistill.cli" in others}
    assert users <= {*VERBS, "__main__", "teaching"}


def test_nothing_above_imports_what_makes_the_shipped_weights() -> None:
    users = [m for m, others in ARROWS.items() if any(room_of(o) == "teaching" for o in others)]
    assert all(room_of(module) == "teaching" for module in users)


def circles() -> list[list[str]]:
    """Return the circles of modules that import each other when they are loaded."""
    found: list[list[str]] = []
    state: dict[str, int] = {}
    trail: list[str] = []

    def visit(module: str) -> None:
        state[module] = 1
        trail.append(module)
        for other in sorted(ARROWS.get(module, ())):
            if state.get(other) == 1:
                found.append([*trail[trail.index(other) :], other])
            elif other not in state:
                visit(other)
        trail.pop()
        state[module] = 2

    for module in ARROWS:
        if module not in state:
            visit(module)
    return found


def test_no_module_imports_itself_around_a_corner() -> None:
    assert not circles()


def test_libraries_see_no_argparse() -> None:
    users = [
        module
        for module, path in MODULES.items()
        if room_of(module) not in (*VERBS, "cli", "__main__", "teaching")
        and re.search(r"^\s*(import argparse|from argparse)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not users


# A folder's name that is a plain word stands for other things elsewhere.
NAMES = {
    key: value
    for key, value in vars(folder).items()
    if key.isupper() and isinstance(value, str) and ("." in value or "-" in value)
}


def texts_of(path: Path) -> list[tuple[int, str]]:
    """Return the literal strings of a module, each with its line."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


@pytest.fixture(scope="module")
def literals() -> dict[str, list[str]]:
    """Return where each literal string of the package stands, outside folder.py."""
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for line, text in texts_of(path) if module != "splatdistill.folder" else []:
            found.setdefault(text, []).append(f"{module}:{line}")
    return found


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_of_a_run_is_named_once(name: str, literals: dict[str, list[str]]) -> None:
    """The literal stands in folder.py alone; texts for people may mention it inside a sentence."""
    assert not literals.get(NAMES[name])
