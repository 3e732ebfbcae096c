"""No verb opens a socket unless it was asked to show something."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tiny import SMALL, make_clip

from splatdistill import __main__ as entry
from splatdistill import sample2d

EVENTS = ("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname")
_told: list[list[str]] = []


def listen(event: str, details: tuple) -> None:
    if event in EVENTS and _told:
        _told[-1].append(f"{event}{details[1:]}")


sys.addaudithook(listen)  # it stays: audit hooks cannot be taken away


@contextmanager
def sockets() -> Iterator[list[str]]:
    """Collect what is done with sockets in the block."""
    _told.append([])
    try:
        yield _told[-1]
    finally:
        _told.pop()


def test_no_verb_opens_a_socket(teacher, workplace, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sample2d, "DDIM_STEPS", 4)
    small = ["--prior", teacher, "--steps", "2", *SMALL, "method=sds"]
    (workplace / "list.txt").write_text("a red mushroom\n", "utf-8")
    (workplace / "scorer").mkdir()
    clip = str(make_clip(workplace / "scorer"))
    words = {
        "train": ["--prompt", "a red mushroom", "--out", "run", *small],
        "batch": ["list.txt", "--out", "many", "--jobs", "1", *small],
        "refine": ["--splat", "run", "--out", "refined", *small],
        "edit": ["--splat", "run", "--target-prompt", "a dog", "--out", "edited", *small[:-1]],
        "export": ["run", "scene.spz"],
        "report": ["run"],
        "evaluate": ["run", "--no-teacher", "--clip", clip, "--out", "figures"],
        "sample2d": [
            "--prompt",
            "a dog",
            "--prior",
            teacher,
            "--steps",
            "2",
            "--count",
            "1",
            "--out",
            "flat",
        ],
        "reproduce": ["--list"],
        "doctor": [],
    }
    assert set(words) == set(entry.VERBS) - {"view"}
    for verb, given in words.items():
        with sockets() as told:
            assert entry.main([verb, *given]) == 0, verb
        assert told == [], verb


def test_importing_the_libraries_of_teachers_opens_no_socket():
    code = (
        "import sys\n"
        f"events, seen = {EVENTS!r}, []\n"
        "sys.addaudithook(lambda event, details: seen.append(event) if event in events else None)\n"
        "import splatdistill.priors, requests\n"  # which diffusers and the hub's client import
        "print('urllib3.util.connection' in sys.modules, seen)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "True []\n"


def test_a_socket_would_be_seen():
    with sockets() as told, socket.socket() as one:
        one.bind(("127.0.0.1", 0))
    assert len(told) == 2
