"""Small tensors on their way to a device: packed into one copy, for which the host does not wait.

A plain `.to(device)` reads pageable memory and waits until the device has done all before it; a step's
schedules, cameras and noise are made on the CPU, and would stop the device dozens of times.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16  # bytes; no element is larger


def upload(parts: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return tensors on a device, each with its shape and dtype; those of the CPU go in one pinned copy.

    Without gradient. Tensors that are there already are returned as they are. Only CUDA has pinned copies.
    """
    device = torch.device(device)
    if device.type != "cuda" or all(part.device.type != "cpu" for part in parts):
        return [part.to(device) for part in parts]
    rows = [_bytes(part) for part in parts if part.device.type == "cpu"]
    packed = torch.cat(rows).pin_memory().to(device, non_blocking=True)
    sent = iter(packed.split([len(row) for row in rows]))
    return [_of_bytes(next(sent), part) if part.device.type == "cpu" else part.to(device) for part in parts]


def send(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the dtype and on the device of another."""
    return upload([tensor.to(like.dtype)], like.device)[0]


def _bytes(part: Tensor) -> Tensor:
    """Return the bytes of a tensor, filled up to a whole number of ALIGNMENT."""
    row = part.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return F.pad(row, (0, -len(row) % ALIGNMENT))


def _of_bytes(row: Tensor, part: Tensor) -> Tensor:
    return row[: part.numel() * part.element_size()].view(part.dtype).view(part.shape)
