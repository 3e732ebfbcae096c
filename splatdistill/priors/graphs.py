"""CUDA graphs: a network's many kernel launches become one, captured once for each batch shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class Graphed:
    """Calls `network(*tensors) -> tensor`; on CUDA by replaying a graph of it, elsewhere as it is.

    The network must not synchronize, and neither its weights nor its mode may change afterwards. All graphs
    share one memory pool, since they never run at the same time. Without gradients.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self._network = network
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the network's output, in memory of its own."""
        if not inputs[0].is_cuda:
            return self._network(*inputs)
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        with torch.cuda.device(inputs[0].device), torch.no_grad():
            if shapes not in self._graphs:
                self._graphs[shapes] = self._capture(inputs)
            graph, held, output = self._graphs[shapes]
            for own, given in zip(held, inputs, strict=True):
                own.copy_(given)
            graph.replay()
            return output.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        held = [x.clone() for x in inputs]
        warm_up(lambda: self._network(*held))
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = self._network(*held)
        return graph, held, output


@dataclass
class _Pair:
    """Graphs of a network and of its gradient, with what they read and write.

    The activations that the gradient reads are those of the latest of `calls`.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    dy: Tensor
    dx: Tensor
    calls: int = 0

    def run(self, x: Tensor) -> int:
        """Compute y and the activations; return the number of this call."""
        self.x.copy_(x)
        self.forward.replay()
        self.calls += 1
        return self.calls


class GraphedGradient:
    """Calls `network(tensor) -> tensor`, differentiable once; on CUDA both ways by replaying graphs.

    What `Graphed` asks of a network holds here as well, and its weights take no gradient. A call without
    gradient runs as it is. Activations stay allocated, once for each shape.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self._network = network
        self._pairs: dict[Shapes, _Pair] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's output, in memory of its own."""
        if not (x.is_cuda and x.requires_grad and torch.is_grad_enabled()):
            return self._network(x)
        shapes = ((x.shape, x.dtype),)
        with torch.cuda.device(x.device):
            if shapes not in self._pairs:
                self._pairs[shapes] = self._capture(x)
            return _Replay.apply(x, self._pairs[shapes])  # pyright: ignore[reportReturnType]

    def _capture(self, given: Tensor) -> _Pair:
        x = given.detach().clone().requires_grad_()

        def gradient(y: Tensor, dy: Tensor) -> Tensor:
            return torch.autograd.grad(y, x, dy)[0]

        def both() -> Tensor:
            y = self._network(x)
            return gradient(y, torch.ones_like(y))

        warm_up(both)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward):
            y = self._network(x)
        dy = torch.ones_like(y, requires_grad=False)
        with torch.cuda.graph(backward, pool=forward.pool()):
            dx = gradient(y, dy)
        return _Pair(forward, backward, x.detach(), y.detach(), dy, dx)


class _Replay(torch.autograd.Function):
    """Replays a pair of graphs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: _Pair) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pair, ctx.call = pair, pair.run(x)
        return pair.y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pair = ctx.pair
        if ctx.call != pair.calls:  # a later call left its own activations
            ctx.call = pair.run(ctx.saved_tensors[0])
        pair.dy.copy_(dy)
        pair.backward.replay()
        return pair.dx.clone(), None


def warm_up(work: Callable[[], Tensor], times: int = 3) -> None:
    """Run what will be captured aside: libraries allocate workspaces, choose kernels and compile."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), measured_convolutions():
        for _ in range(times):
            work()
    torch.cuda.current_stream().wait_stream(aside)


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """Have cuDNN choose the algorithm of each new convolution by measuring; graphs keep what was chosen."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
