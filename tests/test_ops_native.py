"""The native extension on every level of vector instructions, and on machines that lack something."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import test_ops_ddim as ddim
import test_ops_raster as raster
import torch

from splatdistill import ops, reference
from splatdistill.ops import native

LEVELS = ("baseline", "avx2", "avx512")
LEVEL_TOLERANCE = 1e-5  # between levels, which fuse and order float32 additions differently

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the native extension")


@pytest.fixture
def level(request) -> Iterator[str]:
    """Run on one level, then on what was used before."""
    if request.param not in native._C.levels():
        pytest.skip(f"this processor does not run {request.param}")
    before = native._C.level()
    native._C.set_level(request.param)
    yield request.param
    native._C.set_level(before)


every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)


def run(code: str, *launcher: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process."""
    command = [*launcher, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@every_level
@pytest.mark.parametrize("dtype", ddim.DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 3, 5, 7), (1, 1, 1, 3)])
def test_diffusion_steps_equal_the_reference_on_every_level(level, dtype, shape):
    for name, arguments in ddim.all_calls(dtype=dtype, shape=shape):
        actual, expected = getattr(ops, name)(**arguments), getattr(reference, name)(**arguments)
        ddim.assert_close(actual, expected, ddim.TOLERANCE[dtype])


@every_level
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_images_and_gradients_equal_the_reference_on_every_level(level, sh_degree):
    raster.assert_same(raster.ball(150, 37, 29, views=2, sh_degree=sh_degree))


@every_level
def test_results_do_not_depend_on_the_number_of_threads_on_any_level(level):
    scene, before, found = raster.ball(600, 70, 50, views=3, sh_degree=2), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            images, gradients = raster.run(raster.ops, scene)
            steps = ddim.results(ops, ddim.all_calls(shape=(3, 4, 64, 64)))
            found.append([*images.values(), *gradients.values(), steps])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0, rtol=0)


@every_level
def test_levels_agree_within_rounding(level):
    images, gradients = raster.run(raster.ops, raster.ball(400, 64, 48, views=2, sh_degree=1))
    native._C.set_level("baseline")
    narrow, narrow_gradients = raster.run(raster.ops, raster.ball(400, 64, 48, views=2, sh_degree=1))
    for name in ("rgb", "alpha", "depth"):
        flipped = (images[name] - narrow[name]).abs() > LEVEL_TOLERANCE
        assert flipped.float().mean() <= raster.FLIPPED_PIXELS, name
    for name, gradient in gradients.items():
        error = (gradient - narrow_gradients[name]).norm() / narrow_gradients[name].norm()
        assert error <= raster.GRADIENT_TOLERANCE, name


def test_environment_forces_a_level():
    for level in native._C.levels():
        found = run("from splatdistill import _C; print(_C.level())", SPLATDISTILL_SIMD=level)
        assert found.stdout.split() == [level], found.stderr


def test_level_that_does_not_exist_is_named_with_those_that_do(forks):
    with pytest.raises(ValueError, match=r"'sse9'.*only baseline"):
        native._C.set_level("sse9")
    code = "from splatdistill.ops import native; print(native.available())"
    found = forks.run(code, SPLATDISTILL_SIMD="sse9")
    assert found.stdout.split() == ["False"]
    assert "'sse9'" in found.stderr and "only baseline" in found.stderr and "compiler" not in found.stderr


def test_kernels_need_no_private_name_of_torch(forks):
    code = f"""
import sys, torch
sys.path.insert(0, {os.path.dirname(__file__)!r})
for name in ("_are_functorch_transforms_active", "_len_torch_dispatch_stack"):
    if hasattr(torch._C, name): delattr(torch._C, name)
for owner in (torch.Tensor, torch._C.TensorBase):
    if "__dlpack_c_exchange_api__" in vars(owner): delattr(owner, "__dlpack_c_exchange_api__")
import test_ops_ddim as ddim, test_ops_raster as raster
from splatdistill import ops, reference
from splatdistill.ops import native
assert native.available()
with torch.no_grad():
    for name, arguments in ddim.all_calls():
        ddim.assert_close(getattr(ops, name)(**arguments), getattr(reference, name)(**arguments), 1e-5)
    scene = raster.ball(50, 20, 16)
    out = raster.draw(raster.ops, scene, raster.leaves_of(scene, torch.float32))
print(float(out["alpha"].sum()) > 1.0)
"""
    found = forks.run(code)
    assert found.stdout.split() == ["True"], found.stderr


