"""Load the native extension splatdistill._C and keep its thread count equal to torch's."""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import torch  # before _C: both then share the OpenMP runtime that torch brings

_C: Any = None  # the extension
failure = ""  # why there is none, and what to do
try:
    _C = import_module("splatdistill._C")
    # torch >= 2.10 lets a tensor's pointer and shape be read in tens of nanoseconds; else by __dlpack__.
    _C.set_exchange(torch.Tensor, getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
except (ImportError, AttributeError, TypeError) as error:  # not built, does not load, or is of older sources
    compiler = isinstance(error, ModuleNotFoundError)
    failure = (
        f"{error}; {'install a C++ compiler and ' if compiler else ''}reinstall splatdistill to get them"
    )
    _C = None
    warnings.warn(
        f"splatdistill: native kernels not available, the pure-torch reference is used: {failure}",
        stacklevel=2,
    )


def available() -> bool:
    """Return whether the native extension was built and loads here."""
    return _C is not None


def cuda_available() -> bool:
    """Return whether the native extension has CUDA kernels and torch sees a CUDA device."""
    return _C is not None and _C.has_cuda and torch.cuda.is_available()


def kernels() -> ModuleType | None:
    """Return the extension with its thread count set to torch.get_num_threads(), or None when not built."""
    if _C is not None:
        _C.set_num_threads(torch.get_num_threads())
    return _C
