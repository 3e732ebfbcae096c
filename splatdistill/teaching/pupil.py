"""Joint training of the shipped teacher's denoiser and text encoder on all three tasks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from splatdistill.files import atomic_write
from splatdistill.priors.album import beside_picture
from splatdistill.priors.latent import native_bfloat16
from splatdistill.priors.reading import MAX_WORDS, word_numbers
from splatdistill.priors.view_transformer import ViewTransformer, describe_cameras, patch_rays
from splatdistill.teaching.compositions import RING, RINGS, VIEWS
from splatdistill.teaching.muon import Muon
from splatdistill.teaching.pages import Pages, name_of

log = logging.getLogger(__name__)

SCALE = 0.7  # of latents: noise then hides even what is brightest at the noisy end
TEXT_WIDTH = 256
LOG = 10  # steps between two lines
WARMUP = 150  # steps
MODES = ("single", "together", "picture")
NO_TEXT = 0.1  # how often nothing is said
RELATIVE = 0.7  # how often azimuths count from the picture that is shown
NO_TEXT_BESIDE = 0.5  # how often nothing is said where a picture is shown


@dataclass(frozen=True)
class PupilSettings:
    """Settings of the training and sizes of the networks.

    shares: of the steps with single views, with RING views together, and with RING views beside a picture.
    """

    batch: int = 64
    matrix_rate: float = 2e-3  # Muon
    learning_rate: float = 1e-3  # AdamW: embeddings, biases, first and last layers
    ema: float = 0.998
    seed: int = 2
    shares: tuple[float, float, float] = (0.35, 0.4, 0.25)
    outer_width: int = 192
    outer_layers: int = 4
    width: int = 320
    layers: int = 5
    patch_size: int = 2


@dataclass(frozen=True)
class Examples:
    """Shards of latents in memory.

    latents [n, V, C, h, w] float16, scaled; ids [n, K, L] of words; cameras [n, V, 4] azimuth and elevation
    in radians, distance, field of view in radians; backgrounds [n, 3]; shown: the number of each scene's page
    [n], -1 where there is none; encode: from pictures [B, 3, S, S] in [0, 1] to latents.
    """

    latents: Tensor
    ids: Tensor
    cameras: Tensor
    backgrounds: Tensor
    shown: Tensor
    pages: Pages
    encode: Callable[[Tensor], Tensor]

    @classmethod
    def load(
        cls,
        paths: list[Path],
        words: dict[str, int],
        pages: Pages,
        encode: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
    ) -> Examples:
        """Read shards that `shards.encode_shard` wrote; a thing without a page has no pictures."""
        latents, ids, cameras, backgrounds = [], [], [], []
        shown: list[int] = []
        for path in paths:
            with np.load(path) as arrays:
                latents.append(torch.from_numpy(arrays["latents"]))
                said = [[word_numbers(text, words) for text in row] for row in arrays["captions"]]
                ids.append(torch.tensor(said))
                cameras.append(torch.from_numpy(arrays["cameras"]).float())
                backgrounds.append(torch.from_numpy(arrays["backgrounds"]).float())
                told = zip(arrays["ids"].tolist(), arrays["relations"].tolist(), strict=True)
                shown += [pages.numbers.get(name_of(*row), -1) for row in told]
        placed = torch.cat(cameras)
        placed[..., [0, 1, 3]] = placed[..., [0, 1, 3]].deg2rad()
        parts = torch.cat(latents), torch.cat(ids), placed, torch.cat(backgrounds), torch.tensor(shown)
        first, words_of, views, behind, numbers = (part.to(device) for part in parts)
        return cls(first, words_of, views, behind, numbers, pages, encode)


@dataclass(frozen=True)
class Batch:
    """The inputs of one step, as in ViewTransformer: n samples, `views` consecutive ones of one scene."""

    clean: Tensor  # [n, C, h, w]
    t: Tensor  # [n]
    ids: Tensor  # [n / views, L]
    cameras: Tensor  # [n, 4]
    relative: Tensor  # [n]
    backgrounds: Tensor  # [n, 3]
    shown: Tensor  # [n, SHOWN, C, h, w]
    offsets: Tensor  # [n, SHOWN, OFFSET]
    noise: Tensor  # [n, C, h, w]
    views: int


def draw_batch(settings: PupilSettings, step: int, examples: Examples, steps: int = 1000) -> Batch:
    """Draw the batch of one step, determined by (seed, step). t is the larger of two uniform draws."""
    device = examples.latents.device
    number = settings.seed * 1_000_003 + step
    drawn: Any = {"generator": torch.Generator(device).manual_seed(number), "device": device}
    shares = torch.tensor(settings.shares, dtype=torch.float32)
    own = torch.Generator().manual_seed(number)  # here: the device is not waited for
    mode = MODES[int(torch.multinomial(shares, 1, generator=own))]
    views = 1 if mode == "single" else RING
    scenes = settings.batch // views
    rows = torch.randint(len(examples.latents), (scenes, 1), **drawn)
    rings = torch.randint(RINGS, (scenes, 1), **drawn) * RING + torch.arange(RING, device=device)
    free = torch.rand(scenes, VIEWS, **drawn).argsort(1)
    columns = rings if mode == "together" else free[:, :views]
    t = torch.randint(steps, (2, scenes, 1), **drawn).amax(0).repeat(1, views)
    relative = torch.zeros(scenes, 1, device=device)
    silent = torch.rand(scenes, 1, **drawn) < (NO_TEXT_BESIDE if mode == "picture" else NO_TEXT)
    spoken = torch.randint(examples.ids.shape[1], (scenes, 1), **drawn)
    cameras = examples.cameras[rows, columns]
    each = rows.repeat(1, views).flatten()
    backgrounds = examples.backgrounds[each]
    if mode == "picture":
        relative = (torch.rand(scenes, 1, **drawn) < RELATIVE).float()
        column = free[:, views : views + 1]
        seen = examples.cameras[rows, column]  # [scenes, 1, 4]
        picture = examples.latents[rows, column].float().repeat_interleave(views, 0).squeeze(1)
        shown, offsets = beside_picture(
            picture, seen.expand(-1, views, -1).flatten(0, 1), cameras.flatten(0, 1)
        )
        cameras[..., 0] = cameras[..., 0] - relative * seen[..., 0]
    else:
        numbers = examples.shown[each].masked_fill(silent.repeat(1, views).flatten(), -1)
        shown, offsets = examples.pages.beside(numbers, cameras.flatten(0, 1), backgrounds, examples.encode)
    clean = examples.latents[rows, columns].flatten(0, 1).float()
    return Batch(
        clean=clean,
        t=t.flatten(),
        ids=examples.ids[rows[:, 0], spoken[:, 0]].masked_fill(silent, 0),
        cameras=cameras.flatten(0, 1),
        relative=relative.repeat(1, views).flatten(),
        backgrounds=backgrounds,
        shown=shown,
        offsets=offsets,
        noise=torch.randn(clean.shape, **drawn),
        views=views,
    )


def make_scheduler() -> DDIMScheduler:
    """Make Stable Diffusion's noise schedule with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def make_text_encoder(words: int) -> Any:
    """Make two CLIP layers; word 0 pads and ends the text, so that the last token attends to all."""
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_WORDS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    encoder: Any = CLIPTextModel(config)
    encoder.set_attn_implementation("eager")
    return encoder


