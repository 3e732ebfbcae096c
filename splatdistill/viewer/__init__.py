"""The live viewer: a page in the browser that shows a run or a finished splat."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from splatdistill.console import note
from splatdistill.training.monitor import Session
from splatdistill.viewer.app import App
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Address, free_port, parse_address, start_server

__all__ = ["Address", "Scenes", "Session", "free_port", "parse_address", "serve"]


@contextmanager
def serve(
    scenes: Scenes, address: Address, prompt: str, method: str, live: bool, settings: Sequence[str] = ()
) -> Iterator[Address]:
    """Serve scenes at an address, or the next free port, until the block ends; yield the URL.

    live: whether a training is in progress, which can be paused and stopped; else the page can change the
    scene, unless other machines reach it. settings: of the runs that it starts then, `key=value` each. Raises
    UserError when no port is free.
    """
    server, address = start_server(address)
    try:
        app = App(server, scenes, prompt, method, live, None if live or address.remote else settings)
        try:
            note(f"viewer: {address.url}")
            if address.remote:
                note("warning: whoever reaches this port sees the run and can stop it; there is no password")
            else:
                port = address.port
                note(f"from another machine: ssh -L {port}:{address.host}:{port} this-machine")
            yield address
        finally:
            app.close()
    finally:
        server.stop()
