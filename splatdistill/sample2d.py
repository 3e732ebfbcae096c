"""`python -m splatdistill.sample2d --prompt TEXT`: distillation of 2D images instead of a splat.

Writes picture.png, trajectory.png (left to right over the run: the optimized latents above, the teacher's x_0
estimate below) and metrics.json, with the distance to the teacher's own DDIM samples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.cli import Parser, add_settings, chosen, folder, note
from splatdistill.console import exit_status
from splatdistill.errors import Diverged, UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from splatdistill.config.schema import Config
    from splatdistill.guidance.core import Distillation
    from splatdistill.priors.base import Prior

MODES = ("ddim", "cached", "inversion")
STATES = 10  # of a trajectory
RATE = 0.05
DDIM_STEPS = 50


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(
        prog="python -m splatdistill.sample2d", description="Distill pictures.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--prompt", required=True, help="what to draw: 'a red mushroom, front view'")
    add("--method", help="sdi (default), sds, dsd, csd, ... ; dds and pds edit")
    add(
        "--mode",
        choices=MODES,
        help="of sdi: by inversion (default), with the cached noise (DDIM, exactly), or DDIM itself",
    )
    add("--source-prompt", help="for dds and pds: what is edited, a DDIM sample of this")
    add("--rate", type=float, default=RATE, help=f"Adam's, on latents; default {RATE}")
    add("--count", type=int, default=4, help="pictures, each from noise of its own; default 4")
    add("--out", type=folder, metavar="DIR", help="default outputs/2d-<prompt>-<method>-<seed>")
    add_settings(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    return exit_status(lambda: start(args), "interrupted; nothing was written")


def start(args: argparse.Namespace) -> int:
    """Run the distillation, write its files and print the results; return the exit status."""
    from splatdistill.config.load import resolve
    from splatdistill.files import atomic_write, writable_folder
    from splatdistill.priors.loading import probe
    from splatdistill.training.inputs import check_words, pick_device, remarks, slug, teacher_of

    exact = args.mode in ("ddim", "cached")
    flags: dict[str, Any] = {"steps": DDIM_STEPS} if exact else {}
    flags |= chosen(args, "prompt", "method", "steps", "seed")
    flags["edit"] = {"source_prompt": args.source_prompt or ""}
    config = resolve(flags, None, args.overrides)
    if config.method.edits and not args.source_prompt:
        raise UserError(f"method '{config.method.name}' edits: say what with --source-prompt 'a red car'")
    if not config.method.reads_latents:
        raise UserError(
            "method 'clip' compares pictures, and has no latents; use python -m splatdistill.train"
        )
    if args.mode is not None and config.method.name != "sdi":
        raise UserError(f"--mode is for method sdi, not for {config.method.name}")
    if args.count < 1 or not args.rate > 0.0:
        raise UserError(f"expected --count of 1 or more and --rate above 0, got {args.count} and {args.rate}")
    for warning in check_words(config, args.allow_unknown):
        note(warning)
    name = f"2d-{slug(config.prompt)}-{args.mode if exact else config.method.name}-{config.seed}"
    out = args.out or Path("outputs") / name
    prior = teacher_of(config, pick_device(args.device))
    if prior.needs_picture:
        raise UserError(
            "this teacher turns a picture and reads no text; use python -m splatdistill.train --image"
        )
    prior = prior.alone()
    probe(prior)
    for warning in remarks(config, prior, flat=True):
        note(warning)
    writable_folder(out)
    z, metrics, trajectory = play(config, prior, args.mode or "inversion", args.count, args.rate)
    if not all(math.isfinite(value) for value in metrics.values() if isinstance(value, float)):
        raise Diverged("the pictures are not finite: nothing was written; try another --rate or teacher")
    with atomic_write(out / "picture.png") as file:
        row(prior.decode(z)).save(file, format="PNG")
    with atomic_write(out / "trajectory.png") as file:
        strip(prior, trajectory).save(file, format="PNG")
    with atomic_write(out / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=1).encode() + b"\n")
    others = (
        "" if metrics["psnr_to_other"] is None else f", to other samples {metrics['psnr_to_other']:.1f} dB"
    )
    note(f"{out / 'picture.png'}: to the DDIM sample {metrics['psnr_to_ddim']:.1f} dB{others}")
    return 0


def play(
    config: Config, prior: Prior, mode: str, count: int, rate: float
) -> tuple[Tensor, dict[str, Any], list[tuple[Tensor, Tensor]]]:
    """Distill latents [count,C,h,w]; return them, their distances to DDIM samples, and the trajectory.

    The trajectory holds pairs of the first image's latents and the teacher's x_0 estimate.
    """
    import torch

    from splatdistill.guidance.core import sample
    from splatdistill.guidance.latents import branches, cached_sdi, distill_latents, from_noise
    from splatdistill.guidance.query import Source
    from splatdistill.measure.metrics import psnr

    generator = torch.Generator().manual_seed(config.seed)
    method, steps = config.method, config.steps
    z_T = torch.randn(count, *prior.latent_shape, generator=generator).to(prior.device)
    cond = branches(prior, config.prompt, config.method.guidance, count, config.negative_prompt)
    ddim = sample(prior, cond, z_T, DDIM_STEPS)
    trajectory: list[tuple[Tensor, Tensor]] = []

    def watch(step: int, z: Tensor, found: Distillation) -> None:
        if step in {round(k * (steps - 1) / (STATES - 1)) for k in range(STATES)}:
            trajectory.append((z[:1].clone(), found.x0_hat[:1].clone()))

    if mode == "ddim":
        z = sample(prior, cond, z_T, steps)
    elif mode == "cached":
        z = cached_sdi(prior, cond, z_T, steps, watch)
    else:
        z, source = from_noise(prior, z_T, len(prior.alphas_cumprod) - 1)[0], None
        if method.edits:
            source_branches = branches(
                prior, config.edit.source_prompt, config.method.guidance, count, config.negative_prompt
            )
            z = sample(prior, source_branches, z_T, DDIM_STEPS)
            source = Source(z.clone(), source_branches)
        state = method.start(prior, config.seed)
        z = distill_latents(prior, cond, method, z, steps, rate, generator, source, watch=watch, state=state)
    pictures, own = prior.decode(z), prior.decode(ddim)
    metrics = {
        "prompt": config.prompt,
        "read_as": prior.understand(config.prompt)[0],
        "method": config.method.name if mode == "inversion" else mode,
        "steps": steps,
        "seed": config.seed,
        "latent_rmse_to_ddim": (z - ddim).square().mean().sqrt().item(),
        "psnr_to_ddim": psnr(pictures, own).mean().item(),
        "psnr_to_other": psnr(pictures, own.roll(1, 0)).mean().item() if count > 1 else None,
    }
    return z, metrics, trajectory or [(z[:1], z[:1])]


def row(pictures: Tensor) -> Image:
    """Join images [n,3,H,W] in [0,1] horizontally."""
    from PIL import Image

    from splatdistill.scene.pictures import to_uint8

    return Image.fromarray(to_uint8(pictures.permute(2, 0, 3, 1).flatten(1, 2)).cpu().numpy())


def strip(prior: Prior, trajectory: list[tuple[Tensor, Tensor]]) -> Image:
    """Join the trajectory's latents (above) and x_0 estimates (below), decoded."""
    import torch

    above, below = (prior.decode(torch.cat(side)) for side in zip(*trajectory, strict=True))
    return row(torch.cat([above, below], dim=2))


if __name__ == "__main__":
    sys.exit(main())
