"""Joint training of the teacher's denoiser and text encoder, on encoded procedural images in memory."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from splatdistill.priors import words as grammar
from splatdistill.priors.latent import LatentPrior, native_bfloat16
from splatdistill.priors.multiview import VIEWS, camera_matrices
from splatdistill.priors.view_unet import between
from splatdistill.priors.zero123 import relative_pose
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.teaching import scenes
from splatdistill.teaching.muon import Muon
from splatdistill.teaching.networks import (
    IMAGE_SIZE,
    LATENT_CHANNELS,
    LATENT_SIZE,
    is_shared,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_view_unet,
    tokenize,
)

log = logging.getLogger(__name__)

READ = 256  # pictures in each of the steps that only read
EMPTY = 0.12  # how often an image-conditioned network is told nothing
AZIMUTH = 0.01  # the weight of how well it reads a picture's azimuth


@dataclass(frozen=True)
class DenoiserSettings:
    """Settings of the training; `pictures` are encoded once and reused over the epochs."""

    steps: int = 7_500
    batch: int = 64
    pictures: int = 230_400
    learning_rate: float = 8e-4  # AdamW: embeddings, norms, biases, the first and the last convolution
    matrix_rate: float = 2e-3  # Muon: all other weights
    warmup: int = 300
    fall: float = 0.4  # the last part of the run lowers the learning rates to zero
    ema: float = 0.999
    seed: int = 2
    facing: float = 0.0  # share of samples drawn from the pictures whose caption tells a front from a back
    task: Literal["text", "multiview", "image"] = "text"  # what it learns to draw from
    reading: int = 2_400  # steps that an image-conditioned one first learns to read azimuths alone

    @property
    def views(self) -> int:
        """The number of images of one scene in the training set."""
        return 1 if self.task == "text" else VIEWS


@torch.no_grad()
def encode_pictures(autoencoder: Any, path: Path, settings: DenoiserSettings) -> None:
    """Render and encode the training set, an .npz.

    It has latents [n, 8, 16, 16] fp16, ids [n, 24] int16, orbits [n, 3] (the cameras' azimuth and elevation
    in degrees, and their distance), and the latents' scale. The autoencoder runs on its device, in bfloat16.
    """
    device = next(autoencoder.parameters()).device
    tokenizer = make_tokenizer(grammar.vocabulary())
    latents = np.empty((settings.pictures, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), np.float16)
    captions: list[str] = []
    orbits: list[Tensor] = []
    start = time.perf_counter()
    threads = torch.get_num_threads()
    kind = settings.views, settings.task == "image"
    for pictures in scenes.groups(settings.seed, settings.pictures, IMAGE_SIZE, threads, *kind):
        images = torch.from_numpy(pictures.images).to(device).permute(0, 3, 1, 2)  # NHWC memory: fast
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device)):
            encoded = autoencoder.encoder(images.float() / 127.5 - 1).float()
        encoded = (encoded * autoencoder.config.scaling_factor).cpu()
        first = len(captions)
        captions += pictures.captions
        cameras = pictures.cameras
        orbits.append(torch.stack([cameras.azimuth_deg, cameras.elevation_deg, cameras.distance], 1))
        latents[first : len(captions)] = encoded.numpy()[: settings.pictures - first]
        if len(captions) % 51_200 == 0:
            log.info(
                "encoded %d pictures, %.0f/s", len(captions), len(captions) / (time.perf_counter() - start)
            )
    ids = tokenize(tokenizer, captions[: settings.pictures]).numpy().astype(np.int16)
    orbit = torch.cat(orbits)[: settings.pictures].numpy()
    np.savez(path, latents=latents, ids=ids, orbits=orbit, scale=autoencoder.config.scaling_factor)


def noised(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_t and the v target, sqrt(ab) eps - sqrt(1 - ab) z (Salimans and Ho, 2202.00512).

    latents, noise and both results [B, C, h, w]; t [B].
    """
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return signal * latents + sigma * noise, signal * noise - sigma * latents


