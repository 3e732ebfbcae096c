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
FLAGS = f"{CXX_FLAGS.replace('-O3', '-O1')} -g -Werror {SANITIZERS}"
TESTS = ROOT / "tests" / "native"


def ninja_text(cxx: str) -> str:
    """Return build.ninja: one program of kernels and tests; the bindings are only checked."""
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(ROOT / "csrc"), str(TESTS)]
    include = " ".join(f"-isystem{shlex.quote(path)}" for path in includes[:2])
    include += "".join(f" -I{shlex.quote(path)}" for path in includes[2:])
    levels = levels_of(cxx)
    objects = [
        (target, source, flags) for target, source, _, flags in objects_of(ROOT / "csrc", levels, False)
    ]
    for level, flags in levels.items():
        source = TESTS / "test_primitives.cpp"
        objects.append((f"test_primitives.{level}.o", source, f"{flags} -DSPLATDISTILL_LEVEL={level}"))
    objects.append(("test_kernels.o", TESTS / "test_kernels.cpp", levels["baseline"]))
    lines = [
        f"rule cxx\n  command = {cxx} -MMD -MF $out.d {FLAGS} {include} $flags -c $in -o $out",
        "  description = compile $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule check\n  command = {cxx} -fsyntax-only {FLAGS} {include} $flags $in && touch $out",
        "  description = check $in",
        f"rule link\n  command = {cxx} -fopenmp {SANITIZERS} $in -o $out",
    ]
    bindings = [target for target, source, _ in objects if source.parent.name == "python"]
    for target, source, flags in objects:
        rule = "check" if target in bindings else "cxx"
        lines.append(f"build {target}: {rule} {source}\n  flags = {flags}")
    linked = [target for target, *_ in objects if target not in bindings]
    return "\n".join([*lines, f"build tests: link {' '.join(linked)}", ""])


def main() -> None:
    """Build and run; exit with the first status that is not 0."""
    cxx = find_cxx()
    if cxx is None:
        raise SystemExit("the native checks need a C++ compiler")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "build.ninja").write_text(ninja_text(cxx))
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # ninja reads it
    for command in ([sys.executable, "-m", "ninja", "--quiet", "-C", str(FOLDER)], [str(FOLDER / "tests")]):
        status = subprocess.run(command, env=environment).returncode
        if status:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
