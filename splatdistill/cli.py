"""Shared parts of the commands: parsing, one-line errors, notes beside the progress, exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from splatdistill import __version__
from splatdistill.console import exit_status, note
from splatdistill.errors import UserError
from splatdistill.folder import REPORT, RESULT
from splatdistill.guidance.registry import check_method
from splatdistill.priors.loading import SHIPPED, check_name
from splatdistill.training.progress import NullWatcher, Watcher, interruptible, progress_for

if TYPE_CHECKING:
    from splatdistill.config.schema import Config
    from splatdistill.guidance.core import Distillation
    from splatdistill.scene.rendering import Render
    from splatdistill.training.loggers import MakeLogger
    from splatdistill.training.monitor import Session
    from splatdistill.training.progress import Metrics, RunResult
    from splatdistill.training.run import Job
    from splatdistill.viewer import Address

__all__ = ["interruptible"]  # view's too
MOST_VIEWS = 64  # views of an intermediate image


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with one line instead of the whole usage."""
        self.exit(2, f"error: {message}; --help lists the options\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - overloads
        """Parse the words, or those of the command line."""
        return super().parse_args(join_values(sys.argv[1:] if args is None else list(args)), namespace)

    def parse_intermixed_args(  # pyright: ignore[reportIncompatibleMethodOverride] - overloads
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Parse; positional words are settings, and others most likely a prompt without its flag."""
        given = join_values(sys.argv[1:] if args is None else list(args))
        parsed = super().parse_intermixed_args(given, namespace)
        if words := " ".join(word for word in parsed.overrides if "=" not in word):
            flag = "--target-prompt" if hasattr(parsed, "target_prompt") else "--prompt"
            self.error(f"'{words}' is no setting such as guidance.scale=10; for a prompt: {flag} \"{words}\"")
        try:  # here, before anything heavy is imported
            if parsed.prior is not None:
                check_name(parsed.prior)
            if getattr(parsed, "method", None) is not None:
                check_method(parsed.method)
        except UserError as error:
            self.exit(2, f"error: {error}\n")
        return parsed


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options of distillation: teacher, length, seed, device, and arbitrary settings."""
    add = parser.add_argument
    add("--prior", help="real (default), sd21, sd15, or a folder in diffusers layout")
    added = "a LoRA of the teacher, .safetensors as of diffusers or kohya; may be given several times"
    add("--lora", action="append", metavar="FILE[:SCALE]", help=added)
    add("--steps", type=positive, help="optimization steps; default by preset")
    add("--seed", type=int, help="default 0")
    add("--device", help="cpu, cuda or cuda:N; default cuda where there is one")
    unknown = "only warn of words that a shipped teacher does not know"
    add("--allow-unknown", action="store_true", help=unknown)
    add("--version", action="version", version=f"splatdistill {__version__}")
    setting = "any setting by its name in config.yaml: guidance.scale=10"
    add("overrides", nargs="*", metavar="key=value", help=setting)


def chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the given options of these names, and the teacher with its LoRA files, as settings."""
    flags = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    teacher = {} if args.prior is None else {"name": args.prior}
    teacher |= {} if args.lora is None else {"lora": args.lora, "lora_sha256": []}
    return flags | {"prior": teacher} if teacher else flags


def add_run(parser: argparse.ArgumentParser, place: str) -> None:
    """Add the options that every run has, with the settings last; `place` is its default folder."""
    add = parser.add_argument
    add("--out", type=folder, metavar="DIR", help=f"default outputs/{place}")
    settings = "settings on top of the presets; a run's config.yaml repeats the run"
    add("--config", type=existing, metavar="YAML", help=settings)
    add_viewer(parser)
    add_logging(parser)
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    add_settings(parser)


def add_start(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options of a run that starts from a splat, and changes all of it or a part."""
    add = parser.add_argument
    kinds = "a splat file, a point cloud, a mesh, or the folder of a finished run"
    add("--splat", required=required, metavar="FILE|RUN", help=kinds)
    add_axes(parser)
    shapes = "box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,radius, above (on top of it), a .npy of indices, or words"
    add("--mask", metavar="MASK", help=f"change only what is in it: {shapes}")
    add("--preview-mask", type=Path, metavar="FILE", help="write a picture of what --mask covers, and stop")


def add_axes(parser: argparse.ArgumentParser, file: str = "FILE") -> None:
    """Add the options that say which way the axes of a file go; `file` is its name in the help."""
    either = parser.add_mutually_exclusive_group()
    up = f"the axis that is up in {file}; default by its format"
    either.add_argument("--from-up", choices=("y", "z", "-y"), help=up)
    programs = "triposplat, trellis, sam3d, sharp, inria, supersplat"
    upright = f"sets {file} upright, its front toward +X: {programs}"
    either.add_argument("--from", dest="program", metavar="PROGRAM", help=upright)


def start_of(args: argparse.Namespace, prompt: str | None, *, prompted: bool) -> dict[str, Any]:
    """Return the settings `edit.*` of the options of `add_start`; see `inputs.edit_settings`."""
    from splatdistill.training.inputs import edit_settings

    axes = {"program": args.program, "up": args.from_up}
    return edit_settings(Path(args.splat), prompt, note, **axes, mask=args.mask, prompted=prompted)


def parse_change(
    verb: str,
    name: str,
    options: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str] | None,
) -> argparse.Namespace:
    """Parse the command line of a verb that changes a splat.

    Args:
        verb: its name.
        name: what the default folder of a run begins with.
        options: adds those that only this verb has.
        arguments: the words; None for those of the process.
    """
    described = f"{verb.capitalize()} a splat."
    parser = Parser(prog=f"python -m splatdistill.{verb}", description=described, allow_abbrev=False)
    add_start(parser, required=True)
    options(parser)
    add_run(parser, f"{name}-{verb}-<seed>")
    return parser.parse_intermixed_args(arguments)


def run_change(start: Callable[[], int]) -> int:
    """Return the exit status of a verb that changes a splat."""
    again = "python -m splatdistill.train --resume DIR"
    return exit_status(start, f"interrupted; a run that had begun continues with `{again}`")


def change(config: Config, args: argparse.Namespace, kind: str) -> int:
    """Make the run that changes a splat, or show its mask; return the exit status."""
    from splatdistill.training.inputs import name_of

    if args.preview_mask is not None:
        return preview_mask(config, args)
    return status_of(
        make(config, args.out or Path("outputs") / f"{name_of(config)}-{kind}-{config.seed}", args)
    )


def preview_mask(config: Config, args: argparse.Namespace) -> int:
    """Write the picture that --preview-mask asks for; return the exit status."""
    from splatdistill.training.inputs import mask_picture

    if not config.edit.mask:
        raise UserError("--preview-mask shows what --mask covers; give --mask too")
    count, whole = mask_picture(config, args.preview_mask, args.device)
    note(f"{args.preview_mask}: --mask covers {count} of {whole} Gaussians, in red; run without to change it")
    return 0


def add_viewer(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that can be viewed."""
    parser.add_argument(
        "--viewer",
        nargs="?",
        const="",
        metavar="[HOST:]PORT",
        help="show the run in the browser; default 127.0.0.1:8080 or the next free port",
    )
    remote = "let HOST be one that other machines reach"
    parser.add_argument("--viewer-remote", action="store_true", help=remote)


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add the options of logging a run and keeping intermediate images."""
    add = parser.add_argument
    add("--log", choices=("tensorboard", "wandb"), help="send the metrics there; each is an extra package")
    pictures = "keep N views at every tenth of the run in OUT/validation"
    add("--validate", type=int, default=0, metavar="N", help=pictures)


def folder(text: str) -> Path:
    """Return the folder of an option; an empty name, which would mean this folder, is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def positive(text: str) -> int:
    """Return the whole number of an option, 1 or more."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)


def existing(text: str) -> str:
    """Return the path of an option; one that leads nowhere is refused."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return text


def join_values(words: list[str]) -> list[str]:
    """Write `--up -y` as `--up=-y`: by itself, -y looks like an option."""
    joined = []
    for word in words:
        if word == "-y" and joined and joined[-1] in ("--up", "--from-up"):
            joined[-1] += "=-y"
        else:
            joined.append(word)
    return joined


def numbers(text: str, option: str) -> list[int]:
    """Return the integers in text such as "0,1" or "0-7"; raises UserError for other text."""
    try:
        result: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            result += range(int(first), int(last or first) + 1)
    except ValueError:
        result = []
    if not result:
        raise UserError(f"{option} {text}: expected numbers such as 0,1 or 0-7")
    return result


def make(config: Config, out: Path, args: argparse.Namespace, *, resume: bool = False) -> RunResult:
    """Make or continue a run, shown in the terminal and, if wanted, in the viewer; return its result.

    args: the options of `add_settings`, `add_viewer` and `add_logging`, and --overwrite.
    """
    from splatdistill.training.loggers import find_logger
    from splatdistill.training.parallel import joined
    from splatdistill.training.run import make_run

    if not 0 <= args.validate <= MOST_VIEWS:
        raise UserError(f"--validate {args.validate}: expected a number of views from 1 to {MOST_VIEWS}")
    address = viewer_address(args)
    logger = find_logger(args.log) if args.log else None
    with joined(note) as ranks:
        return make_run(
            config,
            out,
            device=args.device,
            overwrite=args.overwrite,
            resume=resume,
            allow_unknown=args.allow_unknown,
            watch=lambda job: watched(job, address, args.validate, logger, hint=args.prior is None),
            ranks=ranks,
        )


def status_of(result: RunResult) -> int:
    """Return the exit status of a run's result."""
    return 0 if result.finished else 130


def viewer_address(args: argparse.Namespace) -> Address | None:
    """Return the viewer's address, or None; raises UserError for an invalid one."""
    if args.viewer is None:
        return None
    from splatdistill.viewer import free_port, parse_address

    address = parse_address(args.viewer, args.viewer_remote)
    free_port(address.host, address.port)  # fail before the run if the host is not local
    return address


@contextmanager
def watched(
    job: Job, address: Address | None, views: int, logger: MakeLogger | None, *, hint: bool
) -> Iterator[Watcher]:
    """Show a run in the terminal and, at an address, in the browser; log it; let signals stop it.

    views: of each picture on the way, 0 for none. hint: whether to say that a GPU is enough for a larger
    teacher than the shipped one.
    """
    for warning in job.warnings:
        note(warning)
    if hint and job.device.type == "cuda" and job.config.prior.name in SHIPPED:
        note("the shipped teachers draw small pictures; --prior sd21 uses Stable Diffusion on this GPU")
    if job.state.step:
        note(f"continuing after step {job.state.step} of {job.config.steps}")
    from splatdistill.training.loggers import Logged

    with ExitStack() as stack:
        interrupted = stack.enter_context(interruptible())
        session = None if address is None else stack.enter_context(viewed(job, address))
        progress = stack.enter_context(progress_for(job.config.steps, job.state.step))
        logged = Logged(lambda: job.state.gaussians, job.config, job.out, views, logger, note)
        yield Audience(progress, logged, session, interrupted)


class Audience(NullWatcher):
    """The observers of a run: terminal, log, optional viewer, and the signals that stop it."""

    def __init__(
        self, progress: Watcher, logged: Watcher, session: Session | None, interrupted: Callable[[], bool]
    ) -> None:
        self._progress, self._logged = progress, logged
        self._session, self._interrupted = session, interrupted

    def on_views(self, view: Render, distillation: Distillation) -> None:
        """Pass the views to the viewer."""
        if self._session is not None:
            self._session.on_views(view, distillation)

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Pass a step's metrics to all observers."""
        self._progress.on_step(step, metrics)
        self._logged.on_step(step, metrics)
        if self._session is not None:
            self._session.on_step(step, metrics)

    def should_stop(self) -> bool:
        """Return whether a signal arrived or the viewer asks to stop; may block while the run is paused."""
        if self._session is not None:
            return self._session.should_stop(self._interrupted)
        return self._interrupted()

    def on_result(self, result: RunResult) -> None:
        """Print the result, and keep the viewer open while a page is connected."""
        self._progress.on_result(result)
        self._logged.on_result(result)
        out = result.out
        if not result.finished:
            note(f"stopped after step {result.step} of {result.steps}; continue with --resume {out}")
            return
        note(
            f"{out / RESULT}: {result.gaussians} Gaussians in {result.seconds:.0f} s; "
            f"{out / REPORT} shows them"
        )
        note(f"its +Z is up; for a viewer that lays it down: splatdistill export {out} turned.ply --up -y")
        if self._session is None:
            return
        from splatdistill.formats.ply import read_ply

        self._session.finish(read_ply(out / RESULT)[0])
        if self._session.watched:
            note("the viewer stays until its page is closed, or Ctrl-C")
            self._session.wait_until_left(self._interrupted)
        note(f"python -m splatdistill.view {out} shows it again")


@contextmanager
def viewed(job: Job, address: Address) -> Iterator[Session]:
    """Serve a run at an address while the block lasts."""
    from splatdistill.training.monitor import Session
    from splatdistill.viewer import Scenes, serve

    config, out = job.config, job.out
    session = Session(lambda: job.state.gaussians, job.prior.decode, config.steps, job.state.step, tell=note)
    comments = {"prompt": config.prompt, "method": config.method.name, "seed": str(config.seed)}
    scenes = Scenes(session, comments, out / RESULT, out)
    name = config.prompt or Path(config.image.path).name
    with ExitStack() as stack:
        try:
            stack.enter_context(serve(scenes, address, name, config.method.name, live=True))
        except Exception as error:  # no error here may end the run
            note(f"no viewer: {error}; the run goes on without")
        yield session
