"""One run, from its configuration to the files that it leaves; what `train` and `edit` have in common.

Everything heavy is imported where it is needed, so help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.cli import interruptible, note
from splatdistill.errors import UserError
from splatdistill.files import writable_folder
from splatdistill.folder import CHECKPOINTS, CONFIG, OUTPUTS, REFERENCE, REPORT, RESULT, SOURCE

if TYPE_CHECKING:
    import torch
    from torch.nn import ParameterDict

    from splatdistill.config.schema import Config
    from splatdistill.priors.base import Prior
    from splatdistill.priors.latent import LatentPrior
    from splatdistill.scene.pictures import Reference
    from splatdistill.training.loop import TrainState
    from splatdistill.training.monitor import Session
    from splatdistill.viewer import Address


def begin(config: Config, out: Path, args: argparse.Namespace) -> int:
    """Run a configuration from its first step; return the exit status."""
    from splatdistill.guidance import METHODS

    if METHODS[config.method].edits and not config.edit.splat:
        raise UserError(
            f"method '{config.method}' edits a splat: use python -m splatdistill.edit --splat FILE"
        )
    check_words(config, args.allow_unknown)
    address = viewer_address(args)
    check_folder(out, args.overwrite)
    device = pick_device(args.device)
    if device.type == "cuda" and args.prior is None and config.prior.name == "embedded":
        note("the embedded teacher draws 64x64 pictures; --prior sd21 uses Stable Diffusion on this GPU")
    return run(config, out, device, None, address)


def proceed(out: Path, config: Config, args: argparse.Namespace) -> int:
    """Continue an unfinished run, or do a finished one's last things again; return the exit status."""
    from splatdistill.training import checkpoint

    check_folder(out, overwrite=True)
    begun = any((out / CHECKPOINTS).glob("*.pt"))  # else it was killed before its first checkpoint
    saved = checkpoint.latest(out / CHECKPOINTS) if begun else None
    return run(config, out, pick_device(args.device), saved, viewer_address(args))


def viewer_address(args: argparse.Namespace) -> Address | None:
    """Return where the run is to be shown, or None; raises UserError for what is no address."""
    if args.viewer is None:
        return None
    from splatdistill.viewer import free_port, parse_address

    address = parse_address(args.viewer, args.viewer_remote)
    free_port(address.host, address.port)  # a host that is not ours is told before anything is done
    return address


def check_words(config: Config, allow_unknown: bool) -> None:
    """Raise UserError for what is no text, and for a word that the embedded teacher never saw."""
    from splatdistill.config.presets import is_embedded

    texts = list(filter(None, (config.prompt, config.negative_prompt, config.edit.source_prompt)))
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise UserError("the prompt holds bytes that are not text; expected UTF-8")
    if not is_embedded(config.prior.name):
        return
    from splatdistill.priors import words as grammar

    for text in texts:
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


def run(
    config: Config,
    out: Path,
    device: torch.device,
    saved: dict[str, Any] | None,
    address: Address | None = None,
) -> int:
    """Load the teacher, run or continue the loop, write the results; return the exit status."""
    from splatdistill.config.load import dump
    from splatdistill.files import atomic_write
    from splatdistill.formats.ply import write_ply
    from splatdistill.priors.zero123 import Zero123Prior
    from splatdistill.training import loop as trainer

    prior = teacher_of(config, device)
    reference = read_reference(config, out / REFERENCE if saved else Path(config.image.path))
    if config.views.count % prior.group:
        raise UserError(
            f"this teacher sees {prior.group} views at a time; views.count is {config.views.count}, "
            "not a multiple"
        )
    if isinstance(prior, Zero123Prior):
        if reference is not None:
            prior.look_at(reference)
    elif not config.prompt.strip():
        raise UserError("this teacher reads a text: give --prompt too, or an image-conditioned --prior")
    origin = read_source(
        config, out / SOURCE if saved else Path(config.edit.splat), device, placed=bool(saved)
    )
    held = None if reference is None else reference.resized(config.views.size).to(device)
    if saved is None:
        # an older run goes only now that the new one can begin
        for name in OUTPUTS:
            remove(out / name)
        (out / CHECKPOINTS).mkdir()
        with atomic_write(out / CONFIG) as file:
            file.write(dump(config).encode())
        if reference is not None:
            reference.save(out / REFERENCE)
        if origin is not None:
            write_ply(out / SOURCE, origin)
    state = trainer.unpack(saved, config, device) if saved else trainer.new_state(config, device, origin)
    if state.step:
        note(f"continuing after step {state.step} of {config.steps}")
    return optimise(config, prior, state, out, (held, origin), address)


def teacher_of(config: Config, device: torch.device) -> LatentPrior:
    """Load the teacher that a configuration names, in the precision that it asks for."""
    import torch

    from splatdistill.priors import load_prior

    dtype = None if config.prior.dtype == "auto" else getattr(torch, config.prior.dtype)
    return load_prior(config.prior.name, device, dtype)


def optimise(
    config: Config,
    prior: Prior,
    state: TrainState,
    out: Path,
    given: tuple[Reference | None, ParameterDict | None],
    address: Address | None,
) -> int:
    """Run the loop before the terminal and, at an address, a viewer; write the results; return the status.

    given: the picture that the run starts from, and the splat that it edits.
    """
    from splatdistill.training import loop as trainer
    from splatdistill.training.monitor import Session
    from splatdistill.training.progress import progress_for

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
                    config, prior, state, out, on_step, should_stop, *given, session.on_views
                )
        except trainer.Diverged as error:
            print(f"error: {error}; try other settings or another --seed", file=sys.stderr)
            return 1
        if not finished:
            note(f"stopped after step {state.step} of {config.steps}; continue with --resume {out}")
            return 130
        count = trainer.export(state, config, out, given[1])
        seconds = time.perf_counter() - begin
        note(f"{out / RESULT}: {count} Gaussians in {seconds:.0f} s; {out / REPORT} shows them")
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
    from splatdistill.scene.cameras import orbit
    from splatdistill.scene.pictures import Reference, read_picture

    rgb, alpha = read_picture(path)
    side, image = rgb.shape[-1], config.image
    camera = orbit(0.0, image.elevation_deg, image.distance, image.fov_deg, side, side)
    return Reference(rgb, alpha, camera)


def read_source(config: Config, path: Path, device: torch.device, placed: bool) -> ParameterDict | None:
    """Return the splat that is edited, in its place in the unit sphere; None for a run that makes one.

    placed: whether the file has it there already.
    """
    if not config.edit.splat:
        return None
    from splatdistill import formats
    from splatdistill.scene.gaussians import moved

    gaussians, _ = formats.read_splat(path, note=lambda text: None)  # said before the run
    if not placed:
        gaussians = moved(gaussians, config.edit.shift, config.edit.scale)
    return gaussians.to(device)


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


def check_folder(out: Path, overwrite: bool) -> None:
    """Make the folder; raise UserError when it cannot be written or holds a run that would be lost."""
    if not overwrite and (out / RESULT).exists():
        raise UserError(f"{out} holds a finished run; give --overwrite, another --seed or another --out")
    if not overwrite and (out / CONFIG).exists():
        raise UserError(
            f"{out} holds an unfinished run; continue it with --resume {out}, or give --overwrite"
        )
    writable_folder(out)
    writable_folder(out / CHECKPOINTS)
