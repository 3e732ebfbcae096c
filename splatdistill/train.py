"""`python -m splatdistill.train --prompt TEXT`: text to a 3D Gaussian splat. Parses, builds, runs; no maths.

Everything heavy is imported after the arguments were read, so help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, exit_status, note, numbers
from splatdistill.errors import UserError
from splatdistill.files import writable_folder

if TYPE_CHECKING:
    import torch
    from torch.nn import ParameterDict

    from splatdistill.config import Config
    from splatdistill.pictures import Reference

RESULT = "splat.ply"  # written last: a folder that holds it is a finished run
OUTPUTS = (RESULT, "preview.png", "turntable.webp", "metrics.jsonl", "config.yaml", "checkpoints")
REFERENCE, SOURCE = "reference.png", "source.ply"  # beside them, where the run started from such
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
    add("--method", help="sdi (default), sds or sdi_published")
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
            result = 0 if (out / RESULT).exists() else proceed(out, config, args.device)
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
    check_folder(out, args.overwrite)
    device = pick_device(args.device)
    if device.type == "cuda" and args.prior is None and config.prior.name == "embedded":
        note("the embedded teacher draws 64x64 pictures; --prior sd21 uses Stable Diffusion on this GPU")
    return run(config, out, device, saved=None)


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
    return proceed(args.resume, config, args.device)


def proceed(out: Path, config: Config, device: str | None) -> int:
    """Continue an unfinished run, or do a finished one's last things again; return the exit status."""
    from splatdistill import checkpoint

    check_folder(out, overwrite=True)
    begun = any((out / "checkpoints").glob("*.pt"))  # else it was killed before its first checkpoint
    saved = checkpoint.latest(out / "checkpoints") if begun else None
    return run(config, out, pick_device(device), saved)


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


def check_folder(out: Path, overwrite: bool) -> None:
    """Make the folder; raise UserError when it cannot be written or holds a run that would be lost."""
    if not overwrite and (out / RESULT).exists():
        raise UserError(f"{out} holds a finished run; give --overwrite, another --seed or another --out")
    if not overwrite and (out / "config.yaml").exists():
        raise UserError(
            f"{out} holds an unfinished run; continue it with --resume {out}, or give --overwrite"
        )
    writable_folder(out)
    writable_folder(out / "checkpoints")


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


def run(config: Config, out: Path, device: torch.device, saved: dict[str, Any] | None) -> int:
    """Load the teacher, run or continue the loop, write the results; return the exit status."""
    import torch

    from splatdistill import trainer
    from splatdistill.config import dump
    from splatdistill.files import atomic_write
    from splatdistill.formats.ply import write_ply
    from splatdistill.priors import load_prior
    from splatdistill.priors.image import ImagePrior
    from splatdistill.progress import progress_for

    dtype = None if config.prior.dtype == "auto" else getattr(torch, config.prior.dtype)
    prior = load_prior(config.prior.name, device, dtype)
    reference = read_reference(config, out / REFERENCE if saved else Path(config.image.path))
    if config.views.count % prior.group:
        raise UserError(
            f"this teacher sees {prior.group} views at a time; views.count is {config.views.count}, "
            "not a multiple"
        )
    if isinstance(prior, ImagePrior):
        if reference is not None:
            prior.look_at(reference)
    elif not config.prompt.strip():
        raise UserError("this teacher reads a text: give --prompt too, or an image-conditioned --prior")
    origin = read_source(config, out / SOURCE if saved else Path(config.edit.splat), device)
    held = None if reference is None else reference.resized(config.views.size).to(device)
    if saved is None:
        for name in (*OUTPUTS, REFERENCE, SOURCE):  # an older run goes only now that the new one can begin
            remove(out / name)
        (out / "checkpoints").mkdir()
        with atomic_write(out / "config.yaml") as file:
            file.write(dump(config).encode())
        if reference is not None:
            reference.save(out / REFERENCE)
        if origin is not None:
            write_ply(out / SOURCE, origin)
    state = trainer.unpack(saved, config, device) if saved else trainer.new_state(config, device, origin)
    if state.step:
        note(f"continuing after step {state.step} of {config.steps}")
    begin = time.perf_counter()
    try:
        with interruptible() as should_stop, progress_for(config, state.step) as on_step:
            finished = trainer.train(config, prior, state, out, on_step, should_stop, held, origin)
    except trainer.Diverged as error:
        print(f"error: {error}; try other settings or another --seed", file=sys.stderr)
        return 1
    if not finished:
        note(f"stopped after step {state.step} of {config.steps}; continue with --resume {out}")
        return 130
    count = trainer.export(state, config, out)
    seconds = time.perf_counter() - begin
    note(f"{out / RESULT}: {count} Gaussians in {seconds:.0f} s; {out / 'turntable.webp'} shows them")
    return 0


def read_reference(config: Config, path: Path) -> Reference | None:
    """Return the picture that the run starts from, with its camera; None for a run from a text alone."""
    if not config.image.path:
        return None
    from splatdistill.cameras import orbit
    from splatdistill.pictures import Reference, read_picture

    rgb, alpha = read_picture(path)
    side, image = rgb.shape[-1], config.image
    camera = orbit(0.0, image.elevation_deg, image.distance, image.fov_deg, side, side)
    return Reference(rgb, alpha, camera)


def read_source(config: Config, path: Path, device: torch.device) -> ParameterDict | None:
    """Return the splat that is edited; None for a run that makes one."""
    if not config.edit.splat:
        return None
    from splatdistill import formats
    from splatdistill.gaussians import finite_mask, moved, select

    gaussians, _ = formats.read(path)
    gaussians = select(gaussians, finite_mask(gaussians))
    return moved(gaussians, config.edit.shift, config.edit.scale).to(device)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts at once."""
    came: list[int] = []

    def remember(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def name_of(config: Config) -> str:
    """Return what the folder of a run is called, but for the seed."""
    return slug(config.prompt or Path(config.image.path).stem)


def slug(prompt: str) -> str:
    """Return a folder name made of the prompt's letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "splat"


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
