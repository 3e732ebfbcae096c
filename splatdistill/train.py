"""`python -m splatdistill.train --prompt TEXT`: text to a 3D Gaussian splat. Parses, builds, runs; no maths.

Everything heavy is imported after the arguments were read, so help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill import __version__
from splatdistill.cli import Parser, exit_status, interruptible, note
from splatdistill.errors import UserError
from splatdistill.files import writable_folder

if TYPE_CHECKING:
    import torch

    from splatdistill.config import Config
    from splatdistill.pictures import Reference
    from splatdistill.priors.base import Prior
    from splatdistill.session import Session
    from splatdistill.trainer import TrainState
    from splatdistill.viewer import Address

RESULT = "splat.ply"  # written last: a folder that holds it is a finished run
OUTPUTS = (RESULT, "preview.png", "turntable.webp", "filmstrip.png", "report.html")
OUTPUTS += ("metrics.jsonl", "config.yaml", "checkpoints")
REFERENCE = "reference.png"  # beside them, where the run started from a picture
FILM = "turntable.mp4"  # and where there is an ffmpeg
# the options that say what a run is
CHOICES = ("prompt", "image", "negative_prompt", "method", "prior", "steps", "seed", "out", "config")


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
    add("--out", type=Path, metavar="DIR", help="default outputs/<prompt>-<seed>")
    add(
        "--config", metavar="YAML", help="settings on top of the presets; a run's config.yaml repeats the run"
    )
    add("--device", help="cpu, cuda or cuda:N; default cuda where there is one")
    add("--resume", type=Path, metavar="DIR", help="continue a run that was stopped, exactly")
    add(
        "--viewer",
        nargs="?",
        const="",
        metavar="[HOST:]PORT",
        help="show the run in the browser; default 127.0.0.1:8080 or the next free port",
    )
    add("--viewer-remote", action="store_true", help="let HOST be one that other machines reach")
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
    command = resume if args.resume else start
    return exit_status(lambda: command(args), "interrupted; a run that had begun continues with --resume DIR")


def start(args: argparse.Namespace) -> int:
    """Run from the first step in a new folder; return the exit status."""
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("the prompt is empty; say what to make, such as --prompt 'a red mushroom'")
    config = configure(args)
    check_words(config, args.allow_unknown)
    address = viewer_address(args)
    out = args.out or Path("outputs") / f"{slug(config.prompt or Path(config.image.path).stem)}-{config.seed}"
    check_folder(out, args.overwrite)
    device = pick_device(args.device)
    if device.type == "cuda" and args.prior is None and config.prior.name == "embedded":
        note("the embedded teacher draws 64x64 pictures; --prior sd21 uses Stable Diffusion on this GPU")
    return run(config, out, device, None, address)


def resume(args: argparse.Namespace) -> int:
    """Continue the run in a folder under its own configuration; return the exit status."""
    from splatdistill import checkpoint
    from splatdistill.config import load

    given = [f"--{name.replace('_', '-')}" for name in CHOICES if getattr(args, name) is not None]
    given += args.overrides + ["--overwrite"] * args.overwrite
    if given:
        raise UserError(f"--resume continues a run as it was configured; drop {' '.join(given)}")
    if not (args.resume / "config.yaml").is_file():
        raise UserError(f"--resume {args.resume}: there is no run (no config.yaml); give the folder of a run")
    config = load(args.resume / "config.yaml")
    check_folder(args.resume, overwrite=True)
    begun = any((args.resume / "checkpoints").glob("*.pt"))  # else it was killed before its first checkpoint
    saved = checkpoint.latest(args.resume / "checkpoints") if begun else None
    return run(config, args.resume, pick_device(args.device), saved, viewer_address(args))


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

    for text in filter(None, (config.prompt, config.negative_prompt)):
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


def run(
    config: Config,
    out: Path,
    device: torch.device,
    saved: dict[str, Any] | None,
    address: Address | None = None,
) -> int:
    """Load the teacher, run or continue the loop, write the results; return the exit status."""
    import torch

    from splatdistill import trainer
    from splatdistill.config import dump
    from splatdistill.files import atomic_write
    from splatdistill.priors import load_prior
    from splatdistill.priors.image import ImagePrior

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
    held = None if reference is None else reference.resized(config.views.size).to(device)
    if saved is None:
        for name in (*OUTPUTS, REFERENCE, FILM):  # an older run goes only now that the new one can begin
            remove(out / name)
        (out / "checkpoints").mkdir()
        with atomic_write(out / "config.yaml") as file:
            file.write(dump(config).encode())
        if reference is not None:
            reference.save(out / REFERENCE)
    state = trainer.unpack(saved, config, device) if saved else trainer.new_state(config, device)
    if state.step:
        note(f"continuing after step {state.step} of {config.steps}")
    return optimise(config, prior, state, out, held, address)


def optimise(
    config: Config,
    prior: Prior,
    state: TrainState,
    out: Path,
    held: Reference | None,
    address: Address | None,
) -> int:
    """Run the loop before the terminal and, at an address, a viewer; write the results; return the status."""
    from splatdistill import trainer
    from splatdistill.progress import progress_for
    from splatdistill.session import Session

    session = Session(lambda: state.gaussians, prior.decode, config.steps, state.step)
    with interruptible() as interrupted, viewer_at(address, session, config, out):
        begin = time.perf_counter()
        try:
            with progress_for(config, state.step) as show:

                def on_step(step: int, metrics: trainer.Metrics) -> None:
                    show(step, metrics)
                    session.on_step(step, metrics)

                def should_stop() -> bool:
                    return session.should_stop(interrupted)

                finished = trainer.train(
                    config, prior, state, out, on_step, should_stop, held, session.on_views
                )
        except trainer.Diverged as error:
            print(f"error: {error}; try other settings or another --seed", file=sys.stderr)
            return 1
        if not finished:
            note(f"stopped after step {state.step} of {config.steps}; continue with --resume {out}")
            return 130
        count = trainer.export(state, config, out)
        seconds = time.perf_counter() - begin
        note(f"{out / RESULT}: {count} Gaussians in {seconds:.0f} s; {out / 'report.html'} shows them")
        if address is not None:
            show_result(session, out, interrupted)
    return 0


@contextmanager
def viewer_at(address: Address | None, session: Session, config: Config, out: Path) -> Iterator[None]:
    """Show a run at an address, while the block lasts; without one do nothing."""
    if address is None:
        yield
        return
    from splatdistill.viewer import Scenes, serve

    comments = {"prompt": config.prompt, "method": config.method, "seed": str(config.seed)}
    scenes = Scenes(session, comments, out / RESULT, out)
    name = config.prompt or Path(config.image.path).name
    with ExitStack() as stack:
        try:
            stack.enter_context(serve(scenes, address, name, config.method, live=True))
        except Exception as error:  # whatever it is, the run matters more
            note(f"no viewer: {error}; the run goes on without")
        yield


def show_result(session: Session, out: Path, interrupted: Callable[[], bool]) -> None:
    """Leave the viewer open while a page looks at it."""
    from splatdistill.formats.ply import read_ply

    session.finish(read_ply(out / RESULT)[0])
    if session.watched:
        note("the viewer stays until its page is closed, or Ctrl-C")
        session.wait_until_left(interrupted)
    note(f"python -m splatdistill.view {out} shows it again")


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