@pytest.mark.parametrize("kind, advice", [("ImportError", "reinstall"), ("ModuleNotFoundError", "compiler")])
def test_message_says_what_really_failed(forks, kind, advice):
    code = f"""
import importlib, sys
class Broken:
    def find_spec(self, name, *_):
        if name == "splatdistill._C": raise {kind}("the moon is in the way")
sys.meta_path.insert(0, Broken())
from splatdistill.ops import native
print(native.available())
"""
    found = forks.run(code)
    assert found.stdout.split() == ["False"]
    assert "the moon is in the way" in found.stderr and advice in found.stderr
    assert ("compiler" in found.stderr) == (advice == "compiler")


WIDE = re.compile(r"\t(v[a-z0-9]+|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|s(ar|hl|hr)x)\s")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64")
def test_only_functions_of_a_wide_level_hold_wide_instructions():
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", native._C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    function, wide = "", set()
    for line in listing.splitlines():
        if found := FUNCTION.match(line):
            function = found[1]
        elif WIDE.search(line):
            wide.add(function)
    assert any("avx2" in name for name in wide) and any("avx512" in name for name in wide)
    assert [name for name in wide if "avx2" not in name and "avx512" not in name] == []


# An emulator dies of an instruction that its processor does not know, as that processor does.
EMULATORS = {"avx2": "valgrind -q --tool=none", "baseline": "qemu-x86_64 -cpu Nehalem"}  # by what they run
DRAWING = """
import numpy as np
from splatdistill import _C
f = np.float32
N, V, W, H = 40, 1, 20, 17
rng = np.random.default_rng(0)
means, quats = rng.normal(size=(N, 3)).astype(f), rng.normal(size=(N, 4)).astype(f)
viewmats, Ks = np.eye(4, dtype=f)[None], np.array([[[20, 0, 10], [0, 20, 8], [0, 0, 1]]], f)
viewmats[0, 2, 3] = 4.0
opacities = np.full(N, 0.8, f)
scene = _C.RasterScene(means, quats, np.full((N, 3), 0.2, f), opacities, rng.normal(size=(N, 1, 3)).astype(f),
                       viewmats, Ks, W, H, 0, 0.01, 100.0, 0.0, 0.3)
out = [np.empty(s, f) for s in ((V, N, 2), (V, N, 3), (V, N), (V, N, 3))] + [np.empty((V, N, 2), np.int32)]
_C.raster_project(scene, *out)
means2d, conics, depths, colors, radii = out
picture = _C.RasterPicture(means2d, conics, colors, opacities, depths, radii, None, W, H)
rgb, alpha, depth = (np.empty((V, H, W, c), f) for c in (3, 1, 1))
memory = _C.raster_draw(picture, rgb, alpha, depth)
state = np.frombuffer(memory, np.uint8)
gradients = [np.empty(s, f) for s in ((V, N, 2), (V, N, 3), (V, N, 3), (N,), (V, N), (V, 3))]
_C.raster_draw_backward(picture, state, np.ones_like(rgb), None, None, alpha, depth, *gradients)
print(_C.level(), float(alpha.sum()) > 10.0, bool(np.isfinite(gradients[0]).all()))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64")
@pytest.mark.parametrize("widest", EMULATORS)
def test_extension_loads_and_draws_on_lesser_processors(widest):
    launcher = EMULATORS[widest].split()
    if shutil.which(launcher[0]) is None:
        pytest.skip(f"needs {launcher[0]}")
    found = run(DRAWING, *launcher, PYTHONMALLOC="malloc")
    assert found.returncode == 0, found.stderr[-2000:]
    level, *good = found.stdout.split()
    assert level in ("baseline", widest) and good == ["True", "True"]
