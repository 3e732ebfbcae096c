"""Muon: momentum SGD with orthogonalized updates, so that all singular directions are updated equally.

Jordan et al. 2024, with the update scale of Liu et al. (2502.16982), under which learning rates compare to
AdamW's. On the teacher it learns the text condition far faster than AdamW alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at 0, roughly 1 on [0.7, 1.2]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move all singular values near 1, in five Newton-Schulz steps. [n, rows, columns], same out.

    The steps are polynomials of the small Gram matrix: they are gathered in one factor, so that the matrices
    themselves take part in two products only. In float32: gathered so, errors of bf16 would add up.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    one = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    factor = one
    for _ in range(5):
        polynomial = a * one + b * gram + c * gram @ gram
        factor, gram = polynomial @ factor, polynomial @ gram @ polynomial
    x = factor @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """An optimizer of weights with two or more dimensions; convolutions count as [out, in * h * w].

    Args:
        params: the weights.
        lr: learning rate; an update's root mean square is about 0.2 lr.
        momentum: of the moving average of gradients (Nesterov).
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have gradients; equal shapes go through one batched product."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            same: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    same.setdefault((len(p), p[0].numel()), []).append(p)
            for shape, parameters in same.items():
                gradients = torch.stack([g.reshape(shape) for p in parameters if (g := p.grad) is not None])
                if "momentum" not in self.state[parameters[0]]:
                    self.state.update({p: {"momentum": gradients.new_zeros(shape)} for p in parameters})
                momentum = torch.stack([self.state[p]["momentum"] for p in parameters])
                momentum.lerp_(gradients, 1 - group["momentum"])
                updates = orthogonalize(gradients.lerp_(momentum, group["momentum"]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, own, update in zip(parameters, momentum, updates, strict=True):
                    self.state[p]["momentum"] = own
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view(p.shape), alpha=-rate)