def statistics(latents: Tensor) -> dict[str, tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of latents [..., C, h, w]."""
    flat = latents.flatten(0, -4).float()
    mean, std = flat.mean((0, 2, 3)), flat.std((0, 2, 3))
    return {"means": tuple(mean.tolist()), "deviations": tuple(std.tolist())}


class Pupil:
    """Networks, optimizers and moving averages, with exact save and load."""

    def __init__(
        self,
        settings: PupilSettings,
        words: int,
        channels: dict[str, tuple[float, ...]],
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        denoiser = ViewTransformer(
            in_channels=len(channels["means"]),
            out_channels=len(channels["means"]),
            means=channels["means"],
            deviations=channels["deviations"],
            patch_size=settings.patch_size,
            outer_width=settings.outer_width,
            outer_layers=settings.outer_layers,
            width=settings.width,
            layers=settings.layers,
            cross_attention_dim=TEXT_WIDTH,
        )
        networks = {"denoiser": denoiser, "text": make_text_encoder(words)}
        self.networks: Any = torch.nn.ModuleDict(networks).to(self.device)
        self.average: Any = torch.optim.swa_utils.AveragedModel(self.networks, multi_avg_fn=self._follow)
        edge = ("embed", "predict", "places")
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, p in self.networks.named_parameters():
            inside = p.ndim == 2 and not any(part in name for part in edge)
            (matrices if inside else others).append(p)
        adam: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 1e-2, "fused": True}
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=settings.matrix_rate),
            torch.optim.AdamW(others, lr=settings.learning_rate, **adam),
        ]
        self.step = 0
        self.half = native_bfloat16(self.device)
        self.alphas_cumprod = make_scheduler().alphas_cumprod.to(self.device)

    @torch.no_grad()
    def _follow(self, averages: Any, values: Any, _: Any) -> None:
        """Return the moving average; its horizon is at most a tenth of the steps so far."""
        weight = max(1 - self.settings.ema, 1 / (1 + self.step / 10))
        torch._foreach_lerp_(averages, values, weight)

    def adopt(self, folder: Path) -> None:
        """Take the networks of a teacher's folder, of these sizes, and their step; no optimizer's state."""
        given: dict[str, Any] = {
            "denoiser": ViewTransformer.from_pretrained(folder / "transformer"),
            "text": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        }
        for name, network in given.items():
            for kept in (self.networks, self.average.module):
                kept[name].load_state_dict(network.state_dict())
        self.step = json.loads((folder / "model_index.json").read_text("utf-8"))["step"]

    def predict(self, batch: Batch, networks: Any = None) -> tuple[Tensor, Tensor]:
        """Return the networks' v and the target, both [n, C, h, w]."""
        networks = self.networks if networks is None else networks
        alpha_bar = self.alphas_cumprod[batch.t]
        a, b = (x.view(-1, 1, 1, 1) for x in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        z_t, target = a * batch.clean + b * batch.noise, a * batch.noise - b * batch.clean
        azimuth, elevation, distance, fov = batch.cameras.unbind(1)
        cameras = describe_cameras(azimuth, elevation, distance, fov, batch.relative)
        rays = patch_rays(azimuth, elevation, distance, fov, networks["denoiser"].side)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            text = networks["text"](input_ids=batch.ids).last_hidden_state
            known = (text, cameras, rays, batch.backgrounds, batch.shown, batch.offsets, batch.views)
            return networks["denoiser"](z_t, batch.t, alpha_bar, *known), target

    def loss(self, batch: Batch, networks: Any = None) -> Tensor:
        """Return the mean squared error of v."""
        predicted, target = self.predict(batch, networks)
        return F.mse_loss(predicted.float(), target)

    def update(self, rate: float) -> None:
        """Take one step along the gradients, at `rate` times the learning rates."""
        torch.nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * optimizer.defaults["lr"]
            optimizer.step()
        self.step += 1
        self.average.update_parameters(self.networks)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on."""
        state = {"networks": self.networks.state_dict(), "average": self.average.state_dict()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        with atomic_write(path) as file:
            torch.save(state | {"optimizers": optimizers, "step": self.step}, file)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def train(
    pupil: Pupil,
    examples: Examples,
    folder: Path,
    until: int,
    fall: int = 0,
    minutes: float = 5.0,
    seconds: float = float("inf"),
    fall_seconds: float = 0.0,
) -> None:
    """Train to step `until`; log each 10 steps to losses.jsonl, save every few `minutes` and at the end.

    The learning rates are constant after a warmup but for the last `fall` steps, which lower them to zero: so
    a run can be ended at any time by a short one with `fall`. With `seconds` the run ends after so long, and
    the last `fall_seconds` of them do the same.
    """
    start = saved = time.perf_counter()
    first, total, count = pupil.step, 0.0, 0
    while pupil.step < until and (left := seconds - (time.perf_counter() - start)) > 0:
        rate = min(1.0, (pupil.step + 1) / WARMUP, (until - pupil.step) / fall if fall else 1.0)
        rate = min(rate, left / fall_seconds) if fall_seconds else rate
        pupil.networks.zero_grad(set_to_none=True)
        loss = pupil.loss(draw_batch(pupil.settings, pupil.step, examples))
        loss.backward()
        pupil.update(rate)
        total, count = total + loss.detach(), count + 1
        if pupil.step % LOG == 0:
            speed = (pupil.step - first) * pupil.settings.batch / (time.perf_counter() - start)
            line = {
                "step": pupil.step,
                "loss": round(float(total) / count, 5),
                "samples_per_s": round(speed, 1),
            }
            with open(folder / "losses.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            log.info("%s", line)
            total, count = 0.0, 0
        if time.perf_counter() - saved > 60 * minutes:
            pupil.save(folder / "pupil.pt")
            saved = time.perf_counter()
    pupil.save(folder / "pupil.pt")
