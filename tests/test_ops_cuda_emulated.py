"""The CUDA kernels, executed on the CPU by tests/native/cuda_emulation.h, against their twins in torch."""

import ctypes
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_ops_ddim as ddim
import torch
from torch import Tensor

from splatdistill import ops, reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from setup import find_cxx  # noqa: E402

FLAGS = (
    "-std=c++17 -O1 -fPIC -shared -Wall -Wextra -Werror -Wno-unknown-pragmas "
    "-fsanitize=undefined -fno-sanitize-recover=all"  # misaligned accesses end the process
)
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SHAPES = {"whole vectors": (2, 4, 8, 8), "odd": (3, 3, 5, 7), "short": (1, 3)}
OPERATIONS = ("ddim_step", "noise_residual", "recover_noise")

pytestmark = pytest.mark.skipif(find_cxx() is None, reason="needs a C++ compiler")


class Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("operation", "dtype", "branches", "perp_neg")),
        *((name, ctypes.c_int64) for name in ("samples", "size")),
        ("shifted", ctypes.c_int),
        ("seed", ctypes.c_uint),
        *((name, ctypes.c_void_p) for name in ("coefficients", "outputs", "weights", "first", "second")),
        *((name, ctypes.c_void_p) for name in ("out", "out_2", "norms")),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    """Return the kernels of csrc/ddim/ddim_cuda.cu compiled with the emulation."""
    target = tmp_path_factory.mktemp("emulated") / "emulated.so"
    source = ROOT / "tests" / "native" / "emulated_ddim.cpp"
    command = [
        *shlex.split(find_cxx() or ""),
        *FLAGS.split(),
        f"-I{ROOT / 'csrc'}",
        str(source),
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def emulate(library, name: str, arguments: dict[str, Any], shifted=False, seed=1) -> tuple[Tensor, ...]:
    """Return what the CUDA kernel makes of the arguments of an op."""
    x_t, recover = arguments["x_t"], name == "recover_noise"
    outputs = arguments.get("outputs")
    results = [torch.empty_like(x_t) for _ in range(1 if name == "ddim_step" else 2)]
    norms = torch.empty(len(x_t)) if name == "noise_residual" else None
    call = Call(
        OPERATIONS.index(name), DTYPES[x_t.dtype], 0 if outputs is None else len(outputs),
        arguments.get("perp_neg", False), len(x_t), x_t[0].numel(), shifted, seed,
        address(arguments["coefficients"]), address(outputs), address(arguments.get("weights")),
        address(arguments["x_0"] if recover else x_t), address(x_t if recover else arguments["noise"]),
        address(results[0]), address(results[1]) if len(results) > 1 else None, address(norms),
    )  # fmt: skip
    error = library.emulate(ctypes.byref(call))
    assert error is None, error.decode()
    return (*results, norms) if norms is not None else tuple(results)


def assert_equals_twin(library, name: str, arguments: dict[str, Any], **settings) -> None:
    tolerance = ddim.TOLERANCE[arguments["x_t"].dtype]
    expected = ddim.as_tuple(getattr(reference, name)(**arguments))
    ddim.assert_close(emulate(library, name, arguments, **settings), expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("branches", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_guided_kernels_equal_their_twins(library, branches, perp_neg, dtype, shape):
    if perp_neg and branches < 2:
        pytest.skip("perp-neg has a positive branch")
    for noisy in (False, True):
        step = ddim.step_arguments(
            dtype=dtype, shape=shape, branches=branches, perp_neg=perp_neg, noisy=noisy
        )
        assert_equals_twin(library, "ddim_step", step)
    residual = ddim.residual_arguments(dtype=dtype, shape=shape, branches=branches, perp_neg=perp_neg)
    assert_equals_twin(library, "noise_residual", residual)


@pytest.mark.parametrize("prediction_type", ddim.PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_prediction_type_is_converted_as_by_the_twins(library, dtype, prediction_type):
    shape = (3, 2, 4, 4)
    now, then = ddim.alpha_bars(5), ddim.alpha_bars(6)
    step = ddim.step_arguments(dtype=dtype, shape=shape)
    step["coefficients"] = ops.ddim_coefficients(now, then, prediction_type, 0.5)
    assert_equals_twin(library, "ddim_step", step)
    residual = ddim.residual_arguments(dtype=dtype, shape=shape)
    residual["coefficients"][:, :4] = ops.prediction_coefficients(now, prediction_type)
    assert_equals_twin(library, "noise_residual", residual)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 4, 40, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_recovered_noise_equals_its_twin(library, dtype, shape):
    assert_equals_twin(library, "recover_noise", ddim.recover_arguments(dtype=dtype, shape=shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_that_start_off_their_alignment_are_read_element_by_element(library, dtype):
    for name, arguments in ddim.all_calls(dtype=dtype, shape=(2, 4, 8, 8)):
        assert_equals_twin(library, name, arguments, shifted=True)


def test_more_elements_than_threads_are_covered(library):
    shape = (2, 4, 45, 50)  # more than a block's threads by no whole number
    for name, arguments in ddim.all_calls(shape=shape):
        assert_equals_twin(library, name, arguments)


def test_order_of_threads_changes_no_bit(library):
    for name, arguments in ddim.all_calls(shape=(2, 3, 30, 30)):
        first, *others = (emulate(library, name, arguments, seed=seed) for seed in range(4))
        for other in others:
            ddim.assert_close(other, first, 0)


def test_grid_that_cuda_would_refuse_is_reported(library):
    arguments = ddim.recover_arguments(shape=(65536, 1))
    with pytest.raises(AssertionError, match="invalid configuration"):
        emulate(library, "recover_noise", arguments)
