"""How fast is SDI at Stable Diffusion 2.1 size? Ours against eager diffusers calls; random weights.

`python benchmarks/guidance_gpu.py [--device cuda] [--views 1 2 4] [--tiny]` times whole steps (render,
encode, inversion, guidance, backward) with CFG and with perp-neg, averaged over five noise levels of SDI's
annealing, and writes benchmarks/results/gpu-guidance.json. `--compile` measures ours with compiled networks.
`--tiny` checks the script itself, on any machine.
"""

# diffusers annotates tuples of one type as tuples of one element, and its models' `to` as taking only models
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, write_result
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from splatdistill.guidance.core import Method, distill
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.noise import Inversion
from splatdistill.guidance.prompts import perp_neg_mix
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.priors import compiling
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.priors.graphs import GraphedGradient
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.networks import quiet
from splatdistill.scene.cameras import Cameras, OrbitRanges, sample_orbit
from splatdistill.scene.gaussians import init_blob
from splatdistill.scene.rendering import render

LEVELS = (979, 784, 589, 394, 200)  # t, over the annealing from .98 to .2
STAGES = ("render", "encode", "inversion", "guidance", "backward")
GUIDANCE, INVERSION_GUIDANCE, INVERSION_STEPS, ETA = 7.5, -7.5, 10, 0.3
UNET_GFLOP = 804  # of one sample at 64x64 latents
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
NORMS = {"channels": compiling.ChannelGroupNorm, "plain": nn.GroupNorm}


def first_attention(name: str) -> AbstractContextManager[Any]:
    """Prefer one of torch's attentions: of ATTENTION, "math", or "default" for torch's own order."""
    if name == "default":
        return nullcontext()
    others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # where it cannot, as for the encoder's width
    first = [SDPBackend.MATH] if name == "math" else [ATTENTION[name], *others]
    return sdpa_kernel(first, set_priority=True)


def build_prior(device: str, dtype: torch.dtype, tiny: bool) -> LatentPrior:
    """Networks of Stable Diffusion 2.1's architecture with random weights; the text encoder is not needed."""
    torch.manual_seed(0)
    widths = (32, 64, 64, 64) if tiny else (320, 640, 1280, 1280)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=8 if tiny else 64,
            block_out_channels=widths,
            layers_per_block=1 if tiny else 2,
            attention_head_dim=(2, 4, 4, 4) if tiny else (5, 10, 20, 20),  # the number of heads
            cross_attention_dim=32 if tiny else 1024,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            sample_size=64 if tiny else 512,
            block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1 if tiny else 2,
            latent_channels=4,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False
    )
    vae_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
    with quiet():
        networks = {"unet": unet.to(dtype), "vae": vae.to(vae_dtype), "text_encoder": torch.nn.Module()}
    return LatentPrior("random", **networks, tokenizer=None, scheduler=scheduler)


def build_condition(prior: LatentPrior, cameras: Cameras, perp_neg: bool) -> Conditioning:
    """CFG or perp-neg branches with random embeddings."""
    width = prior.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(4, 1, 77, width, generator=generator).to(prior.device)
    texts = texts.repeat(1, len(cameras), 1, 1)
    if not perp_neg:
        return Conditioning(texts[:2], GUIDANCE)
    mix = perp_neg_mix(cameras.azimuth_deg, cameras.elevation_deg)
    return Conditioning(texts, GUIDANCE, negatives=mix.weights)


