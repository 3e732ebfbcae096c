"""`python -m splatdistill VERB ...`, and `splatdistill VERB ...` where it is installed: the verbs by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from splatdistill import __version__

VERBS = {
    "train": "a text or a picture becomes a splat",
    "batch": "a run for each prompt of a list, on one machine or on many",
    "refine": "make a splat better without making another",
    "edit": "change what a splat shows, or a part of it",
    "view": "look at a splat, or at a finished run, in the browser",
    "export": "a splat in another format, or as a mesh",
    "report": "make the pictures and the page of a finished run anew",
    "evaluate": "finished runs as numbers",
    "sample2d": "a method on flat pictures instead of a splat",
    "reproduce": "what the papers claim, measured on the shipped teacher",
    "doctor": "what this machine has, and what to do about the rest",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that the first word names; return its exit status, or 2 where there is none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words[0] if words else ""
    if verb in VERBS:
        return import_module(f"splatdistill.{verb}").main(words[1:])
    if verb == "--version":
        print(f"splatdistill {__version__}")
        return 0
    if verb in ("", "-h", "--help", "help"):
        print(overview(), file=sys.stdout if verb else sys.stderr)
        return 0 if verb else 2
    close = get_close_matches(verb, VERBS, n=1)
    meant = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(VERBS)}"
    print(f"error: there is no verb '{verb}'; {meant}", file=sys.stderr)
    return 2


def overview() -> str:
    """Return the list of verbs, one line each."""
    lines = [f"  {name:10s} {does}" for name, does in VERBS.items()]
    return "\n".join(
        [
            "usage: splatdistill VERB ...   (or python -m splatdistill VERB ...)\n",
            *lines,
            "\nVERB --help lists its options. To begin: splatdistill train --prompt 'a red mushroom'",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
