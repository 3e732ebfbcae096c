"""Lines for the terminal, whose reader may have left, and the exit status of a command."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from splatdistill.errors import NO_ROOM, Diverged, UserError


def note(text: str) -> None:
    """Print one line for the user beside the progress; a closed stream is ignored."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a result; a closed pipe (`| head -1`) is ignored."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_status(command: Callable[[], int], interrupted: str) -> int:
    """Run a command and return its exit status.

    1 and one line when a run diverged; 2 and one line after a user error or when the system refuses; 130 and
    the note `interrupted` on an interrupt.
    """
    try:
        return command()
    except UserError as error:
        note(f"error: {error}")
        return 2
    except Diverged as error:
        note("; ".join([f"error: {error}", *getattr(error, "__notes__", [])]))
        return 1
    except OSError as error:  # such as a full disk or missing permissions
        where = f"{error.filename}: " if error.filename else ""
        advice = "; make room on the disk" if error.errno in NO_ROOM else ""
        note(f"error: {where}{error.strerror or error}{advice}")
        return 2
    except KeyboardInterrupt:
        note(interrupted)
        return 130
