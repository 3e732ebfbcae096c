"""Compilation of the blocks that a UNet and an autoencoder repeat: their norms, activations and sums fuse.

Blocks, not whole networks: equal blocks are compiled once, in tens of seconds rather than minutes.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splatdistill.priors.folders import one_line

BLOCKS = ("ResnetBlock2D", "Transformer2DModel")  # diffusers'
KINDS = 256  # of block and batch that one process may meet; beyond its 8, torch would fall back in silence

log = logging.getLogger(__name__)


def can_compile(device: torch.device) -> bool:
    """Return whether torch compiles for the device here: a GPU, and triton is installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def compile_blocks(
    network: nn.Module, norm: type[nn.GroupNorm] | None = None, backend: str | Callable[..., Any] = "inductor"
) -> int:
    """Have a network's repeated blocks compiled at their first call; return how many.

    Without gradients once for all batches; with them, where torch would put off half of it, once for each.
    Results differ by rounding. If a block cannot be compiled, all run as they were, and the log tells why. A
    copy of the network is not compiled.

    Args:
        network: in place.
        norm: the class of its group norms, if another than the default.
        backend: torch's.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    blocks = [block for block in network.modules() if type(block).__name__ in BLOCKS]
    broken: list[Exception] = []
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.GroupNorm):
                module.__class__ = norm or NORM
        compiled = torch.compile(block._call_impl, dynamic=False, fullgraph=True, backend=backend)
        block._compiled_call_impl = _or_plain(compiled, block._call_impl, broken)
    return len(blocks)


def _or_plain(
    compiled: Callable[..., Any], plain: Callable[..., Any], broken: list[Exception]
) -> Callable[..., Any]:
    """Return a compiled call that becomes `plain` when it, or another with this `broken`, fails."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if broken:
            return plain(*args, **kwargs)
        if not torch.is_grad_enabled():
            free_batch((*args, *kwargs.values()))
        try:
            return compiled(*args, **kwargs)
        except Exception as error:  # of a compiler, its cache, a driver: the kinds are not ours to list
            broken.append(error)
            log.warning("the teacher runs uncompiled: %s", one_line(error))
            return plain(*args, **kwargs)

    return call


def free_batch(inputs: tuple[Any, ...]) -> None:
    """Have tensors compiled for any first dimension; a batch of one is compiled by itself."""
    for x in inputs:
        if isinstance(x, Tensor) and len(x) > 1:
            torch._dynamo.maybe_mark_dynamic(x, 0)


class ChannelGroupNorm(nn.GroupNorm):
    """A group norm that is compiled from `normalized`, and is torch's own where it is not compiled."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized [n,C,...]."""
        if input.dim() == 4 and torch.compiler.is_compiling():
            return normalized(input, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def normalized(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the group norm of x [n,C,h,w] by way of its channels: each pass reads channels_last in order.

    The variance of a group is the mean of its channels' variances and the variance of their means.
    """
    exact = x.float()
    parts = torch.var_mean(exact, dim=(2, 3), correction=0)  # [n, C] each
    variances, means = (part.unflatten(1, (groups, -1)) for part in parts)  # [n, G, C/G]
    between, mean = torch.var_mean(means, dim=2, correction=0, keepdim=True)  # [n, G, 1]
    variance = between + variances.mean(dim=2, keepdim=True)
    scale = (variance + eps).rsqrt().expand_as(means).flatten(1) * weight.float()  # [n, C]
    shift = bias.float() - mean.expand_as(means).flatten(1) * scale
    return (exact * scale[..., None, None] + shift[..., None, None]).to(x.dtype)


NORM: type[nn.GroupNorm] = ChannelGroupNorm  # of compiled blocks
