"""Measure what a connected viewer page costs a run.

`python benchmarks/viewer.py [--steps N] [--repeats N]` makes the main job's loop alone, and with a client of
each kind connected, in turns, and compares medians. The client draws nothing, as if on another machine.
Writes benchmarks/results/viewer.json.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import torch
import viser
from common import write_result
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from splatdistill.config.load import resolve
from splatdistill.config.schema import Config
from splatdistill.priors import load_prior
from splatdistill.priors.base import Prior
from splatdistill.training import loop
from splatdistill.training.monitor import Session
from splatdistill.training.state import new_state
from splatdistill.viewer.app import App
from splatdistill.viewer.panels import RASTERIZER
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Address, start_server

KINDS = ("alone", "browser", "rasterizer", "teacher's view", "five browsers")
CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": (0.5, -0.5, -0.5, 0.5),
    "position": (3.0, 0.0, 0.0),
    "fov": 0.8,
    "near": 0.01,
    "far": 100.0,
    "image_height": 720,
    "image_width": 956,
    "look_at": (0.0, 0.0, 0.0),
    "up_direction": (0.0, 0.0, 1.0),
}


def run(kind: str, config: Config, prior: Prior, out: Path) -> float:
    """Seconds of the loop with a client of a kind."""
    (out / "checkpoints").mkdir(parents=True)
    state = new_state(config, torch.device("cpu"))
    session = Session(lambda: state.gaussians, prior.decode, config.steps)
    if kind == "alone":
        begin = time.perf_counter()
        loop.train(config, prior, state, out, session)
        return time.perf_counter() - begin
    server, address = start_server(Address(port=0))
    app = App(server, Scenes(session, {}, None, out), config.prompt, config.method.name, live=True)
    app.panels.mode.value = RASTERIZER if kind == "rasterizer" else app.panels.mode.value
    app.panels.teacher.value = kind == "teacher's view"
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    with contextlib.ExitStack() as pages:
        for _ in range(5 if kind == "five browsers" else 1):
            url = f"ws://127.0.0.1:{address.port}"
            page = pages.enter_context(connect(url, subprotocols=[protocol], max_size=None))
            page.send(msgspec.msgpack.encode(CAMERA))
            threading.Thread(target=drain, args=(page,), daemon=True).start()
        version = -1
        while not session.watched:
            version = session.wait(version, 1.0)
        begin = time.perf_counter()
        loop.train(config, prior, state, out, session)
        seconds = time.perf_counter() - begin
    app.close()
    server.stop()
    return seconds


def drain(page) -> None:
    """Read whatever a client is sent, until it leaves."""
    try:
        for _ in page:
            pass
    except ConnectionClosed:
        pass


def main() -> None:
    """Print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = resolve({"prompt": "a red mushroom", "steps": args.steps})
    prior = load_prior("real")
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        run("alone", config, prior, Path(folder) / "warm")
        for i in range(args.repeats):
            for kind in KINDS:
                seconds[kind].append(run(kind, config, prior, Path(folder) / f"{kind}-{i}"))
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    shares = {kind: median / medians["alone"] - 1.0 for kind, median in medians.items()}
    for kind in KINDS:
        print(f"{kind:15} {medians[kind]:7.2f} s  {100 * shares[kind]:+5.1f} %")
    write_result("viewer", {"steps": args.steps, "seconds": seconds, "overhead": shares})


if __name__ == "__main__":
    main()
