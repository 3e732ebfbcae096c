"""Verbs whose files meet faults: killed at the n-th operation on files, or with a disk that is full from it.

A verb runs in a process of its own, forked from one that has imported everything and holds the teacher, so
that a case costs no start. Its calls to the system go through file_faults.c, which `preload` compiles.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("file_faults.c")
LIBRARY = "SPLATDISTILL_FILE_FAULTS"
KILL, TEAR, FULL = range(1, 4)  # as in file_faults.c
NEVER = 1 << 40
MEMORY_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None
KILLED = -9
MOST_TEXT = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a verb ended."""

    status: int  # as of `os.waitstatus_to_exitcode`
    text: str  # standard output and error
    operations: int  # that counted; 0 where it was killed


def preload() -> None:
    """Start this program again with file_faults.c before the C library, unless it was."""
    if LIBRARY not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | preloaded())
    shutil.rmtree(Path(os.environ[LIBRARY]).parent, ignore_errors=True)  # it is mapped already


def preloaded() -> dict[str, str]:
    """Compile file_faults.c; return the environment of a program that has it before the C library."""
    library = Path(tempfile.mkdtemp()) / "file_faults.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE], check=True)
    return {"LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1"}


def run_verb(words: Sequence[str], folder: Path, how: int = KILL, moment: int = NEVER) -> Ended:
    """Run `splatdistill WORDS` in a process of its own, whose operations below a folder count, from 0.

    Args:
        words: the command line.
        folder: where files meet faults.
        how: which fault, KILL, TEAR or FULL.
        moment: at which operation; a full disk stays full after it.
    """
    import torch  # here: `preload` comes before it

    faults = ctypes.CDLL(None)
    text, told = os.memfd_create("text"), os.memfd_create("told")
    process = os.fork()
    if process == 0:
        status = 70
        try:
            for stream in (1, 2):
                os.dup2(text, stream)
            torch.set_num_threads(1)  # the threads of the parent are not here
            faults.faults_arm(os.fsencode(folder.resolve()), how, ctypes.c_long(moment))
            status = finished(words)
            os.write(told, str(faults.faults_seen()).encode())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    written, seen = os.pread(text, MOST_TEXT, 0), os.pread(told, 64, 0)
    os.close(text)
    os.close(told)
    return Ended(status, written.decode(errors="replace"), int(seen or b"0"))


def finished(words: Sequence[str]) -> int:
    """Run a verb to its end; return the exit status that its process would have."""
    from splatdistill.__main__ import main

    try:
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
