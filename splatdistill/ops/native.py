"""Loads the native extension splatdistill._C and keeps its thread count equal to torch's."""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import torch  # before _C: both then share the OpenMP runtime that torch brings

_C: Any = None  # the extension
try:
    _C = import_module("splatdistill._C")
    _C.set_torch(
        torch.Tensor,
        torch.empty_like,
        lambda x_t: torch.empty(x_t.shape[0], device=x_t.device),
        torch.get_num_threads,
        lambda device: torch.cuda.current_stream(device).cuda_stream,
        torch.is_grad_enabled,
        (torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active),
    )
    # Reads a tensor's pointer and shape in tens of nanoseconds (torch >= 2.10); by attributes without it.
    _C.set_exchange(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
except (ImportError, AttributeError) as error:  # not built, or built from older sources
    _C = None
    warnings.warn(
        f"splatdistill: native kernels not available ({error}); using the slower pure-torch reference. "
        "Install a C++ compiler and reinstall to get them.",
        stacklevel=2,
    )


def available() -> bool:
    """Tell whether the native extension was built and loads here."""
    return _C is not None


def cuda_available() -> bool:
    """Tell whether the native extension holds CUDA kernels and torch sees a CUDA device."""
    return _C is not None and _C.has_cuda and torch.cuda.is_available()


def kernels() -> ModuleType | None:
    """Return the extension with its thread count set to torch.get_num_threads(), or None when not built."""
    if _C is not None:
        _C.set_num_threads(torch.get_num_threads())
    return _C
