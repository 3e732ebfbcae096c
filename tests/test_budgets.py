"""Budgets of size: lines of a file and of a function, parameters of a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("splatdistill", "tests", "benchmarks")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 12
LONG_FUNCTIONS = {"splatdistill/training/loop.py:train"}  # read from top to bottom
MANY_PARAMETERS = {"splatdistill/priors/view_transformer.py:__init__"}  # the keys of its config.json

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def functions() -> list[tuple[str, Function]]:
    """Return all functions, by their file and name."""
    return [
        (f"{path.relative_to(ROOT)}:{node.name}", node)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    ]


def code_lines(node: Function) -> int:
    """Return the lines of a function without its docstring."""
    assert node.end_lineno is not None
    text = ast.get_docstring(node, clean=False)
    return node.end_lineno - node.lineno + 1 - (text.count("\n") + 1 if text else 0)


def parameters(node: Function) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_no_file_is_longer_than_its_budget() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in sources()}
    assert lines and not {name: count for name, count in lines.items() if count > FILE_LINES}


@pytest.mark.parametrize(
    ("measure", "budget", "exceptions"),
    [(code_lines, FUNCTION_LINES, LONG_FUNCTIONS), (parameters, PARAMETERS, MANY_PARAMETERS)],
    ids=["lines", "parameters"],
)
def test_no_function_is_over_its_budget_and_exceptions_are_needed(
    functions, measure, budget, exceptions
) -> None:
    over = {name: measure(node) for name, node in functions if measure(node) > budget}
    assert set(over) == exceptions, over
