"""The sockets of our own script in the viewer's pages: who may open one, what comes in, and files.

A page that viser has let in is given a ticket, with which its script opens one socket. What comes in is JSON
(`messages.understand`), or the bytes of a file that was announced, which are written to a folder of ours
under a name of ours.
"""

import asyncio
import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from websockets.exceptions import ConnectionClosed

from splatdistill.errors import UserError
from splatdistill.viewer.messages import Message, Open, understand

PLACE = "/page/"  # of the sockets, before the ticket
PAUSE = 1 / 100  # seconds after each message, to limit a page's work
PATIENCE = 30.0  # seconds without bytes of a file after which it is given up
ROOM = 2  # times the size of a file that has to be free on the disk


@dataclass
class Upload:
    """A file that comes in."""

    told: Open
    path: Path
    file: BinaryIO
    left: int


class Pages:
    """The pages' sockets.

    Args:
        hear: called with the client's number and its message, in viser's event loop: it may not block. For a
            file, with the path as well, once it is whole; the callee removes it.
    """

    def __init__(self, hear: Callable[[int, Message, Path | None], None]) -> None:
        self._hear = hear
        self._tickets: dict[str, int] = {}
        self._sockets: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self._busy = False  # with a file
        self._folder = Path(tempfile.mkdtemp(prefix="splatdistill-"))

    def close(self) -> None:
        """Let nobody in any more, and remove what came in."""
        self._tickets.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ticket(self, client: int) -> str:
        """Return the ticket of a client that has just come."""
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = client
        return ticket

    def forget(self, client: int) -> None:
        """Take a client's ticket back: it has left."""
        for ticket in [key for key, value in self._tickets.items() if value == client]:
            del self._tickets[ticket]

    def admits(self, path: str) -> bool:
        """Return whether a path holds a ticket that is good, and not in use."""
        ticket = path.removeprefix(PLACE)
        return path.startswith(PLACE) and ticket in self._tickets and ticket not in self._sockets

    @property
    def count(self) -> int:
        """How many sockets have been opened so far."""
        return self._count

    def tell(self, message: dict[str, Any], client: int | None = None) -> None:
        """Send a message to a client's page, or to all; from any thread."""
        if self._loop is None:
            return
        text = json.dumps(message)
        for ticket, socket in list(self._sockets.items()):
            if client in (None, self._tickets.get(ticket)):
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                    asyncio.run_coroutine_threadsafe(_send(socket, text), self._loop)

    async def talk(self, socket: Any) -> None:
        """Listen to a page until it leaves."""
        ticket = socket.request.path.removeprefix(PLACE)
        client = self._tickets.get(ticket)
        if client is None or ticket in self._sockets:
            return
        self._loop, self._sockets[ticket] = asyncio.get_running_loop(), socket
        self._count += 1
        try:
            while ticket in self._tickets:
                raw = await socket.recv()
                await asyncio.sleep(PAUSE)
                if not isinstance(raw, str):
                    return  # bytes that nobody announced
                try:
                    message = understand(raw)
                    if isinstance(message, Open):
                        await self._receive(socket, client, message)
                    else:
                        self._hear(client, message, None)
                except UserError as error:
                    await _send(socket, json.dumps({"kind": "refused", "why": str(error)}))
        except (ConnectionClosed, TimeoutError, OSError):
            return
        finally:
            del self._sockets[ticket]

    async def _receive(self, socket: Any, client: int, message: Open) -> None:
        """Write the bytes of a file, and hand it over when it is whole."""
        with self._place_for(message) as upload:
            await _send(socket, json.dumps({"kind": "ready"}))
            while upload.left:
                raw = await asyncio.wait_for(socket.recv(), PATIENCE)
                if not isinstance(raw, bytes) or len(raw) > upload.left:
                    raise UserError("the file is not as long as it was said to be")
                upload.file.write(raw)
                upload.left -= len(raw)
        self._hear(client, message, upload.path)

    @contextlib.contextmanager
    def _place_for(self, message: Open) -> Iterator[Upload]:
        """Yield a new file for what comes in; remove it if that does not end well."""
        if self._busy:
            raise UserError("another file is just coming in; wait for it")
        if shutil.disk_usage(self._folder).free < ROOM * message.size:
            raise UserError("there is no room on the disk for it")
        path = self._folder / f"{secrets.token_hex(8)}{message.ending}"
        self._busy = True
        try:
            with path.open("xb") as file:
                yield Upload(message, path, file, message.size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            self._busy = False


async def _send(socket: Any, text: str) -> None:
    with contextlib.suppress(ConnectionClosed):
        await socket.send(text)