class Eager:
    """SDI as research code does it: one view after the other, diffusers calls, arithmetic in Python.

    All branches of a view are one batch; every branch is evaluated, whatever its weight.
    """

    def __init__(self, prior: LatentPrior) -> None:
        self.unet, self.vae, self.dtype = prior.unet, prior.vae, prior.unet.dtype
        self.size, self.scale = prior.image_size, prior.vae.config.scaling_factor
        self.alphas = prior.alphas_cumprod.float().to(prior.device)

    def encode(self, rgb: Tensor) -> Tensor:
        """Latents [V, 4, h, w] of images [V, 3, H, W] in [0, 1]."""
        images = F.interpolate(rgb, (self.size, self.size), mode="bilinear")
        views = [self.vae.encode((2 * x[None] - 1).to(self.vae.dtype)).latent_dist.mode() for x in images]
        return torch.cat(views).float() * self.scale

    def predict(
        self, x: Tensor, t: int, texts: Tensor, weights: list[float], perp_neg: bool, g: float
    ) -> Tensor:
        """Return the guided noise [1, 4, h, w] of one view from texts [R, 77, D]."""
        branches = len(texts)
        batch = torch.cat([x] * branches).to(self.dtype)
        steps = torch.tensor([t] * branches, device=x.device)
        outputs = self.unet(batch, steps, encoder_hidden_states=texts).sample.float()
        null, text, *negatives = outputs.chunk(branches)
        direction = text - null
        total = direction.clone()
        for negative, weight in zip(negatives, weights[2:] if perp_neg else (), strict=True):
            other = negative - null
            share = (other * direction).sum() / direction.square().sum()
            total += weight * (other - share * direction)
        return null + g * total

    def noise(self, z: Tensor, t: int, texts: Tensor, weights: list[float], perp_neg: bool) -> Tensor:
        """DDIM inversion of one view from texts [R, 77, D]'s latents [1, 4, h, w] to the noise at t."""
        grid = list(range(0, t, len(self.alphas) // INVERSION_STEPS))
        x = z
        for now, then in zip(grid, [*grid[1:], t], strict=True):
            e = self.predict(x, now, texts, weights, perp_neg, INVERSION_GUIDANCE)
            ab, ab_next = self.alphas[now], self.alphas[then]
            clean = (x - (1 - ab).sqrt() * e) / ab.sqrt()
            x = ab_next.sqrt() * clean + (1 - ab_next).sqrt() * e
        x = x + ETA * (1 - self.alphas[t]).sqrt() * torch.randn_like(x)
        return (x - self.alphas[t].sqrt() * z) / (1 - self.alphas[t]).sqrt()

    def loss(self, z: Tensor, t: int, cond: Conditioning, stage: Callable[[str], None]) -> Tensor:
        """Return the loss of SDI over views [V, 4, h, w]."""
        weights = cond.weights / cond.weights[1]
        total = z.new_zeros(())
        for v in range(len(z)):
            texts, own = cond.embeddings[:, v].to(self.dtype), weights[:, v].tolist()
            with torch.no_grad():
                clean = z[v : v + 1].detach()
                kappa = self.noise(clean, t, texts, own, cond.perp_neg)
                stage("inversion")
                ab = self.alphas[t]
                z_t = ab.sqrt() * clean + (1 - ab).sqrt() * kappa
                e = self.predict(z_t, t, texts, own, cond.perp_neg, GUIDANCE)
                target = (z_t - (1 - ab).sqrt() * e) / ab.sqrt()
                stage("guidance")
            total = total + 0.5 * F.mse_loss(z[v : v + 1], target, reduction="sum") / len(z)
        return total


@dataclass(frozen=True, eq=False)
class Staged(Method):
    """A method that calls `stage` after its comparison."""

    method: Method = field(default_factory=SDI)
    stage: Callable[[str], None] = print

    def compare(self, query: Query, state: State) -> Comparison:
        """Return the inner method's comparison."""
        found = self.method.compare(query, state)
        self.stage("inversion")
        return found

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return the inner method's weight."""
        return self.method.weight(prior, t)


class Ours:
    """The product's own path."""

    def __init__(self, prior: LatentPrior) -> None:
        self.prior, self.encode = prior, prior.encode
        inversion = Inversion(steps=INVERSION_STEPS, guidance=INVERSION_GUIDANCE, eta=ETA)
        self.method = SDI(inversion=inversion)

    def loss(self, z: Tensor, t: int, cond: Conditioning, stage: Callable[[str], None]) -> Tensor:
        """Return the loss of SDI over views [V, 4, h, w]."""
        loss = distill(
            self.prior, z, torch.full((len(z),), t), cond, Staged(method=self.method, stage=stage)
        ).loss
        stage("guidance")
        return loss


def one_step(way: Eager | Ours, scene, cameras: Cameras, t: int, cond: Conditioning, stage) -> None:
    """Render, encode, distill and go back to the Gaussians; `stage(name)` is called after each part."""
    view = render(scene, cameras, torch.ones(3))
    stage("render")
    z = way.encode(view.rgb.permute(0, 3, 1, 2))
    stage("encode")
    way.loss(z, t, cond, stage).backward()
    stage("backward")
    for parameter in scene.values():
        parameter.grad = None


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(way: Eager | Ours, scene, cameras: Cameras, cond: Conditioning, options) -> dict:
    """Milliseconds a step over LEVELS: in all without interruption, and by stage."""
    brief = isinstance(way, Eager) and len(cameras) > 1  # one view after the other: warm, and long
    start = time.perf_counter()
    for t in () if brief else LEVELS:
        one_step(way, scene, cameras, t, cond, lambda name: None)
    synchronize(options.device)
    first = time.perf_counter() - start
    best = float("inf")
    for _ in range(0 if brief else options.repeats):
        start = time.perf_counter()
        for t in LEVELS:
            one_step(way, scene, cameras, t, cond, lambda name: None)
        synchronize(options.device)
        best = min(best, (time.perf_counter() - start) / len(LEVELS))
    split: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    mark = [time.perf_counter()]

    def stage(name: str) -> None:
        synchronize(options.device)
        now = time.perf_counter()
        split[name] += 1e3 * (now - mark[0]) / len(LEVELS)
        mark[0] = now

    for t in LEVELS:
        synchronize(options.device)
        mark[0] = time.perf_counter()
        one_step(way, scene, cameras, t, cond, stage)
    best = min(best, 1e-3 * sum(split.values())) if brief else best
    return {
        "step_ms": 1e3 * best,
        "view_ms": 1e3 * best / len(cameras),
        "first_pass_s": first,
        "split_ms": split,
    }


def matmul_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a large matrix product: the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def evaluations(branches: int) -> float:
    """UNet samples of one view from texts [R, 77, D] and step, averaged over LEVELS."""
    return branches * sum(len(range(0, t, 1000 // INVERSION_STEPS)) + 1 for t in LEVELS) / len(LEVELS)


def prepare(prior: LatentPrior, options: argparse.Namespace) -> str:
    """Make the prior as the options say; return the attention that it prefers."""
    if options.fuse:
        prior.unet.fuse_qkv_projections()
    if options.norm:
        compiling.NORM = NORMS[options.norm]
    if options.compile:
        prior.compile()
    if options.encoder_attention != "default":

        def latents(rgb: Tensor) -> Tensor:
            with first_attention(options.encoder_attention):
                return prior.latents(rgb)

        prior._encode = GraphedGradient(latents)
    return options.attention


def main() -> None:
    """Time every combination, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--eager-views", type=int, nargs="+", help="of the eager loop; default: the same")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--compile", action="store_true", help="ours with compiled networks")
    parser.add_argument("--attention", choices=["default", *ATTENTION], default="default", help="of ours")
    parser.add_argument("--encoder-attention", choices=["default", "efficient", "math"], default="default")
    parser.add_argument("--fuse", action="store_true", help="ours with fused projections of queries and keys")
    parser.add_argument("--norm", choices=list(NORMS), help="of compiled blocks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="small networks; results are not written")
    options = parser.parse_args()
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    peak = matmul_peak(options.device, dtype, 512 if options.tiny else 8192)
    rows = []
    for name, kind in {"ours": Ours, "eager": Eager}.items():  # ours first, should the time run out
        start = time.perf_counter()
        prior = build_prior(options.device, dtype, options.tiny)
        way: Eager | Ours = kind(prior)
        built = time.perf_counter() - start
        attention = prepare(prior, options) if name == "ours" else "default"
        for count in options.views if name == "ours" else options.eager_views or options.views:
            generator = torch.Generator().manual_seed(2)
            cameras = sample_orbit(OrbitRanges(), count, prior.image_size, generator)
            scene = init_blob(options.gaussians, generator=generator).to(options.device)
            for mode in ("cfg", "perp_neg"):
                if options.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                cond = build_condition(prior, cameras, mode == "perp_neg")
                row = {"way": name, "views": count, "mode": mode}
                with first_attention(attention):
                    row |= measure(way, scene, cameras, cond, options)
                samples = count * evaluations(4 if mode == "perp_neg" else 2)
                unet_ms = row["split_ms"]["inversion"] + row["split_ms"]["guidance"]
                row["unet_samples_per_s"] = 1e3 * samples / unet_ms
                row["share_of_peak"] = row["unet_samples_per_s"] * UNET_GFLOP / 1e3 / peak
                if options.device == "cuda":
                    row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
                rows.append(row)
                print(
                    f"{name:6s} {count} views {mode:8s} {row['view_ms']:8.1f} ms/view   "
                    + "  ".join(f"{k} {v:.1f}" for k, v in row["split_ms"].items()),
                    flush=True,
                )
                if not options.tiny:  # each time: what was measured stays where the time runs out
                    told = {"matmul_peak_tflops": peak, "build_s": built, "rows": rows}
                    write_result("gpu-guidance", told, options.out)


if __name__ == "__main__":
    main()
