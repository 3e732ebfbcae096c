"""A viser server that serves only its own page, and accepts only messages that its controls can send.

viser binds every interface, checks neither Host nor Origin, and lets any page open a public tunnel to it,
upload without bound and set attributes of its objects.
"""

import asyncio
import contextlib
import io
import ipaddress
import logging
import math
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
import viser
import websockets.asyncio.server
from websockets import Headers
from websockets.http11 import Request, Response

from splatdistill.console import note
from splatdistill.errors import UserError
from splatdistill.viewer.pages import PLACE, Pages

PORT, PORTS = 8080, 100  # first port, and number of ports to try
LARGEST_MESSAGE = 2**16  # bytes of a client's message
PAUSE = 1 / 500  # seconds after each message of a client, to limit its work
LARGEST_CANVAS = 2**14  # pixels a side
SLACK = 1e-6  # tolerance of a slider's bounds, for its rounding
NO_FRAMES = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}  # of other pages
_starting = threading.Lock()


@dataclass(frozen=True)
class Address:
    """The address of a viewer; remote: whether other machines can reach it."""

    host: str = "127.0.0.1"
    port: int = PORT
    remote: bool = False

    @property
    def url(self) -> str:
        """What to type into a browser."""
        anywhere = ipaddress.ip_address(self.host).is_unspecified
        host = socket.gethostname() if anywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def parse_address(text: str, remote: bool = False) -> Address:
    """Parse `[HOST:]PORT` or an empty text.

    Raises UserError for anything else, and for a host that other machines reach unless `remote` allows it.
    """
    host, _, port = text.rpartition(":")
    host = {"": "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host).strip("[]")
    try:
        number = int(port) if text else PORT
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        number, loopback = -1, False
    if not 0 <= number < 2**16:
        raise UserError(f"viewer address '{text}': expected [HOST:]PORT, such as 8080 or 127.0.0.1:8080")
    if not loopback and not remote:
        raise UserError(
            f"'{host}' is open to other machines, which could read and stop the run; give --viewer-remote if "
            "that is meant, or use an ssh tunnel"
        )
    return Address(host, number, not loopback)


def free_port(host: str, first: int) -> int:
    """Return the first free port from `first` on (0: any); raises UserError when there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port, reason = first, ""
    for port in range(first, min(first + PORTS, 2**16)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = error.strerror
                continue
            return probe.getsockname()[1]
    raise UserError(f"no viewer at {host}: {reason} (ports {first} to {port}); give another [HOST:]PORT")


def refusal(headers: Headers, remote: bool) -> str | None:
    """Return the reason to refuse a request, or None.

    A page elsewhere may send requests here from a browser on this machine: its Origin reveals it, or, when
    its own name was made to point here (DNS rebinding), the browser's Host header.
    """
    hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
    if len(hosts) != 1 or len(origins) > 1:
        return "expected one Host and at most one Origin"
    try:
        name = urlsplit(f"//{hosts[0]}").hostname or ""
    except ValueError:
        return "malformed Host"
    if not _is_own_name(name, remote):
        own = f"this machine's own name, {socket.gethostname()}, or its" if remote else "127.0.0.1 or another"
        return f"foreign Host; in the address of the page, give {own} IP address in the place of the name"
    if origins and origins[0].lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
        return "foreign Origin"
    return None


def _is_own_name(name: str, remote: bool) -> bool:
    if name == "localhost" or (remote and name == socket.gethostname().lower()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback or remote
    except ValueError:
        return False


def understood(raw: object, control: Callable[[str], Any] = lambda uuid: None) -> bool:
    """Return whether a client's message is a valid camera, a command, or a valid value of a control.

    control: finds a control by its identifier; None if there is none.
    """
    try:
        message = msgspec.msgpack.decode(raw) if isinstance(raw, bytes) else None
        if not isinstance(message, dict):
            return False
        if message.get("type") == "CommandTriggerMessage":
            return set(message) == {"type", "uuid"} and isinstance(message["uuid"], str)
        if message.get("type") == "GuiUpdateMessage":
            handle, updates = control(message["uuid"]), message["updates"]
            return handle is not None and set(updates) == {"value"} and allowed(handle, updates["value"])
        if message.get("type") != "ViewerCameraMessage":
            return False
        vectors = [message[name] for name in ("wxyz", "position", "look_at", "up_direction")]
        sides = [message[name] for name in ("image_height", "image_width")]
        numbers = [number for vector in vectors for number in vector]
        numbers += [*sides, message["fov"], message["near"], message["far"]]
        return (
            [len(vector) for vector in vectors] == [4, 3, 3, 3]
            and all(math.isfinite(number) for number in numbers)
            and all(isinstance(side, int) and 0 < side <= LARGEST_CANVAS for side in sides)
        )
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def allowed(handle: Any, value: Any) -> bool:
    """Return whether a value is valid for a control: an option, of its type, finite and within bounds."""
    current = handle.value
    if (options := getattr(handle, "options", None)) is not None:
        return isinstance(value, str) and value in options
    if isinstance(current, bool | str):
        return type(value) is type(current)
    many = isinstance(current, tuple)
    if many != isinstance(value, list | tuple) or (many and len(value) != len(current)):
        return False
    bytes_only = isinstance(handle, viser.GuiRgbHandle)
    low, high = (0, 255) if bytes_only else (getattr(handle, "min", None), getattr(handle, "max", None))
    for place, number in enumerate(value if many else [value]):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return False
        least, most = (bound[place] if isinstance(bound, tuple) else bound for bound in (low, high))
        if (least is not None and number < least - SLACK) or (most is not None and number > most + SLACK):
            return False
    return True


class _Once(logging.Handler):
    """A log filter that passes the first error of a kind, so that a client cannot flood the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        kind = type(error).__name__ if error else record.getMessage()
        if kind not in self._told and len(self._told) < 10:
            self._told.add(kind)
            note(f"viewer: {kind} in a connection; the run goes on")


class Server(viser.ViserServer):
    """A quiet viser server that refuses all requests before `open`."""

    guard: "Guard"  # set by start_server

    def __init__(self, host: str, port: int, ready: threading.Event) -> None:
        super().__init__(host, port, verbose=False)
        self._ready = ready
        wake_from_any_thread(self._websock_server.get_message_buffer().message_event, self.get_event_loop())

        async def connected(client: viser.ClientHandle) -> None:
            event = client._websock_connection.get_message_buffer().message_event
            wake_from_any_thread(event, self.get_event_loop())

        self.on_client_connect(connected)

    def control(self, uuid: str) -> Any:
        """Return the control with this identifier, or None."""
        return self.gui._gui_input_handle_from_uuid.get(uuid)

    def attach(self, pages: Pages) -> None:
        """Let the script of our pages open sockets of its own, before `open`."""
        self.guard.pages = pages

    def open(self) -> None:
        """Accept requests from now on: the panels exist."""
        self._ready.set()

    def stop(self) -> None:
        """Stop without a message."""
        with contextlib.redirect_stdout(io.StringIO()):
            super().stop()


def wake_from_any_thread(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Make setting an event thread-safe, as viser sets it from outside its loop."""
    wake = event.set

    def set_in_loop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits
            loop.call_soon_threadsafe(wake)

    event.set = set_in_loop


def start_server(address: Address) -> tuple[Server, Address]:
    """Start a guarded server at the first free port from the given one on; return its address.

    It is not opened yet. Raises UserError when no port is free.
    """
    port = free_port(address.host, address.port)
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # a page may leave at any moment
    logger = logging.Logger("splatdistill.viewer", logging.ERROR)  # its own, outside the hierarchy
    logger.addHandler(_Once())
    quiet, ready = contextlib.redirect_stdout(io.StringIO()), threading.Event()
    with _starting, _guarded(address.remote, logger, ready) as guard, quiet:
        server = Server(address.host, port, ready)
    if not guard.hooked.is_set():
        server.stop()
        raise UserError(f"viser {viser.__version__} cannot be guarded from other pages; install viser 1.1")

    guard.control, server.guard = server.control, guard

    def failed(_: object, context: dict[str, Any]) -> None:
        logger.error(context["message"], exc_info=context.get("exception"))

    loop = server.get_event_loop()
    loop.call_soon_threadsafe(loop.set_exception_handler, failed)
    return server, Address(address.host, server.get_port(), address.remote)


@dataclass
class Guard:
    """The checks between a server and its clients: whether it is open, and how it finds controls.

    pages: who else may open a socket; None for nobody.
    """

    hooked: threading.Event = field(default_factory=threading.Event)
    control: Callable[[str], Any] = lambda uuid: None
    pages: Pages | None = None

    def admits(self, path: str) -> bool:
        """Return whether a socket at this path is one of our pages' own."""
        return self.pages is not None and self.pages.admits(path)


@contextlib.contextmanager
def _guarded(remote: bool, logger: logging.Logger, ready: threading.Event) -> Iterator[Guard]:
    """Make a server that starts inside the block check `refusal` and `understood` first.

    viser builds its websocket server in a function of its own thread and keeps no handle to it: what it calls
    there is the one place to hook in.
    """
    guard = Guard()
    original = websockets.asyncio.server.serve
    own_protocol = f"viser-v{viser.__version__}"

    def serve(handler: Any, host: str, port: int, *, process_request: Any, **options: Any) -> Any:
        def checked(connection: Any, request: Request) -> Response | None:
            reason = refusal(request.headers, remote)
            if reason is None and request.headers.get_all("Upgrade") and not guard.admits(request.path):
                spoken = request.headers.get_all("Sec-WebSocket-Protocol")
                reason = None if own_protocol in spoken else "another version's page; reload it"
            if reason is None and not ready.is_set():
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "starting\n")
            if reason is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, f"refused: {reason}\n")
            return process_request(connection, request)

        async def filtered(connection: Any) -> None:
            if guard.pages is not None and connection.request.path.startswith(PLACE):
                return await guard.pages.talk(connection)
            receive = connection.recv

            async def next_understood(*arguments: Any, **keywords: Any) -> bytes:
                while True:
                    raw = await receive(*arguments, **keywords)
                    await asyncio.sleep(PAUSE)
                    if understood(raw, guard.control):
                        return raw

            connection.recv = next_understood
            await handler(connection)

        def unframed(connection: Any, request: Request, response: Response) -> None:
            for name, value in NO_FRAMES.items():
                response.headers[name] = value

        guard.hooked.set()
        options |= {"max_size": LARGEST_MESSAGE, "logger": logger, "process_response": unframed}
        return original(filtered, host, port, process_request=checked, **options)

    websockets.asyncio.server.serve = serve  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield guard
    finally:
        websockets.asyncio.server.serve = original  # pyright: ignore[reportAttributeAccessIssue]
