"""Teach a new thing to a teacher from a few pictures: a LoRA (2106.09685).

`python -m splatdistill.teaching.lora PICTURES --out FILE`, and then `--lora FILE` adds it to the teacher.
PICTURES is a folder. A teacher of several views at once reads the pictures that its transforms.json names,
with their cameras, and --caption says what all of them show: "a gizmo". One of single views reads every .png,
.jpg or .webp, each with its caption in a .txt of the same name: "a gizmo, side view". Pictures with
transparency are put on several backgrounds. What is learned is on the linear maps of the denoiser and of the
text encoder, and written in diffusers' naming. The null text, and the texts of --keep, are held where the
teacher has them, so that guidance and other things stay what they were.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
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
from splatdistill.priors.album import DISTANCE, FOV
from splatdistill.priors.base import Conditioning, alpha_bar_at, cfg, text_branch
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.lora import TEXT, TRIGGER, UNET
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.captures import Captures, read_captures
from splatdistill.scene.pictures import open_picture

log = logging.getLogger(__name__)

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
CAMERAS = "transforms.json"
ON_DENOISER = (  # beside attention's maps, where a denoiser has them
    *("ff.net.0.proj", "ff.net.2"),
    *("embed", "embed_camera.0", "embed_camera.2", "embed_text", "narrow", "widen"),
)
ON_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
BACKGROUNDS = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
ZOOMS = (-0.15, -0.05, 0.05, 0.15)  # logs of how much larger a picture with a camera is shown
LOOSE = 15.0  # degrees by which the views of a scene stray from being evenly around, in the mean square
HELD = 0.25  # share of a batch whose predictions are held at the teacher's own


@dataclass(frozen=True)
class LoraSettings:
    """Settings of the training."""

    steps: int = 500
    batch: int = 16
    rank: int = 16
    rate: float = 3e-3  # AdamW's, falling linearly to zero
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.rate < float("inf"):
            raise UserError(f"--rate must be above 0, got {self.rate}")


@dataclass(frozen=True)
class Examples:
    """What is to be learned: n pictures in k variants, of one thing or of several.

    pictures [n, k, 3, S, S] in [0, 1]; backgrounds [k, 3] of the variants; captions of the pictures; their
    cameras, [n] of each variant, for a teacher that is told of them; held: texts whose predictions stay.
    """

    pictures: Tensor
    backgrounds: Tensor
    captions: list[str]
    cameras: list[Cameras]
    held: list[str]

    @property
    def phrases(self) -> list[str]:
        """The things that the captions name."""
        return list(dict.fromkeys(caption.split(",")[0] for caption in self.captions))


@dataclass(frozen=True)
class Batch:
    """Views of scenes, in one variant of the pictures: rows [m] of these, a text each, and timesteps [m].

    held: how many of them, the first ones, have texts whose predictions stay.
    """

    variant: int
    rows: Tensor
    texts: list[str]
    t: Tensor
    held: int = 0

    def first(self, count: int) -> Batch:
        """Return the first views."""
        return Batch(self.variant, self.rows[:count], self.texts[:count], self.t[:count])


def read_examples(folder: Path, prior: LatentPrior, caption: str, held: Sequence[str] = ()) -> Examples:
    """Read the pictures of a folder with their captions; see the top of this file.

    caption: of all pictures; "" where each has its own. Raises UserError for a folder without pictures or
    cameras, and for a picture that cannot be read or has no caption.
    """
    if prior.group > 1:
        if not caption:
            raise UserError("what do the pictures show? say it with --caption 'a gizmo'")
        captures = centered(read_captures(folder / CAMERAS, 2 * prior.image_size))
        if len(captures) < prior.group:
            raise UserError(
                f"{folder / CAMERAS} has {len(captures)} pictures; expected {prior.group} or more"
            )
        rgba, zooms = torch.cat([captures.rgb * captures.alpha, captures.alpha], 1), ZOOMS
        captions = [caption] * len(captures)
    else:
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
        if not paths:
            raise UserError(f"{folder} holds no pictures; expected .png, .jpg or .webp")
        rgba, zooms = torch.stack([read_square(path, prior.image_size) for path in paths]), (0.0,)
        captures = None
        captions = [caption or caption_of(path) for path in paths]
    opaque = bool((rgba[:, 3] == 1).all())
    variants = list(product(BACKGROUNDS[:1] if opaque else BACKGROUNDS, zooms))
    shown = [before(enlarged(rgba, zoom, prior.image_size), background) for background, zoom in variants]
    cameras = [] if captures is None else [nearer(captures.cameras, zoom) for _, zoom in variants]
    backgrounds = torch.tensor([background for background, _ in variants])
    return Examples(torch.stack(shown, 1), backgrounds, captions, cameras, ["", *held])


def enlarged(rgba: Tensor, zoom: float, size: int) -> Tensor:
    """Return pictures [n, 4, size, size] about the center of others, exp(zoom) as large."""
    theta = math.exp(-zoom) * torch.eye(2, 3)
    grid = F.affine_grid(theta.expand(len(rgba), 2, 3), [len(rgba), 4, size, size], align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def nearer(cameras: Cameras, zoom: float) -> Cameras:
    """Return the cameras that see what `enlarged` shows, as far as a teacher is told."""
    half = (cameras.fov_deg.deg2rad() / 2).tan() * math.exp(-zoom)
    return replace(cameras, fov_deg=2 * half.atan().rad2deg())


def before(rgba: Tensor, background: Sequence[float]) -> Tensor:
    """Return pictures [n, 3, S, S] of premultiplied ones [n, 4, S, S] on a background."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * torch.tensor(background).view(3, 1, 1)


