"""CUDA graphs: a network's many kernel launches become one, captured once for each batch shape."""

from collections.abc import Callable

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
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # warm-up: libraries allocate workspaces and choose kernels
            for _ in range(2):
                self._network(*held)
        torch.cuda.current_stream().wait_stream(aside)
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = self._network(*held)
        return graph, held, output
