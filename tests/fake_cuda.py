"""A CUDA device made of the CPU: real numbers, but tensors that know where they would be.

Mixing devices raises as it would on CUDA, and each time the host would wait for the device is counted with
the line that waits: `with fake_cuda() as cuda: make_run(config, out, device="cuda"); cuda.waits`.
gsplat is played by the CPU rasterizer, a CUDA graph by the network itself, in which no wait is allowed.
"""

import collections
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import splatdistill
from splatdistill.ops import raster
from splatdistill.priors.graphs import Graphed, GraphedGradient
from splatdistill.reference.raster import GSPLAT
from splatdistill.scene import rendering

PACKAGE = str(Path(splatdistill.__file__).parent) + "/"
CPU = torch.device("cpu")
parse_to: Any = torch._C._nn._parse_to  # pyright: ignore[reportAttributeAccessIssue]


class OnDevice(Tensor):
    """A tensor that is said to be on the device."""

    # What comes out of an operation is for the mode to say.
    __torch_function__: Any = torch._C._disabled_torch_function_impl  # pyright: ignore


# What looks at a tensor without its values, or is about its gradient alone.
METADATA = {
    *("__set__", "__delete__", "__repr__", "__format__", "__len__", "__hash__", "as_subclass", "size"),
    *("dim", "numel", "stride", "storage_offset", "element_size", "is_contiguous", "is_floating_point"),
    *("is_complex", "requires_grad_", "retain_grad", "register_hook", "backward", "data_ptr", "ndimension"),
    *("_make_subclass", "is_pinned", "untyped_storage", "is_same_size", "register_post_accumulate_grad_hook"),
}
# What gives the host a value of the device, or a result whose size the device decides.
WAITING = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "is_nonzero", "equal", "allclose"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "multinomial"),
    *("_local_scalar_dense", "new_tensor", "__contains__"),
}
SIZED = {"cat", "stack", "concat", "concatenate"}  # these take no number of the CPU among the device's


class FakeCuda(TorchFunctionMode):
    """Plays one CUDA device while it is entered.

    Attributes:
        device: cuda:`index`.
        waits: how often the host waited, by (what for, file and line in the package).
        copies: copies to the device, waited for or not.
        generators: the device of each time that a global random state was read or set.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.device = torch.device("cuda", index)
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.copies = 0
        self.capturing = False
        self.generators: list[torch.device] = []

    def wait(self, what: str) -> None:
        """Count one wait; raises RuntimeError inside a graph."""
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        line = (
            "elsewhere" if frame is None else f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}"
        )
        if self.capturing:
            raise RuntimeError(f"a graph must not wait for the device: {what} at {line}")
        self.waits[what, line] += 1

    def place(self, x: Tensor) -> torch.device:
        """Return where a tensor is said to be."""
        return self.device if isinstance(x, OnDevice) else CPU

    def is_here(self, device: Any) -> bool:
        """Tell whether a device is the one that is played; raises RuntimeError for another CUDA device."""
        device = torch.device(device)
        if device.type == "cuda" and (device.index or 0) != self.device.index:
            raise RuntimeError(f"CUDA error: invalid device ordinal ({device}; there is {self.device})")
        return device.type == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        first = args[0] if args else None
        if name == "__get__":
            return self._attribute(func, first, args)
        if name in METADATA:
            return func(*args, **kwargs)
        if name == "_has_compatible_shallow_copy_type":
            return self.place(args[0]) == self.place(args[1]) and func(*args)
        if name in ("to", "cpu", "cuda"):
            return self._move(name, *args, **kwargs)
        if name == "pin_memory":
            pinned: Any = args[0].clone()
            pinned.is_page_locked = True
            return pinned
        if name in ("numpy", "__array__") and isinstance(first, OnDevice):
            raise TypeError("can't convert a cuda tensor to numpy; use Tensor.cpu() first")
        if name == "__reduce_ex__" and isinstance(first, OnDevice):  # torch.save; read back to the CPU
            self.wait("saved")
            return func(first.detach().as_subclass(Tensor), *args[1:])
        return self._call(func, name, args, kwargs)

    def _attribute(self, func: Any, x: Any, args: tuple) -> Any:
        owner = func.__self__
        if isinstance(x, OnDevice):
            said = {Tensor.device: self.device, Tensor.is_cuda: True, Tensor.is_cpu: False}
            if owner in said:
                return said[owner]
        value = func(*args)
        return on_device(value) if isinstance(x, OnDevice) and isinstance(value, Tensor) else value

    def _move(self, name: str, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        goal, dtype, layout = self.place(x), x.dtype, torch.preserve_format
        blocking = not kwargs.get("non_blocking", False)
        if name != "to":
            goal = self.device if name == "cuda" else CPU
        elif args and isinstance(args[0], Tensor):
            goal, dtype = self.place(args[0]), args[0].dtype
        else:
            device, wanted, non_blocking, given = parse_to(*args, **kwargs)
            blocking = not non_blocking
            dtype, layout = wanted or dtype, given or layout
            if device is not None:
                goal = self.device if self.is_here(device) else device
        if goal == self.place(x):
            y = Tensor.to(x, dtype, copy=copy, memory_format=layout)
            return on_device(y) if goal == self.device else y
        if goal.type not in ("cpu", "cuda"):
            return Tensor.to(x, goal, dtype)
        if blocking or goal == CPU or not hasattr(x, "is_page_locked"):  # pageable memory takes a detour
            self.wait(f"copy to {goal.type}")
        self.copies += goal == self.device
        y = Tensor.to(x, dtype, copy=True, memory_format=layout)
        return on_device(y) if goal == self.device else y

    def _call(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        tensors = list(leaves((args, kwargs)))
        here = [t for t in tensors if isinstance(t, OnDevice)]
        made = bool(here)
        if kwargs.get("device") is not None:
            made = self.is_here(kwargs["device"])
            kwargs["device"] = CPU if made else kwargs["device"]
            if made and name in ("tensor", "as_tensor"):
                self.wait("a tensor from numbers")
        generator = kwargs.get("generator")
        if made and generator is not None:
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        if here:
            self._check(name, args, tensors)
        value = func(*args, **kwargs)
        return on_device(value) if made else value

    def _check(self, name: str, args: tuple, tensors: list[Tensor]) -> None:
        """Count the waits of an operation on the device; raises RuntimeError where devices are mixed."""
        by_size = name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], OnDevice)
        if name in WAITING or by_size or (name == "where" and len(args) == 1):
            self.wait(name)
        elsewhere = [t for t in tensors if not isinstance(t, OnDevice) and (t.dim() or name in SIZED)]
        if name in ("__getitem__", "__setitem__"):
            self._index(name, *args)
        elif name == "copy_" and elsewhere:
            self.wait("copy_")
        elif elsewhere:
            places = [f"{self.place(t).type} {list(t.shape)}" for t in tensors]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device: {', '.join(places)}")

    def _index(self, name: str, x: Tensor, index: Any, *value: Any) -> None:
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, list):
                self.wait("an index from numbers")
            elif isinstance(part, Tensor) and part.dim():
                if isinstance(part, OnDevice) and not isinstance(x, OnDevice):
                    raise RuntimeError("indices should be either on cpu or on the same device")
                if not isinstance(part, OnDevice):
                    self.wait("an index from the CPU")
                elif part.dtype == torch.bool and not (name == "__setitem__" and is_number(value[0])):
                    self.wait("an index by a mask")
        if value and not is_number(value[0]) and self.place(value[0]) != self.place(x):
            self.wait("an assignment across devices")


def leaves(x: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from leaves(part)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))


def on_device(x: Any) -> Any:
    """Return results as the device's."""
    if isinstance(x, Tensor):
        return x if isinstance(x, OnDevice) else x.as_subclass(OnDevice)
    if isinstance(x, tuple) and hasattr(x, "_make"):
        return type(x)(*map(on_device, x))
    return type(x)(map(on_device, x)) if isinstance(x, list | tuple) else x