def make_networks(task: str, tokenizer: Any) -> torch.nn.ModuleDict:
    """Make the denoiser, "unet", and, except for pictures, the encoder of its condition, "text".

    For the multi-view and image tasks, only weights not shared with the text UNet are trained.
    """
    unet: Any = make_view_unet() if task == "image" else make_unet(task == "multiview")
    networks = torch.nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last)})
    if task != "text":
        for name, p in unet.named_parameters():
            p.requires_grad_(not is_shared(name))
    if task != "image":
        text: Any = make_text_encoder(tokenizer)
        text.set_attn_implementation("eager")  # for so short texts its backward is faster than the fused one
        networks["text"] = text.requires_grad_(task == "text")
    return networks


class Denoiser:
    """Networks, optimizers and moving averages, with exact save and load."""

    def __init__(self, settings: DenoiserSettings, device: torch.device | str = "cpu"):
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        self.tokenizer = make_tokenizer(grammar.vocabulary())
        self.networks = make_networks(settings.task, self.tokenizer).to(self.device)
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
        self.average = torch.optim.swa_utils.AveragedModel(self.networks, multi_avg_fn=decay)
        edge = ("conv_in", "conv_out", "embed", "azimuth")
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, p in self.trained():
            hidden = p.ndim > 1 and not any(part in name for part in edge)  # from features to features
            (matrices if hidden else others).append(p)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=settings.matrix_rate),
            torch.optim.AdamW(
                others, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
            ),
        ]
        self.step = 0

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Return names and values of the trained parameters."""
        return ((name, p) for name, p in self.networks.named_parameters() if p.requires_grad)

    def start_from(self, teacher: LatentPrior) -> None:
        """Copy the weights of another teacher; parameters that it lacks stay as they are."""
        averages: Any = self.average.module
        both: list[Any] = [self.networks, averages]
        for networks in both:
            same = isinstance(teacher.unet, type(networks["unet"]))
            unet = networks["unet"] if same else networks["unet"].denoiser
            unet.load_state_dict(teacher.unet.state_dict(), strict=False)
            if "text" in networks:
                networks["text"].load_state_dict(teacher.text_encoder.state_dict())

    def check_gradients(self) -> None:
        """Raise RuntimeError when a trained weight got no gradient: it would silently stay unchanged."""
        still = [name for name, p in self.trained() if p.grad is None or not p.grad.any()]
        if still:
            raise RuntimeError(f"{len(still)} weights get no gradient, such as {still[0]}")

    def update(self, rate: float) -> None:
        """Take one step along the gradients, at `rate` times the learning rates."""
        torch.nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * optimizer.defaults["lr"]
            optimizer.step()
        self.average.update_parameters(self.networks)
        self.step += 1

    def loss(
        self,
        z_t: Tensor,
        target: Tensor,
        t: Tensor,
        told: Tensor,
        cameras: Tensor | None = None,
        pictures: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of v over a batch.

        z_t [B, C, h, w], target [B, C, h, w], t [B]. For text: token ids `told` [B, L], and cameras [B, 16]
        for several views. With pictures [n, C, h, w], one for each scene: `told` are the poses [B, 5] of the
        other views relative to it, zeros for the null condition, and cameras the pictures' azimuths [n] in
        radians; the error of the azimuths read from every picture is added.
        """
        unet: Any = self.networks["unet"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=native_bfloat16(self.device)):
            if pictures is not None and cameras is not None:
                tokens, scores = unet.read(pictures)
                views = self.settings.views
                of = torch.arange(0, len(pictures), views, device=self.device).repeat_interleave(views - 1)
                predicted = unet.draw(z_t, t, tokens[of], cameras[of], told)
                read = F.cross_entropy(scores.float(), between(cameras))
                return F.mse_loss(predicted.float(), target) + AZIMUTH * read
            text = self.networks["text"](input_ids=told).last_hidden_state
            more = {} if cameras is None else {"class_labels": cameras}
            predicted = unet(z_t, timestep=t, encoder_hidden_states=text, **more).sample
        return F.mse_loss(predicted.float(), target)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on."""
        state = {"networks": self.networks.state_dict(), "average": self.average.state_dict()}
        temporary = path.with_suffix(".tmp")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state | {"optimizers": optimizers, "step": self.step}, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


@dataclass(frozen=True)
class Dataset:
    """The output of `encode_pictures` in memory: latents [n, C, h, w], ids [n, L], orbits [n, 3], scale."""

    latents: Tensor
    ids: Tensor
    orbits: Tensor
    scale: Tensor  # [], of the latents, to what the autoencoder gives
    facing: Tensor  # [m], the pictures whose caption tells a front from a back

    @classmethod
    def load(cls, path: Path, tokenizer: Any, device: torch.device) -> Dataset:
        """Load the arrays of an .npz onto the device."""
        with np.load(path) as arrays:
            read = [torch.as_tensor(arrays[name]) for name in ("latents", "ids", "orbits", "scale")]
        nothing, sides, things = (
            tokenize(tokenizer, [text])[0] for text in ("", "front back", " ".join(grammar.FACING))
        )
        ids = read[1]
        told = [torch.isin(ids, words[words > nothing.max()].to(ids)).any(1) for words in (sides, things)]
        facing = (told[0] & told[1]).nonzero().flatten()
        return cls(*(x.to(device) for x in (*read, facing)))

    def cameras(self, rows: Tensor) -> Cameras:
        """Return the cameras [B] of some images."""
        azimuth, elevation, distance = self.orbits[rows].cpu().T
        return orbit(azimuth, elevation, distance, 40.0, IMAGE_SIZE, IMAGE_SIZE)


def draw_batch(
    settings: DenoiserSettings, step: int, dataset: Dataset, scheduler: DDIMScheduler
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the arguments of `Denoiser.loss` at one step, determined by (seed, step).

    t is the larger of two uniform draws: the text matters most where there is most noise. Views of one scene
    are consecutive and share t. The first view of each scene may be the reference picture of the others: then
    t is in the noisiest tenth for half of them, where only the picture determines the content, and some get
    the null condition.
    """
    device, views = dataset.latents.device, settings.views
    rng = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
    drawn: Any = {"generator": rng, "device": device}
    scenes = settings.batch // views
    rows = torch.randint(len(dataset.latents) // views, (scenes, 1), **drawn) * views
    if telling := int(settings.facing * scenes):
        chosen = torch.randint(len(dataset.facing), (telling,), **drawn)
        rows[:telling, 0] = dataset.facing[chosen] // views * views
    rows = (rows + torch.arange(views, device=device)).flatten()
    z, told = dataset.latents[rows].float(), dataset.ids[rows].long()
    noise = torch.randn(z.shape, **drawn)
    levels = len(scheduler.alphas_cumprod)
    t = torch.randint(levels, (2, scenes), **drawn).amax(0)
    if settings.task == "image":
        t[: scenes // 2] = torch.randint(levels * 9 // 10, levels, (scenes // 2,), **drawn)
    t = t.repeat_interleave(views)
    z_t, target = noised(scheduler, z, noise, t)
    cameras = pictures = None
    if settings.task == "multiview":
        cameras = camera_matrices(dataset.cameras(rows)).to(device)
    if settings.task == "image":
        places = torch.arange(len(rows), device=device)
        first, asked = places - places % views, places % views > 0
        shown = (torch.rand(scenes, **drawn) > EMPTY).float().repeat_interleave(views)[:, None]
        told = shown * relative_pose(dataset.cameras(rows[first]), dataset.cameras(rows)).to(device)
        cameras, pictures = dataset.orbits[rows, 0].deg2rad(), z / dataset.scale.float()
        z_t, target, t, told = (x[asked] for x in (z_t, target, t, told))
    return z_t.contiguous(memory_format=torch.channels_last), target, t, told, cameras, pictures


def compile_blocks(unet: torch.nn.Module) -> None:
    """Compile the UNet's residual and transformer blocks in place, each on its own.

    As one whole, compiled by torch 2.13 for a CPU in bfloat16, all before the last upsampler gets gradients
    of exactly zero.
    """
    torch._dynamo.config.recompile_limit = 64  # the blocks are variants of two functions
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock):
            module.compile()


def train_reader(denoiser: Denoiser, dataset: Path, compiled: bool = True) -> None:
    """Train the reader of a new image-conditioned network to estimate azimuths, before the denoiser.

    Reading is cheaper than denoising, so in steps of its own it sees many more images. Step k depends on
    (seed, k) alone; arguments as of `train_denoiser`.
    """
    settings, device = denoiser.settings, denoiser.device
    pictures = Dataset.load(dataset, denoiser.tokenizer, device)
    unet: Any = denoiser.networks["unet"]
    azimuths, scale = pictures.orbits[:, 0].deg2rad(), pictures.scale.float()
    if compiled:
        compile_blocks(unet)
    for step in range(settings.reading):
        rng = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(len(azimuths), (READ,), generator=rng, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device)):
            _, scores = unet.read(pictures.latents[rows].float() / scale)
        loss = F.cross_entropy(scores.float(), between(azimuths[rows]))
        denoiser.networks.zero_grad(set_to_none=True)
        loss.backward()
        denoiser.update(min(1.0, (step + 1) / 100, 2 - 2 * step / settings.reading))
        if (step + 1) % 100 == 0:
            log.info("reader %d: cross entropy %.3f", step + 1, loss.item())
    denoiser.average.module.load_state_dict(denoiser.networks.state_dict())
    denoiser.step = 0


