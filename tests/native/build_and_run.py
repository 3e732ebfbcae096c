"""Build the kernels and their C++ tests with warnings as errors and sanitizers, and run them.

python tests/native/build_and_run.py: in build/native-check; ends with what the tests end with
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from setup import CXX_FLAGS, find_cxx, levels_of, objects_of  # noqa: E402

FOLDER = ROOT / "build" / "native-check"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
FLAGS = f"{CXX_FLAGS.replace('-O3', '-O1')} -g1 -Werror {SANITIZERS}"  # -g1: lines, for what they report
TESTS = ROOT / "tests" / "native"
BINDINGS = FOLDER / "bindings.cpp"


def ninja_text(cxx: str) -> str:
    """Return build.ninja: one program of kernels and tests; the bindings are only checked, all at once."""
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(ROOT / "csrc"), str(TESTS)]
    include = " ".join(f"-isystem{shlex.quote(path)}" for path in includes[:2])
    include += "".join(f" -I{shlex.quote(path)}" for path in includes[2:])
    levels = levels_of(cxx)
    objects = [
        (target, source, flags)
        for target, source, _, flags in objects_of(ROOT / "csrc", levels, False)
        if source.parent.name != "python"
    ]
    for level, flags in levels.items():
        source = TESTS / "test_primitives.cpp"
        objects.append((f"test_primitives.{level}.o", source, f"{flags} -DSPLATDISTILL_LEVEL={level}"))
    objects.append(("test_kernels.o", TESTS / "test_kernels.cpp", levels["baseline"]))
    command = f"{cxx} -MMD -MF $out.d {FLAGS} {include} $flags"
    lines = [
        f"rule cxx\n  command = {command} -c $in -o $out",
        "  description = compile $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule check\n  command = {command} -fsyntax-only $in && touch $out",
        "  description = check $in",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {cxx} -fopenmp {SANITIZERS} $in -o $out",
        f"build bindings: check {BINDINGS}\n  flags = -DSPLATDISTILL_LEVEL=baseline",
    ]
    for target, source, flags in objects:
        lines.append(f"build {target}: cxx {source}\n  flags = {flags}")
    linked = " ".join(target for target, *_ in objects)
    return "\n".join([*lines, f"build tests: link {linked}", ""])


def write_bindings() -> None:
    """Write a source that includes all bindings, so that what they include is read once."""
    sources = sorted((ROOT / "csrc" / "python").glob("*.cpp"))
    BINDINGS.write_text("".join(f'#include "{source}"\n' for source in sources))


def main() -> None:
    """Build and run; exit with the first status that is not 0."""
    cxx = find_cxx()
    if cxx is None:
        raise SystemExit("the native checks need a C++ compiler")
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_bindings()
    (FOLDER / "build.ninja").write_text(ninja_text(cxx))
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # ninja reads it
    for command in ([sys.executable, "-m", "ninja", "--quiet", "-C", str(FOLDER)], [str(FOLDER / "tests")]):
        status = subprocess.run(command, env=environment).returncode
        if status:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