def is_number(x: Any) -> bool:
    """Tell whether a value is a number, or a tensor of one."""
    return not isinstance(x, Tensor) or x.dim() == 0


@contextmanager
def fake_cuda(index: int = 0) -> Iterator[FakeCuda]:
    """Enter a fake device: everything in the package finds it as cuda:`index`."""
    cuda = FakeCuda(index)

    def draw(means, quats, scales, opacities, sh, viewmats, Ks, width, height, backgrounds, degree):
        scene = (means, quats, scales, opacities, sh, viewmats, Ks)
        means2d, conics, depths, colors, radii = raster.project(*scene, width, height, degree, GSPLAT)
        cuda.wait("gsplat's number of intersections")
        shapes = (means2d, conics, colors, opacities, depths, radii)
        rgb, alpha, depth, _ = raster.rasterize_tiles(*shapes, backgrounds, width, height)
        return rgb, alpha, depth, means2d, radii

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
        assert options == {"sh_degree": None, "backgrounds": None, "packed": False}
        scene = (means, quats, scales, opacities, rendering.rgb_to_sh0(colors)[:, None])
        rgb, alpha, _, means2d, radii = draw(*scene, viewmats, Ks, width, height, None, 0)
        return rgb, alpha, {"means2d": means2d, "radii": radii}

    def replay(self: Graphed, *inputs: Tensor) -> Tensor:
        if not all(isinstance(x, OnDevice) for x in inputs):
            assert not any(isinstance(x, OnDevice) for x in inputs), "a graph's inputs are on one device"
            return self._network(*inputs)
        cuda.capturing = True
        try:
            return self._network(*inputs).clone()
        finally:
            cuda.capturing = False

    def get_state(device: Any = "cuda") -> Tensor:
        cuda.generators.append(torch.device(device))
        assert cuda.is_here(device)
        return torch.get_rng_state()

    def set_state(state: Tensor, device: Any = "cuda") -> None:
        cuda.generators.append(torch.device(device))
        assert cuda.is_here(device)

    with (
        patch.object(rendering, "_rasterize_gsplat", draw),
        patch.object(rendering.gsplat, "rasterization", rasterization),
        patch.object(Graphed, "__call__", replay),
        patch.object(GraphedGradient, "__call__", lambda self, x: self._network(x)),
        patch.object(torch.cuda, "device_count", lambda: index + 1),
        patch.object(torch.cuda, "get_rng_state", get_state),
        patch.object(torch.cuda, "set_rng_state", set_state),
        patch.object(torch.cuda, "mem_get_info", lambda device=None: (2**36, 2**36)),
        cuda,
    ):
        yield cuda
