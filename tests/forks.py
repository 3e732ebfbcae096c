"""Code in fresh processes that hold torch and none of ours, forked from one that has loaded it once."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOADED = """
import json, os, sys, traceback
import torch
for line in sys.stdin:
    code, arguments, environment, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number, name in enumerate(("in", "out", "err")):
                os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | (os.O_WRONLY if number else 0)), number)
            os.environ.update(environment)
            sys.argv[1:] = arguments
            exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """A process that has imported torch; it ends with the block.

    As after a start of Python with `import torch`, the package is not imported yet.
    """

    def __enter__(self) -> "Forks":
        command = [sys.executable, "-c", LOADED]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a fork, with arguments and environment variables; return how it ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "in").touch()
            self._process.stdin.write(json.dumps([code, arguments, environment, folder]) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([code, *arguments], status, out, err)
