"""Train the shipped teacher from scratch: `python -m splatdistill.teaching.train --out DIR`.

Stages: autoencoder, encoded images, denoiser, export. Each continues where an interrupted run stopped; the
folder DIR/teacher then loads with StableDiffusionPipeline.from_pretrained and with `--prior DIR/teacher`.
With `--task multiview` a finished teacher is trained to denoise four views jointly, and with `--task image` a
network with its latents is trained on novel views of a picture: DIR/unet_multiview and DIR/unet_image belong
into its folder. If that has them already, the training continues from them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.priors import load_prior
from splatdistill.priors import words as grammar
from splatdistill.priors.loading import locate
from splatdistill.scene.pictures import to_uint8
from splatdistill.teaching import scenes
from splatdistill.teaching.autoencoder import train_autoencoder
from splatdistill.teaching.denoiser import (
    Denoiser,
    DenoiserSettings,
    encode_pictures,
    train_denoiser,
    train_reader,
)
from splatdistill.teaching.networks import (
    IMAGE_SIZE,
    export,
    export_beside,
    make_autoencoder,
)

AUTOENCODER_STEPS = 10_000


def load_autoencoder(path: Path) -> AutoencoderTiny:
    """Load the averaged autoencoder; scaling_factor is 1 / the standard deviation of 2,048 encoded images."""
    model: Any = make_autoencoder()
    average = torch.load(path, weights_only=True, map_location="cpu")["average"]
    model.load_state_dict(
        {k.removeprefix("module."): v for k, v in average.items() if k.startswith("module.")}
    )
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    pictures = torch.cat([torch.from_numpy(p.images) for p in scenes.groups(3, 2048, IMAGE_SIZE)])
    latents = model.encoder(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    model.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    return model


@torch.no_grad()
def sample_sheet(teacher: Path, path: Path, seed: int = 0) -> None:
    """Write a PNG of teacher samples (50 DDIM steps): each thing in three views and three colors."""
    from splatdistill.guidance.core import sample
    from splatdistill.priors.base import cfg

    prior = load_prior(str(teacher), device="cpu", dtype=torch.bfloat16)
    views, colors = ("front view", "side view", "back view"), list(grammar.COLORS)
    rows = []
    for i, thing in enumerate(grammar.THINGS):
        texts = [f"{grammar.describe((thing,), (colors[i % len(colors)],))}, {view}" for view in views]
        texts += [grammar.describe((thing,), (colors[(i + 5) % len(colors)],))] + [
            grammar.describe((thing,), (None,))
        ]
        condition = cfg(prior.embed([""] * len(texts)), prior.embed(texts), 4.0)
        z_T = torch.randn(len(texts), *prior.latent_shape, generator=torch.Generator().manual_seed(seed + i))
        rows.append(torch.cat(list(prior.decode(sample(prior, condition, z_T, steps=50)).clamp(0, 1)), 2))
    columns = [
        torch.cat(rows[k::3] + [torch.ones_like(rows[0])] * (len(rows[k::3]) < len(rows[::3])), 1)
        for k in range(3)
    ]
    sheet = to_uint8(torch.cat(columns, 2).permute(1, 2, 0)).numpy()
    Image.fromarray(sheet).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, export."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, losses and the teacher"
    )
    parser.add_argument("--steps", type=int, default=DenoiserSettings.steps, help="denoiser steps")
    parser.add_argument("--batch", type=int, default=DenoiserSettings.batch, help="samples a denoiser step")
    parser.add_argument(
        "--pictures", type=int, default=DenoiserSettings.pictures, help="distinct training pictures"
    )
    parser.add_argument(
        "--facing", type=float, default=0.0, help="share of samples whose captions tell front from back"
    )
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--task", choices=["text", "multiview", "image"], default="text")
    parser.add_argument("--teacher", default="embedded", help="what the other tasks start from")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="do not compile the denoiser")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    settings = replace(
        DenoiserSettings(),
        steps=options.steps,
        batch=options.batch,
        pictures=options.pictures,
        task=options.task,
        facing=options.facing,
    )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        compiled, device = not options.no_compile, options.device
        if options.task != "text":
            train_beside(options.out, settings, options.teacher, compiled, device)
        else:
            train(options.out, settings, options.autoencoder_steps, compiled, device=device)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(
    folder: Path,
    settings: DenoiserSettings,
    autoencoder_steps: int,
    compiled: bool = True,
    sheet: bool = True,
    device: torch.device | str = "cpu",
) -> Path:
    """Run all stages in `folder`, skipping finished ones; return the teacher's folder.

    `compiled`: torch.compile the denoiser; `sheet`: end with samples.png.
    """
    train_autoencoder(folder / "autoencoder.pt", autoencoder_steps, device=device)
    autoencoder: Any = load_autoencoder(folder / "autoencoder.pt")
    dataset = folder / "pictures.npz"
    if not dataset.exists():
        encode_pictures(autoencoder.to(device), dataset, settings)
    denoiser = Denoiser(settings, device)
    if (folder / "denoiser.pt").exists():
        denoiser.load(folder / "denoiser.pt")
    train_denoiser(denoiser, dataset, folder, compiled)
    networks: Any = denoiser.average.module.cpu()
    teacher = folder / "teacher"
    export(teacher, autoencoder.cpu(), networks["unet"], networks["text"], denoiser.tokenizer)
    if sheet:
        sample_sheet(teacher, folder / "samples.png")
    return teacher


def train_beside(
    folder: Path,
    settings: DenoiserSettings,
    teacher: str,
    compiled: bool = True,
    device: torch.device | str = "cpu",
) -> None:
    """Train a denoiser for another task in `folder`, from the nearest one in a teacher's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    start: Any = load_prior(nearest(teacher, settings.task), dtype=torch.float32)
    dataset = folder / "pictures.npz"
    if not dataset.exists():
        encode_pictures(start.vae.to(device, memory_format=torch.channels_last), dataset, settings)
    denoiser = Denoiser(settings, device)
    denoiser.start_from(start)
    if (folder / "denoiser.pt").exists():
        denoiser.load(folder / "denoiser.pt")
    elif settings.task == "image" and not start.needs_picture:
        train_reader(denoiser, dataset, compiled)
        denoiser.save(folder / "denoiser.pt")
    train_denoiser(denoiser, dataset, folder, compiled)
    networks: Any = denoiser.average.module.cpu()
    export_beside(folder / f"unet_{settings.task}", networks["unet"])


def nearest(teacher: str, task: str) -> str:
    """Return the prior that training for a task starts from: the teacher's own for it where there is one."""
    folder = locate(teacher).root
    trained = [folder / f"unet_{name}" for name in (task, "multiview")]
    return next((str(place) for place in trained if place.is_dir()), teacher)


if __name__ == "__main__":
    sys.exit(main())