def train_denoiser(
    denoiser: Denoiser, dataset: Path, folder: Path, compiled: bool = True, stop: int | None = None
) -> None:
    """Train to settings.steps; log each 100 steps to losses.jsonl, save each 500.

    Batch k depends on (seed, k) alone, so that a resumed run sees the same data as an uninterrupted one.

    Args:
        denoiser: fresh or loaded.
        dataset: what `encode_pictures` wrote.
        folder: where denoiser.pt and losses.jsonl go.
        compiled: use torch.compile on the UNet's blocks (a minute to start).
        stop: end early, after this step, as an interruption would; None runs to the end.
    """
    settings, device = denoiser.settings, denoiser.device
    pictures = Dataset.load(dataset, denoiser.tokenizer, device)
    scheduler = make_scheduler()
    if compiled:
        compile_blocks(denoiser.networks["unet"])
    started, first, total = time.perf_counter(), denoiser.step, torch.zeros((), device=device)
    last = settings.steps if stop is None else min(stop, settings.steps)
    for step in range(denoiser.step, last):
        warm, fall = (step + 1) / settings.warmup, (settings.steps - step) / (settings.fall * settings.steps)
        loss = denoiser.loss(*draw_batch(settings, step, pictures, scheduler))
        denoiser.networks.zero_grad(set_to_none=True)
        loss.backward()
        if step == first + 1:  # at the very first, what follows a layer that starts at zero has none
            denoiser.check_gradients()
        denoiser.update(min(1.0, warm, fall))
        total += loss.detach()
        if denoiser.step % 100 == 0:
            rate = (denoiser.step - first) * settings.batch / (time.perf_counter() - started)
            mean = round(total.item() / 100, 5)
            line = {"step": denoiser.step, "loss": mean, "samples_per_s": round(rate, 1)}
            with open(folder / "losses.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            log.info("denoiser %s", line)
            total.zero_()
        if denoiser.step % 500 == 0 or denoiser.step == last:
            denoiser.save(folder / "denoiser.pt")
