"""Lines for the terminal, whose reader may have left."""

import os
import sys
from contextlib import suppress


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
