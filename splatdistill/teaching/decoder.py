"""Training of the codec's decoder, which predicts what the linear basis leaves out; the basis is frozen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

CROP = 64  # pixels a side
NOISE = 0.05  # of the latents' deviation: the decoder learns to forgive what a denoiser leaves
SHARD_STEPS = 100  # between two shards of pictures


def crops(pictures: np.ndarray, count: int, patch: int, rng: np.random.Generator) -> Tensor:
    """Return random crops [count, 3, CROP, CROP] in [-1, 1] of images [n, S, S, 3] uint8, on the grid."""
    side = pictures.shape[1]
    size = min(CROP, side)
    corners = rng.integers(0, (side - size) // patch + 1, (count, 2)) * patch
    chosen = rng.integers(0, len(pictures), count)
    cut = [pictures[i, y : y + size, x : x + size] for i, (y, x) in zip(chosen, corners, strict=True)]
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_of(codec: Any, pictures: Tensor, noise: Tensor) -> Tensor:
    """Return L1 and squared error on pixels plus L1 on their horizontal and vertical differences."""
    latents = codec.encode(pictures).latents
    error = codec.decode(latents + NOISE * latents.std((0, 2, 3), keepdim=True) * noise).sample - pictures
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean())


def train_decoder(codec: Any, paths: list[Path], steps: int, batch: int = 24, seed: int = 3) -> None:
    """Train all but the basis and its inverse, in place; the learning rate falls in the last third."""
    device = next(codec.parameters()).device
    codec.requires_grad_(True)
    codec.basis.requires_grad_(False)
    codec.inverse.requires_grad_(False)
    trained = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    rng, pool = np.random.default_rng(seed), np.zeros(0)
    torch.manual_seed(seed)
    for step in range(steps):
        if step % SHARD_STEPS == 0:
            with np.load(paths[(step // SHARD_STEPS) % len(paths)]) as arrays:
                pool = arrays["pictures"].reshape(-1, *arrays["pictures"].shape[2:])
        pictures = crops(pool, batch, codec.patch, rng).to(device)
        shape = codec.encode(pictures).latents.shape
        loss = loss_of(codec, pictures, torch.randn(shape, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)
        optimizer.step()
        if (step + 1) % SHARD_STEPS == 0:
            log.info("decoder step %d: loss %.4f", step + 1, float(loss))
    codec.requires_grad_(False)


@torch.no_grad()
def psnr(codec: Any, pictures: np.ndarray, batch: int = 64) -> float:
    """Return the PSNR in dB of decoded images [n, S, S, 3] uint8, over all of them."""
    total = 0.0
    for part in np.array_split(pictures, -(-len(pictures) // batch)):
        seen = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        back = codec.decode(codec.encode(seen).latents).sample.clamp(-1, 1)
        total += float(F.mse_loss(back, seen)) * len(part) / 4
    return -10 * float(np.log10(total / len(pictures)))
