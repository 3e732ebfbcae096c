"""One distillation step of a family at its true size on random weights: memory, time and shapes, no download.

    python benchmarks/true_size.py sdxl|sd35|if [--pixels N] [--limit-gib 20]

The denoiser and the autoencoder have the published configuration. The text encoders are not built: a text is
random numbers of its published shape, as it is after they left memory. The last figures of each family are in
benchmarks/results/true_size.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from common import RESULTS, write_result

from splatdistill.guidance.core import distill
from splatdistill.guidance.methods import SDS
from splatdistill.priors.base import cfg, flow_alphas_cumprod, scaled_linear_alphas_cumprod
from splatdistill.priors.flow import SD3Prior
from splatdistill.priors.folders import Folder
from splatdistill.priors.pipeline import PipelinePrior, Read, pack
from splatdistill.priors.pixel import IFPrior
from splatdistill.priors.sdxl import SDXLPrior
from splatdistill.training.memory import free_memory

KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
IF_BLOCKS = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")


@dataclass(frozen=True)
class Size:
    """A family at its published size: its class, its networks, and the shape of a text."""

    reader: type[PipelinePrior]
    network: Callable[[dict[str, Any]], Any]
    config: dict[str, Any]
    vae: dict[str, Any] | None
    tokens: int
    width: int
    pooled: int = 0
    schedule: tuple[Any, float, str] = field(
        default_factory=lambda: (scaled_linear_alphas_cumprod(), 1.0, "epsilon")
    )


SIZES = {
    "sdxl": Size(
        SDXLPrior,
        lambda config: diffusers.UNet2DConditionModel(**config),
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        KL | {"latent_channels": 4, "scaling_factor": 0.13025},
        77,
        2048,
        1280,
    ),
    "sd35": Size(
        SD3Prior,
        lambda config: diffusers.SD3Transformer2DModel(**config),
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        KL
        | {
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        333,
        4096,
        2048,
        (flow_alphas_cumprod(), 1.0, "flow"),
    ),
    "if": Size(
        IFPrior,
        lambda config: diffusers.UNet2DConditionModel(**config),
        {  # IF-I-M: 0.4 billion parameters
            "sample_size": 64,
            "in_channels": 3,
            "out_channels": 6,
            "block_out_channels": (192, 384, 576, 768),
            "layers_per_block": 3,
            "down_block_types": ("ResnetDownsampleBlock2D", *IF_BLOCKS[:1] * 3),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": (*IF_BLOCKS[1:] * 3, "ResnetUpsampleBlock2D"),
            "attention_head_dim": 64,
            "cross_attention_dim": 768,
            "encoder_hid_dim": 4096,
            "encoder_hid_dim_type": "text_proj",
            "addition_embed_type": "text",
            "act_fn": "gelu",
            "resnet_time_scale_shift": "scale_shift",
        },
        None,
        77,
        4096,
    ),
}


def build(size: Size, dtype: torch.dtype, pixels: int) -> PipelinePrior:
    """Return the teacher with random weights in `dtype`, made there: no copy in float32 exists."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config = dict(size.config)
        if pixels:
            config["sample_size"] = pixels // (8 if size.vae else 1)
        network = size.network(config)
        vae = None if size.vae is None else diffusers.AutoencoderKL(**size.vae)
    finally:
        torch.set_default_dtype(before)
    reader: Any = None
    return size.reader(Folder("random", Path()), network, vae, reader, *size.schedule)


def step(prior: PipelinePrior, size: Size) -> dict[str, Any]:
    """Take one step of SDS on one picture; return its figures."""
    side = prior.image_size
    picture = torch.rand(1, 3, side, side, requires_grad=True)
    shape = (2, size.tokens, size.width)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    text = pack(Read(hidden, torch.randn(2, size.pooled) if size.pooled else None))
    begin = time.perf_counter()
    z = prior.encode(picture)
    found = distill(prior, z, torch.tensor([500]), cfg(text[:1], text[1:], 7.5), SDS())
    found.loss.backward()
    assert picture.grad is not None
    return {
        "pixels": side,
        "latents": list(z.shape[1:]),
        "seconds": round(time.perf_counter() - begin, 1),
        "gradient_is_finite": bool(picture.grad.isfinite().all()),
    }


def main() -> None:
    """Run the command and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=SIZES)
    parser.add_argument("--pixels", type=int, default=0, help="side of the picture; default the model's own")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--limit-gib", type=float, default=20.0, help="do not begin with less memory free")
    args = parser.parse_args()
    free = free_memory(torch.device("cpu")) / 2**30
    if free < args.limit_gib:
        parser.exit(1, f"{free:.1f} GiB are free, fewer than --limit-gib {args.limit_gib:g}: not begun\n")
    size = SIZES[args.family]
    torch.manual_seed(0)
    prior = build(size, getattr(torch, args.dtype), args.pixels)
    networks = [prior.network_] + ([] if prior.vae is None else [prior.vae])
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    print(json.dumps({"parameters": counts, "dtype": args.dtype}), flush=True)
    figures = step(prior, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures |= {"parameters": counts, "dtype": args.dtype, "peak_gib": round(peak, 2)}
    print(json.dumps({"family": args.family} | figures))
    place = RESULTS / "true_size.json"
    families = json.loads(place.read_text("utf-8"))["families"] if place.exists() else {}
    write_result("true_size", {"families": families | {args.family: figures}})


if __name__ == "__main__":
    main()
