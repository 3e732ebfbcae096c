"""What the commands share: mistakes told in one line, notes beside the progress, exit statuses."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from splatdistill import __version__
from splatdistill.errors import UserError


class Parser(argparse.ArgumentParser):
    """Mistakes end in one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with one line instead of the whole usage."""
        self.exit(2, f"error: {message}; --help lists the options\n")

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; words beside the options are settings, and others most likely a prompt without its flag."""
        parsed = super().parse_intermixed_args(args, namespace)
        if words := " ".join(word for word in parsed.overrides if "=" not in word):
            flag = "--target-prompt" if hasattr(parsed, "target_prompt") else "--prompt"
            self.error(f"'{words}' is no setting such as guidance.scale=10; for a prompt: {flag} \"{words}\"")
        return parsed


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options of what distils: the teacher, the length, the seed, the device, and any setting."""
    add = parser.add_argument
    add(
        "--prior",
        help="embedded (default), embedded-multiview, embedded-image (default for a picture), sd21, sd15, or "
        "a folder in diffusers layout",
    )
    add("--steps", type=int, help="optimisation steps; default by preset")
    add("--seed", type=int, help="default 0")
    add("--device", help="cpu, cuda or cuda:N; default cuda where there is one")
    unknown = "only warn of words that the embedded teacher does not know"
    add("--allow-unknown", action="store_true", help=unknown)
    add("--version", action="version", version=f"splatdistill {__version__}")
    setting = "any setting by its name in config.yaml: guidance.scale=10"
    add("overrides", nargs="*", metavar="key=value", help=setting)


def chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names, and the teacher, that were given, as settings."""
    flags = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return flags if args.prior is None else flags | {"prior": {"name": args.prior}}


def add_viewer(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that can be looked at."""
    parser.add_argument(
        "--viewer",
        nargs="?",
        const="",
        metavar="[HOST:]PORT",
        help="show the run in the browser; default 127.0.0.1:8080 or the next free port",
    )
    remote = "let HOST be one that other machines reach"
    parser.add_argument("--viewer-remote", action="store_true", help=remote)


def exit_status(command: Callable[[], int], interrupted: str) -> int:
    """Run a command; its status, or 2 after a user's mistake, or 130 with this note when interrupted."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        note(interrupted)
        return 130


def note(text: str) -> None:
    """Print one line for the user, beside the progress."""
    print(text, file=sys.stderr, flush=True)


def numbers(text: str, option: str) -> list[int]:
    """The whole numbers that "0,1" or "0-7" stand for; raises UserError for other text."""
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
