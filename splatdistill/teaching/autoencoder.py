"""Training of the teacher's autoencoder on procedural images."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.priors.latent import native_bfloat16
from splatdistill.teaching import scenes
from splatdistill.teaching.networks import IMAGE_SIZE, LATENT_CHANNELS, make_autoencoder

log = logging.getLogger(__name__)

CROP = 32
BATCH = 48
LATENT_NOISE = 0.05  # the decoder learns to forgive what a denoiser leaves


def _reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return L1 and squared error on pixels plus L1 on their horizontal and vertical differences.

    output, target [B, 3, H, W]. The differences sharpen edges and small details.
    """
    error = output - target
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean())


def _latent_loss(latents: Tensor) -> Tensor:
    """Pull each latent channel toward mean 0 and variance 1 over the batch. latents [B, C, h, w]."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return (mean**2 + (variance - 1) ** 2).mean()


def _foggy(images: Tensor, rng: torch.Generator) -> Tensor:
    """Blur 15 % of the images and half-blend another 15 % with its neighbor, as early splats look."""
    kind = torch.rand(len(images), generator=rng)
    blurred = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear", align_corners=False)
    weight = torch.rand(len(images), 1, 1, 1, generator=rng)
    blended = weight * images + (1 - weight) * images.roll(1, 0)
    images = torch.where((kind < 0.15)[:, None, None, None], blurred, images)
    return torch.where((kind > 0.85)[:, None, None, None], blended, images)


def _crops(images: np.ndarray, rng: torch.Generator) -> Tensor:
    """Return one random crop of each image, [B, 3, CROP, CROP] in [-1, 1], mostly around the center."""
    span = IMAGE_SIZE - CROP
    corner = (torch.rand(len(images), 2, generator=rng) + torch.rand(len(images), 2, generator=rng)) / 2
    corners = (corner * (span + 0.999)).long().tolist()
    crops = [image[y : y + CROP, x : x + CROP] for image, (y, x) in zip(images, corners, strict=True)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(path: Path, steps: int, seed: int = 1, device: torch.device | str = "cpu") -> None:
    """Train for `steps` steps of 48 crops; save the weights and their average to `path`, resuming from it.

    The learning rate is constant for 70 % of the run, then falls linearly. 500 steps give one log line.
    """
    torch.manual_seed(seed)
    model: Any = make_autoencoder()
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def loss_of(images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device)):
            latents = model.encoder(images).float()
            output = model.decoder(latents + LATENT_NOISE * noise).float()
        loss = _reconstruction_loss(output, images) + 0.01 * _latent_loss(latents)
        return loss, (output - images).abs().mean()

    start, pool = time.perf_counter(), np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for step in range(first, steps):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        if step % 100 == 0 or len(pool) == 0:  # 2048 fresh pictures for every 100 steps
            parts = [scenes.group(np.random.default_rng((seed, step, i)), IMAGE_SIZE) for i in range(64)]
            pool = np.concatenate([part.images for part in parts])
        chosen = pool[torch.randint(len(pool), (BATCH,), generator=rng).numpy()]
        images = _foggy(_crops(chosen, rng), rng).to(device, memory_format=torch.channels_last)
        noise = torch.randn(BATCH, LATENT_CHANNELS, CROP // 4, CROP // 4, generator=rng).to(device)
        warm, fall = min(1.0, (step + 1) / 200), min(1.0, (steps - step) / (0.3 * steps))
        for g in optimizer.param_groups:
            g["lr"] = 2e-3 * warm * fall
        loss, error = loss_of(images, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            rate = (step + 1 - first) * BATCH / (time.perf_counter() - start)
            log.info("autoencoder step %d  loss %.4f  L1 %.4f  %.0f crops/s", step + 1, loss, error, rate)
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
            torch.save(state | {"optimizer": optimizer.state_dict()}, path)
