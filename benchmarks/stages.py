"""Where the time of the default job goes: `python benchmarks/stages.py [--prompt TEXT]`.

One run, start and report included, with the clock read at the borders of its parts; time in a part that
another one calls counts for the inner one alone. Writes benchmarks/results/stages.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

START = time.perf_counter()


class Clock:
    """Seconds of each part, without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside: list[float] = []

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def call(*given: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            self.inside.append(0.0)
            try:
                return function(*given, **named)
            finally:
                whole, inner = time.perf_counter() - begin, self.inside.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + whole - inner
                if self.inside:
                    self.inside[-1] += whole

        return call


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", default="a hamburger")
    prompt = parser.parse_args().prompt
    import torch

    from splatdistill.config.load import resolve
    from splatdistill.media import run_report
    from splatdistill.priors.views import ViewPrior
    from splatdistill.training import loop, run

    clock, imported = Clock(), time.perf_counter() - START
    parts = (
        (run, "teacher_of", "loading the teacher"),
        (ViewPrior, "with_cameras", "pictures of the album"),
        (ViewPrior, "encode", "encoding views and pictures"),
        (ViewPrior, "predict", "network"),
        (loop, "render", "rendering"),
        (torch.Tensor, "backward", "backward: renderer and encoder"),
        (run_report, "write_report", "report: views, turntable, page"),
    )
    patches = [
        patch.object(owner, name, clock.wrapped(say, getattr(owner, name))) for owner, name, say in parts
    ]
    with tempfile.TemporaryDirectory() as folder:
        for each in patches:
            each.start()
        run.make_run(resolve({"prompt": prompt, "prior": {"name": "real"}}, None, []), Path(folder) / "run")
        for each in patches:
            each.stop()
    whole = time.perf_counter() - START
    told = {"imports": imported, **clock.seconds}
    told["everything else"] = whole - sum(told.values())
    for name, seconds in sorted(told.items(), key=lambda item: -item[1]):
        print(f"{name:32s} {seconds:6.1f} s  {seconds / whole:6.1%}")
    from common import write_result

    seconds = {name: round(value, 2) for name, value in told.items()}
    threads = torch.get_num_threads()
    write_result(
        "stages", {"prompt": prompt, "threads": threads, "whole_s": round(whole, 1), "seconds": seconds}
    )


if __name__ == "__main__":
    main()
