"""Builds the optional native extension splatdistill._C; everything else is in pyproject.toml.

Environment:
  SPLATDISTILL_CUDA        0: no CUDA; 1: CUDA or an error; unset: CUDA when nvcc is found and works
  SPLATDISTILL_CUDA_ARCHS  e.g. "90" or "80 90": only these (default: sm_75 to sm_90, and PTX)
  MAX_JOBS                 compiler processes at a time
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CUDA_ARCHS = (75, 80, 86, 89, 90)
CXX_FLAGS = (
    "-O3 -std=c++17 -fopenmp -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast "
    "-Wall -Wextra"
)
# The levels at which the kernels are compiled; csrc/dispatch.cpp asks the processor for every flag here.
AVX2 = "-mavx2 -mfma -mbmi -mbmi2"
LEVELS = {"baseline": "", "avx2": AVX2, "avx512": f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl"}


class BuildFailed(RuntimeError):
    """The compiler was missing or refused; the message is one line."""


def find_cxx() -> str | None:
    """Return the command of the C++ compiler, or None."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((command for command in candidates if shutil.which(shlex.split(command)[0])), None)


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None when there is none or SPLATDISTILL_CUDA=0."""
    if os.environ.get("SPLATDISTILL_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def cuda_arch_flags(nvcc: str) -> str:
    """Return the -gencode flags: the architectures this nvcc knows, and PTX of the newest for later GPUs."""
    asked = re.findall(r"\d+", os.environ.get("SPLATDISTILL_CUDA_ARCHS", ""))
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    wanted = [int(arch) for arch in asked] or CUDA_ARCHS
    archs = [arch for arch in wanted if f"compute_{arch}" in known.split()]
    if not archs:
        raise BuildFailed(f"nvcc knows none of the architectures {wanted}")
    flags = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return " ".join(flags + [f"-gencode arch=compute_{max(archs)},code=compute_{max(archs)}"])


def levels_of(cxx: str) -> dict[str, str]:
    """Return the names of the levels that this compiler's target has, with their flags."""
    command = [*shlex.split(cxx), "-dumpmachine"]
    machine = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if not machine.startswith("x86_64"):
        return {"baseline": ""}
    return {name: f"-march=x86-64 {flags}" for name, flags in LEVELS.items()}


def objects_of(root: Path, levels: dict[str, str], cuda: bool) -> list[tuple[str, Path, str, str]]:
    """Return (object, source, rule, flags): kernels once a level, what binds and chooses them once."""
    found = []
    for source in sorted(root.rglob("*.cpp")):
        name = source.relative_to(root)
        once = name.parent.name in ("", "python")
        for level in ["baseline"] if once else levels:
            flags = f"{levels[level]} -DSPLATDISTILL_LEVEL={level}"
            if name.parent.name == "python":
                flags += " -O1"  # glue: half the time to compile
            found.append((f"{'_'.join(name.parts)}.{level}.o", source, "cxx", flags))
    if cuda:
        found += [(f"{source.name}.o", source, "cuda", "") for source in sorted(root.rglob("*.cu"))]
    return found


def ninja_text(root: Path, module: str, cxx: str, nvcc: str | None, includes: list[str]) -> str:
    """Return build.ninja: the objects of `objects_of` (headers tracked), one shared library."""
    include = " ".join(f"-I{shlex.quote(path)}" for path in includes)
    cxxflags = f"{CXX_FLAGS} {'-DSPLATDISTILL_CUDA' if nvcc else ''} {include}"
    # The static CUDA runtime loads the driver on first use, so the module imports on any machine.
    link = f"{nvcc} -ccbin {cxx} -cudart static -Xcompiler -fopenmp" if nvcc else f"{cxx} -fopenmp"
    lines = [
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d {cxxflags} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link} -shared $in -o $out",
    ]
    if nvcc:
        lines += [
            "rule cuda",
            f"  command = {nvcc} -ccbin {cxx} -MD -MF $out.d -O3 -std=c++17 {cuda_arch_flags(nvcc)}"
            f" -Xcompiler -fPIC,-fvisibility=hidden {include} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    objects = objects_of(root, levels_of(cxx), bool(nvcc))
    for target, source, rule, flags in objects:
        lines += [f"build {target}: {rule} {source}", f"  flags = {flags}"]
    lines.append(f"build {module}: link {' '.join(target for target, *_ in objects)}")
    return "\n".join(lines) + "\n"


def replace(source: Path, target: Path) -> None:
    """Copy `source` over `target` in one step, so that no process ever maps half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, f"{target}.new")
    os.replace(f"{target}.new", target)


def compile_module(target: Path, folder: Path, nvcc: str | None) -> None:
    """Compile csrc/ in `folder` and put the module at `target`; raise BuildFailed with one line."""
    import fcntl  # not on Windows, where the package installs without the extension

    import pybind11  # absent where setup.py only answers questions

    cxx = find_cxx()
    if cxx is None:
        raise BuildFailed("no C++ compiler found")
    root = Path(__file__).resolve().parent / "csrc"
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(root)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one tree take turns
        (folder / "build.ninja").write_text(ninja_text(root, target.name, cxx, nvcc, includes))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs]).returncode:
            raise BuildFailed(f"compiling csrc/ failed with {'nvcc and ' if nvcc else ''}{cxx}")
        replace(folder / target.name, target)


class OptionalBuildExt(build_ext):
    """Compiles with CUDA, else without, else leaves the extension out: the reference takes over."""

    def build_extension(self, ext: Extension) -> None:
        """Build splatdistill._C, or say in one line why it was left out."""
        nvcc = find_nvcc()
        forced = os.environ.get("SPLATDISTILL_CUDA") == "1"
        if forced and nvcc is None:
            raise SystemExit(
                "splatdistill: SPLATDISTILL_CUDA=1 but nvcc was not found; set CUDA_HOME or unset it"
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve()
        target.unlink(missing_ok=True)  # an older build must not stand in for a failed one
        attempts = [nvcc, None] if nvcc and find_cxx() and not forced else [nvcc]
        for compiler in attempts:
            try:
                compile_module(target, folder / ("cuda" if compiler else "cpu"), compiler)
                return
            except (BuildFailed, ImportError, OSError, subprocess.CalledProcessError) as error:
                if forced:
                    raise SystemExit(f"splatdistill: SPLATDISTILL_CUDA=1: {error}") from error
                last = compiler == attempts[-1]
                then = "the slow pure-torch reference will be used" if last else "trying without CUDA"
                print(f"splatdistill: native kernels: {error}; {then}", file=sys.stderr, flush=True)

    def copy_extensions_to_source(self) -> None:
        """Put what was built beside the sources; a running process keeps the file it has mapped."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            if built.exists():
                replace(built, Path(self.get_ext_fullpath(ext.name)))

    def get_outputs(self) -> list[str]:
        """List only what was built."""
        return [path for path in super().get_outputs() if os.path.exists(path)]


if __name__ == "__main__":  # the tests of the kernels read the flags from here
    setup(
        packages=[*find_packages(include=["splatdistill*"]), "splatdistill.configs"],
        package_dir={"splatdistill.configs": "configs"},
        ext_modules=[Extension("splatdistill._C", sources=[])],
        cmdclass={"build_ext": OptionalBuildExt},
    )