def read_square(path: Path, size: int) -> Tensor:
    """Return a picture [4, size, size] in [0, 1], its color premultiplied."""
    rgba = torch.tensor(np.asarray(open_picture(path))).permute(2, 0, 1).float() / 255
    color = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])[None]
    return F.interpolate(color, (size, size), mode="bilinear", antialias=True)[0]


def caption_of(path: Path) -> str:
    """Return the caption beside a picture; UserError where there is none."""
    text = path.with_suffix(".txt")
    try:
        caption = " ".join(text.read_text("utf-8").split())
    except (OSError, ValueError):
        caption = ""
    if not caption:
        raise UserError(f"{path} has no caption; write one to {text.name} beside it: 'a gizmo, side view'")
    return caption


def centered(captures: Captures) -> Captures:
    """Return the pictures in the teacher's frame: cameras that look at the origin and see as much of it.

    The origin is the point nearest to all optical axes.
    """
    cameras = captures.cameras
    forward = cameras.viewmats[:, 2, :3].double()  # [V, 3]
    across = torch.eye(3).double() - forward[:, :, None] * forward[:, None, :]  # off the optical axis
    positions = cameras.positions.double()
    center = torch.linalg.pinv(across.sum(0)) @ (across @ positions[..., None]).sum(0)[:, 0]
    seen = (positions - center).norm(dim=1) * (cameras.fov_deg.double().deg2rad() / 2).tan()
    if float(seen.mean()) < 1e-6:
        raise UserError("all cameras are at one point; expected pictures from around one thing")
    x, y, z = (-center).tolist()
    return captures.moved((x, y, z), DISTANCE * math.tan(FOV / 2) / float(seen.mean()))


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
            self.denoiser: Any = self.adapted.module
            maps = [*self.adapted.maps, *ON_DENOISER]
            self.denoiser.add_adapter(LoraConfig(target_modules=maps, **options))
            self.text_encoder.add_adapter(LoraConfig(target_modules=list(ON_TEXT), **options))

    def parameters(self) -> list[Tensor]:
        """Return what is learned."""
        networks = (self.denoiser, self.text_encoder)
        return [p for network in networks for p in network.parameters() if p.requires_grad]

    def predict(self, z_t: Tensor, examples: Examples, batch: Batch) -> Tensor:
        """Return raw outputs [n,C,h,w] at z_t [n,C,h,w], with gradient."""
        hidden = self.prior.read(batch.texts, self.text_encoder)
        cond = told(self.prior, hidden, examples, batch)
        return self.adapted.predict(z_t, batch.t.to(z_t.device), cond)

    def state(self) -> dict[str, Tensor]:
        """Return the factors under diffusers' names."""
        from peft.utils import get_peft_model_state_dict

        parts = {f"{UNET}.": self.denoiser, f"{TEXT}.text_model.": self.text_encoder}
        return {
            prefix + name.removeprefix("text_model."): value.detach().float().cpu().contiguous()
            for prefix, network in parts.items()
            for name, value in get_peft_model_state_dict(
                network, adapter_name="default", save_embedding_layers=False
            ).items()
        }


@torch.no_grad()
def teachers(prior: LatentPrior, z_t: Tensor, examples: Examples, batch: Batch) -> Tensor:
    """Return the teacher's own raw outputs [n,C,h,w] at z_t [n,C,h,w]."""
    cond = told(prior, prior.embed(batch.texts), examples, batch)
    return text_branch(prior.network, z_t, batch.t.to(z_t.device), cond)


def told(prior: LatentPrior, hidden: Tensor, examples: Examples, batch: Batch) -> Conditioning:
    """Return a batch's conditioning on hidden states [n,L,D], at a scale that leaves the text alone."""
    cond = cfg(hidden, hidden, 1.0)
    if not examples.cameras:
        return cond
    background = examples.backgrounds[batch.variant].expand(len(batch.rows), 3)
    return prior.with_cameras(cond, examples.cameras[batch.variant][batch.rows], background)


