"""`python -m splatdistill.train --prompt TEXT`: text to a 3D Gaussian splat. Parses, builds, runs; no maths.

Everything heavy is imported after the arguments were read, so help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, add_viewer, exit_status, note, numbers
from splatdistill.errors import UserError
from splatdistill.runs import RESULT, check_folder, name_of, run

if TYPE_CHECKING:
    import torch

    from splatdistill.config import Config
    from splatdistill.viewer import Address

# the options that say what a run is
CHOICES = ("prompt", "image", "negative_prompt", "method", "prior", "steps", "seed", "seeds", "out", "config")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace; flags that were not given are None or False."""
    parser = Parser(
        prog="python -m splatdistill.train", description="Text to a 3D Gaussian splat.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--prompt", help="what to make: 'a red mushroom'")
    add("--image", metavar="FILE", help="a picture of one thing, transparent or on a plain background")
    add("--negative-prompt", help="what to steer away from")
    add("--method", help="sdi (default), sds, dsd, csd, ... : docs/METHODS.md")
    add("--prior", help="embedded (default), sd21, sd15, or the folder of a diffusers model")
    add("--steps", type=int, help="optimisation steps")
    add("--seed", type=int, help="default 0")
    add("--seeds", metavar="0-7", help="a run for each, in DIR/SEED, and DIR/seeds.png; goes on where it was")
    add("--out", type=Path, metavar="DIR", help="default outputs/<prompt>-<seed>, or -seeds")
    add(
        "--config", metavar="YAML", help="settings on top of the presets; a run's config.yaml repeats the run"
    )
    add("--device", help="cpu, cuda or cuda:N; default cuda where there is one")
    add("--resume", type=Path, metavar="DIR", help="continue a run that was stopped, exactly")
    add_viewer(parser)
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    add("--list-words", action="store_true", help="print the words that the embedded teacher knows, and exit")
    add(
        "--allow-unknown",
        action="store_true",
        help="only warn of words that the embedded teacher does not know",
    )
    add("--version", action="version", version=f"splatdistill {__version__}")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="any setting by its name in config.yaml: guidance.scale=10",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 diverged, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    if args.list_words:
        from splatdistill.priors.embedded import grammar

        print(grammar.word_list())
        return 0
    command = resume if args.resume else several if args.seeds is not None else start
    return exit_status(lambda: command(args), "interrupted; a run that had begun continues with --resume DIR")


def start(args: argparse.Namespace) -> int:
    """Run from the first step in a new folder; return the exit status."""
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("the prompt is empty; say what to make, such as --prompt 'a red mushroom'")
    config = configure(args)
    return begin(config, args.out or Path("outputs") / f"{name_of(config)}-{config.seed}", args)


def several(args: argparse.Namespace) -> int:
    """A run for each seed, and one picture of all; return the exit status, that of the worst run."""
    from splatdistill.config import load
    from splatdistill.files import atomic_write
    from splatdistill.report import runs_sheet

    if args.seed is not None:
        raise UserError("give --seed or --seeds, not both")
    base, status, finished = args.out, 0, []
    for seed in numbers(args.seeds, "--seeds"):
        args.seed = seed
        config = configure(args)
        base = base or Path("outputs") / f"{name_of(config)}-seeds"
        out = base / str(seed)
        known = out / "config.yaml"
        if not args.overwrite and known.is_file() and load(known) == config:
            result = 0 if (out / RESULT).exists() else proceed(out, config, args)
        else:
            result = begin(config, out, args)
        if result == 130:
            return 130
        status = max(status, result)
        finished += [out] * (result == 0)
    if base is not None and finished:
        with atomic_write(base / "seeds.png") as file:
            runs_sheet([out / RESULT for out in finished], 96, 2).save(file, format="PNG")
        note(f"{base / 'seeds.png'} shows {len(finished)} runs, four views each")
    return status


def begin(config: Config, out: Path, args: argparse.Namespace) -> int:
    """Run a configuration from its first step; return the exit status."""
    check_words(config, args.allow_unknown)
    address = viewer_address(args)
    check_folder(out, args.overwrite)
    device = pick_device(args.device)
    if device.type == "cuda" and args.prior is None and config.prior.name == "embedded":
        note("the embedded teacher draws 64x64 pictures; --prior sd21 uses Stable Diffusion on this GPU")
    return run(config, out, device, None, address)


def resume(args: argparse.Namespace) -> int:
    """Continue the run in a folder under its own configuration; return the exit status."""
    from splatdistill.config import load

    given = [f"--{name.replace('_', '-')}" for name in CHOICES if getattr(args, name) is not None]
    given += args.overrides + ["--overwrite"] * args.overwrite
    if given:
        raise UserError(f"--resume continues a run as it was configured; drop {' '.join(given)}")
    if not (args.resume / "config.yaml").is_file():
        raise UserError(f"--resume {args.resume}: there is no run (no config.yaml); give the folder of a run")
    config = load(args.resume / "config.yaml")
    return proceed(args.resume, config, args)


def proceed(out: Path, config: Config, args: argparse.Namespace) -> int:
    """Continue an unfinished run, or do a finished one's last things again; return the exit status."""
    from splatdistill import checkpoint

    check_folder(out, overwrite=True)
    begun = any((out / "checkpoints").glob("*.pt"))  # else it was killed before its first checkpoint
    saved = checkpoint.latest(out / "checkpoints") if begun else None
    return run(config, out, pick_device(args.device), saved, viewer_address(args))


def viewer_address(args: argparse.Namespace) -> Address | None:
    """Return where the run is to be shown, or None; raises UserError for what is no address."""
    if args.viewer is None:
        return None
    from splatdistill.viewer import free_port, parse_address

    address = parse_address(args.viewer, args.viewer_remote)
    free_port(address.host, address.port)  # a host that is not ours is told before anything is done
    return address


def configure(args: argparse.Namespace) -> Config:
    """Return the configuration that the command line asks for."""
    from splatdistill.config import resolve

    names = ("prompt", "negative_prompt", "method", "steps", "seed")
    flags: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.image is not None:
        flags["image"] = {"path": args.image}
    if args.prior is not None:
        flags["prior"] = {"name": args.prior}
    config = resolve(flags, args.config, args.overrides)
    if not config.prompt.strip() and not config.image.path:
        raise UserError("there is no prompt; say what to make, such as --prompt 'a red mushroom'")
    if any("\ud800" <= letter <= "\udfff" for letter in config.prompt + config.negative_prompt):
        raise UserError("the prompt holds bytes that are not text; expected UTF-8")
    return config


def check_words(config: Config, allow_unknown: bool) -> None:
    """Raise UserError for a word that the embedded teacher never saw; other teachers read open text."""
    from splatdistill.config import is_embedded

    if not is_embedded(config.prior.name):
        return
    from splatdistill.priors.embedded import grammar

    for text in filter(None, (config.prompt, config.negative_prompt, config.edit.source_prompt)):
        for warning in grammar.check_prompt(text, allow_unknown):
            note(warning)


def pick_device(name: str | None) -> torch.device:
    """Return the device asked for, else CUDA where there is one; raises UserError when it is not there."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"there is no device '{name}' here; `python -m splatdistill.doctor` says what there is"
        )
    return device


if __name__ == "__main__":
    sys.exit(main())
