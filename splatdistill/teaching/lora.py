"""Teach a new thing to a teacher from a few pictures: a LoRA (2106.09685).

`python -m splatdistill.teaching.lora PICTURES --out FILE`, and then `--lora FILE` adds it to the teacher.
PICTURES is a folder of .png, .jpg or .webp, each with its caption in a .txt of the same name: "a gizmo, side
view". Pictures with transparency are put on white, gray and black, which the captions then say where the
teacher's do ("gray background"). What is learned is on attention and MLPs of the UNet and of the text
encoder, and written in diffusers' naming. The null text, and the texts of --keep, are held where the teacher
has them, so that guidance and other things stay what they were.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.priors import load_prior
from splatdistill.priors.base import alpha_bar_at, cfg
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.lora import TEXT, TRIGGER, UNET
from splatdistill.priors.words import BACKGROUNDS
from splatdistill.scene.pictures import open_picture

log = logging.getLogger(__name__)

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
ON_UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
ON_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
HELD = 0.25  # share of a batch whose predictions are held at the teacher's own


@dataclass(frozen=True)
class LoraSettings:
    """Settings of the training."""

    steps: int = 600
    batch: int = 16
    rank: int = 8
    rate: float = 1e-3  # AdamW's, falling linearly to zero
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.rate < float("inf"):
            raise UserError(f"--rate must be above 0, got {self.rate}")


@dataclass(frozen=True)
class Examples:
    """Pictures [n, 3, S, S] in [0, 1] of what is to be learned, their captions, and texts to hold."""

    pictures: Tensor
    captions: list[str]
    held: list[str]


def read_examples(folder: Path, size: int, named: bool, held: Sequence[str] = ()) -> Examples:
    """Read the pictures of a folder with their captions; see the top of this file.

    named: whether captions name the background. Raises UserError for a folder without pictures, and for a
    picture that cannot be read or has no caption.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        raise UserError(f"{folder} holds no pictures; expected .png, .jpg or .webp, and a .txt beside each")
    pictures, captions = [], []
    for path in paths:
        try:
            caption = " ".join(path.with_suffix(".txt").read_text("utf-8").split())
        except (OSError, ValueError):
            caption = ""
        if not caption:
            text = path.with_suffix(".txt").name
            raise UserError(f"{path} has no caption; write one to {text} beside it: 'a gizmo, side view'")
        rgba = torch.tensor(np.asarray(open_picture(path))).permute(2, 0, 1).float() / 255
        color = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])[None]
        color = F.interpolate(color, (size, size), mode="bilinear", antialias=True)[0]
        clear = bool((rgba[3] < 1).any())
        for name, background in BACKGROUNDS.items() if clear else [("", (0.0, 0.0, 0.0))]:
            pictures.append(color[:3] + (1 - color[3:]) * torch.tensor(background).view(3, 1, 1))
            captions.append(f"{caption}, {name} background" if named and name else caption)
    nothing = [f"{name} background" for name in BACKGROUNDS] if named else [""]
    texts = [f"{text}, {name}" if named else text for text in held for name in nothing]
    return Examples(torch.stack(pictures), captions, nothing + texts)