def draw(examples: Examples, settings: LoraSettings, views: int, levels: int, rng: torch.Generator) -> Batch:
    """Draw the views of some scenes, `views` of each: a share of them, the first ones, with held texts.

    Each scene has one timestep, the larger of two uniform ones, where a text matters most.
    """
    scenes = max(2, settings.batch // views)
    held = max(1, round(HELD * scenes))
    rows = torch.randint(len(examples.captions), (scenes, 1), generator=rng)
    if views > 1:
        rows = torch.stack([around(examples.cameras[0], int(row), views, rng) for row in rows])
    others = torch.randint(len(examples.held), (held,), generator=rng).tolist()
    texts = [examples.held[i] for i in others] + [examples.captions[i] for i in rows[held:, 0].tolist()]
    t = torch.randint(levels, (2, scenes), generator=rng).amax(0)
    return Batch(
        int(torch.randint(len(examples.backgrounds), (), generator=rng)),
        rows.flatten(),
        [text for text in texts for _ in range(views)],
        t.repeat_interleave(views),
        held * views,
    )


def around(cameras: Cameras, first: int, views: int, rng: torch.Generator) -> Tensor:
    """Return a picture and those nearest to where views evenly around from it would be, [views]."""
    turn = 360.0 / views * torch.arange(views) + LOOSE * torch.randn(views, generator=rng)
    azimuth, elevation = cameras.azimuth_deg[first] + turn, cameras.elevation_deg[first]
    wanted = orbit(azimuth, elevation, 1.0, 42.0, 1, 1).positions
    rows = (wanted @ F.normalize(cameras.positions, dim=1).T).argmax(1)
    rows[0] = first
    return rows


def teach(prior: LatentPrior, examples: Examples, settings: LoraSettings) -> dict[str, Tensor]:
    """Train a LoRA on pictures, and return its factors under diffusers' names.

    Each step denoises noised latents of views under their captions; those with a held text have the
    teacher's own prediction as target.
    """
    student = Student(prior, settings)
    with torch.no_grad():
        latents = torch.stack([prior.encode(row.to(prior.device)) for row in examples.pictures])
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        batch = draw(examples, settings, prior.group, len(prior.alphas_cumprod), rng)
        noise = torch.randn(len(batch.rows), *prior.latent_shape, generator=rng).to(latents)
        z_t, target = noised(prior, latents[batch.rows, batch.variant], noise, batch.t)
        kept = batch.first(batch.held)
        target[: batch.held] = teachers(prior, z_t[: batch.held], examples, kept)
        loss = F.mse_loss(student.predict(z_t, examples, batch), target)
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


def write_lora(path: Path, state: dict[str, Tensor], phrases: Sequence[str]) -> None:
    """Write factors and the phrases that they taught as safetensors."""
    from safetensors.torch import save

    with atomic_write(path) as file:
        file.write(save(state, {"format": "pt", TRIGGER: ", ".join(phrases)}))


def run(options: argparse.Namespace) -> None:
    """Read the pictures, train, and write the file."""
    if options.out.suffix != ".safetensors":
        raise UserError(f"--out {options.out}: expected a name that ends in .safetensors")
    settings = LoraSettings(options.steps, options.batch, options.rank, options.rate, options.seed)
    prior = load_prior(options.prior, options.device, torch.float32)
    if not isinstance(prior, LatentPrior) or prior.needs_picture:
        raise UserError(
            f"prior '{options.prior}' cannot be taught; give real, sd15, sd21, or a folder of such"
        )
    examples = read_examples(options.pictures, prior, options.caption.strip(), options.keep)
    told_of = prior.with_taught(examples.phrases)
    for phrase in examples.phrases:
        if not told_of.understand(phrase)[0]:
            raise UserError(f"prior '{options.prior}' reads nothing of '{phrase}'; expected a name in a to z")
    log.info("%d pictures of %s", len(examples.pictures), ", ".join(examples.phrases))
    state = teach(told_of, examples, settings)
    write_lora(options.out, state, examples.phrases)
    log.info("%s: use it with --lora %s", options.out, options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.lora", description=__doc__)
    add = parser.add_argument
    add("pictures", type=Path, metavar="PICTURES", help="a folder of pictures")
    add("--out", type=Path, required=True, metavar="FILE", help="the LoRA, .safetensors")
    add("--caption", default="", metavar="TEXT", help="what all pictures show: 'a gizmo'")
    add("--prior", default="real", help="real (default), sd15, sd21, or a folder in diffusers layout")
    add("--keep", nargs="*", default=[], metavar="TEXT", help="what should stay as it is: 'a red car'")
    defaults = LoraSettings()
    add("--steps", type=int, default=defaults.steps)
    add("--batch", type=int, default=defaults.batch, help="views a step")
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
