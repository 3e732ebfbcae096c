"""What a control does when it is used, and where: at once in viser's event loop, or later in a thread."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import viser

from splatdistill.console import note

MOST_WAITING = 32  # pieces of slow work in line
Act = Callable[[viser.ClientHandle], object]


class Controls:
    """The way from a control of the panel, or a key, to what it does; errors never end a run."""

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self._told: set[str] = set()
        self._pending: list[str] = []
        self._closed = threading.Event()
        self._slow = ThreadPoolExecutor(1, "viewer")

    def close(self) -> None:
        """Drop the work in line, and end the thread after what it does."""
        self._closed.set()
        self._slow.shutdown(cancel_futures=True)

    @property
    def closed(self) -> threading.Event:
        """Set from `close` on."""
        return self._closed

    def on(self, handle: Any, act: Act) -> None:
        """Call `act` with the client that used a control; nothing in it may block."""

        async def used(event: Any) -> None:
            if event.client is not None:
                self.guard(lambda: act(event.client))

        attach = handle.on_click if isinstance(handle, viser.GuiButtonHandle) else handle.on_update
        attach(used)

    def command(self, label: str, key: Any, act: Act, modifier: Any = None) -> None:
        """Call `act` with the client whose key was pressed, or who chose it from the list (Ctrl-K)."""

        async def used(event: Any) -> None:
            if event.client is not None:
                self.guard(lambda: act(event.client))

        self._server.gui.add_command(label, hotkey=key, modifier=modifier).on_trigger(used)

    def later(self, name: str, job: Callable[[], object], *, once: bool = True) -> bool:
        """Run slow work in its own thread, one after the other; return whether it is in line now.

        once: not if work of the same name is in line already.
        """
        full = len(self._pending) >= MOST_WAITING or (once and name in self._pending)
        if full or self._closed.is_set():
            return False
        self._pending.append(name)

        def run() -> None:
            try:
                self.guard(job)
            finally:
                self._pending.remove(name)

        self._slow.submit(run)
        return True

    def guard(self, job: Callable[[], object]) -> None:
        """Run something that must not end the run; each error is reported once."""
        try:
            job()
        except Exception as error:  # no error here may end the run
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            if line not in self._told and len(self._told) < 10 and not self._closed.is_set():
                self._told.add(line)
                note(f"viewer: {line}; the run goes on")