class Student:
    """Copies of a teacher's networks with adapters, over its own weights."""

    def __init__(self, prior: LatentPrior, settings: LoraSettings) -> None:
        from peft import LoraConfig

        self.prior, self.adapted = prior, prior.adaptable()
        shared = {id(p): p for p in prior.text_encoder.parameters()}
        self.text_encoder = deepcopy(prior.text_encoder, shared)
        options: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.rank}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.unet: Any = self.adapted.module
            self.unet.add_adapter(LoraConfig(target_modules=ON_UNET, **options))
            self.text_encoder.add_adapter(LoraConfig(target_modules=ON_TEXT, **options))

    def parameters(self) -> list[Tensor]:
        """Return what is learned."""
        networks = (self.unet, self.text_encoder)
        return [p for network in networks for p in network.parameters() if p.requires_grad]

    def predict(self, z_t: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        """Return raw outputs [n,C,h,w] at z_t [n,C,h,w], t [n], with gradient."""
        hidden = self.prior.read(texts, self.text_encoder)
        return self.adapted.predict(z_t, t, cfg(hidden, hidden))

    def state(self) -> dict[str, Tensor]:
        """Return the factors under diffusers' names."""
        from peft.utils import get_peft_model_state_dict

        parts = {f"{UNET}.": self.unet, f"{TEXT}.text_model.": self.text_encoder}
        return {
            prefix + name.removeprefix("text_model."): value.detach().float().cpu().contiguous()
            for prefix, network in parts.items()
            for name, value in get_peft_model_state_dict(
                network, adapter_name="default", save_embedding_layers=False
            ).items()
        }


def teach(prior: LatentPrior, examples: Examples, settings: LoraSettings) -> dict[str, Tensor]:
    """Train a LoRA on pictures, and return its factors under diffusers' names.

    Each step denoises noised latents of pictures under their captions, at timesteps that are the larger of
    two uniform ones, where a text matters most; a share of each batch has a held text instead, and the
    teacher's own prediction as target.
    """
    student = Student(prior, settings)
    with torch.no_grad():
        latents = prior.encode(examples.pictures.to(prior.device))
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(settings.seed)
    levels, held = len(prior.alphas_cumprod), max(1, round(HELD * settings.batch))
    for step in range(settings.steps):
        rows = torch.randint(len(latents), (settings.batch,), generator=rng).tolist()
        others = torch.randint(len(examples.held), (held,), generator=rng).tolist()
        texts = [examples.held[i] for i in others] + [examples.captions[i] for i in rows[held:]]
        t = torch.randint(levels, (2, settings.batch), generator=rng).amax(0)
        noise = torch.randn(settings.batch, *prior.latent_shape, generator=rng).to(latents)
        z_t, target = noised(prior, latents[rows], noise, t)
        t = t.to(prior.device)
        with torch.no_grad():
            target[:held] = prior.network(z_t[:held], t[:held], prior.embed(texts[:held]))
        loss = F.mse_loss(student.predict(z_t, t, texts), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (1 - step / settings.steps)
        optimizer.step()
        if step % 50 == 0 or step == settings.steps - 1:
            log.info("step %d of %d: loss %.4f", step + 1, settings.steps, float(loss.detach()))
    return student.state()


def noised(prior: LatentPrior, z: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_t [B,C,h,w] at t [B], and what the network should predict there."""
    alpha_bar = alpha_bar_at(prior, t).view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt().to(z), (1 - alpha_bar).sqrt().to(z)
    predictions = {"epsilon": noise, "sample": z, "v_prediction": signal * noise - sigma * z}
    return signal * z + sigma * noise, predictions[prior.prediction_type].clone()


def write_lora(path: Path, state: dict[str, Tensor], trigger: str) -> None:
    """Write factors and the words that they taught as safetensors."""
    from safetensors.torch import save

    with atomic_write(path) as file:
        file.write(save(state, {"format": "pt", TRIGGER: trigger}))


def run(options: argparse.Namespace) -> None:
    """Read the pictures, train, and write the file."""
    if options.out.suffix != ".safetensors":
        raise UserError(f"--out {options.out}: expected a name that ends in .safetensors")
    settings = LoraSettings(options.steps, options.batch, options.rank, options.rate, options.seed)
    prior = load_prior(options.prior, options.device, torch.float32)
    if not isinstance(prior, LatentPrior) or prior.group > 1 or prior.needs_picture:
        raise UserError(f"prior '{options.prior}' reads more than a text; give a teacher of single views")
    named = prior.vocabulary is not None
    examples = read_examples(options.pictures, prior.image_size, named, options.keep)
    log.info("%d pictures, %d captions", len(examples.pictures), len(set(examples.captions)))
    trigger = " ".join(dict.fromkeys(" ".join(examples.captions).replace(",", " ").split()))
    write_lora(options.out, teach(prior, examples, settings), trigger)
    log.info("%s: use it with --lora %s", options.out, options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.lora", description=__doc__)
    add = parser.add_argument
    add("pictures", type=Path, metavar="PICTURES", help="a folder of pictures and captions")
    add("--out", type=Path, required=True, metavar="FILE", help="the LoRA, .safetensors")
    add("--prior", default="embedded", help="embedded (default), sd15, sd21, or a folder in diffusers layout")
    add("--keep", nargs="*", default=[], metavar="TEXT", help="what should stay as it is: 'a red car'")
    defaults = LoraSettings()
    add("--steps", type=int, default=defaults.steps)
    add("--batch", type=int, default=defaults.batch)
    add("--rank", type=int, default=defaults.rank)
    add("--rate", type=float, default=defaults.rate, help="AdamW's learning rate")
    add("--seed", type=int, default=defaults.seed)
    add("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def command() -> int:
        run(options)
        return 0

    return exit_status(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
