"""A headless Chromium for tests, driven over its DevTools protocol."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import connect
from websockets.sync.connection import Connection

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no name of the network is looked up
    "--remote-debugging-port=0",
]
PATIENCE = 120.0  # seconds until a browser that does not answer fails the test


class Page:
    """One tab; it keeps what it requested and what its console said."""

    def __init__(self, socket: Connection, downloads: Path) -> None:
        self._socket, self._count = socket, 0
        self.downloads, self.requests, self.errors = downloads, [], []
        self.finished: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(timeout=PATIENCE))
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, values: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"][:100])
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"])[:300])
        if event == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(values["entry"]["text"])
        if event == "Browser.downloadProgress" and values["state"] == "completed":
            self.finished.append(values["guid"])

    def open(self, url: str) -> None:
        """Go to an address and wait until it has loaded."""
        reply = self.call("Page.navigate", url=url)
        assert not reply.get("errorText"), reply
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def forget(self) -> None:
        """Leave for an empty page, and drop what earlier ones requested and said."""
        self.open("about:blank")
        for told in (self.requests, self.errors, self.finished):
            told.clear()

    def size(self, width: int, height: int) -> None:
        """Set the size of the window in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, condition: str, frames: int = 600) -> Any:
        """Wait in the page, from one drawn frame to the next, for a condition; return its value."""
        wait = f"""new Promise((resolve, reject) => {{
            let left = {frames};
            const ask = () => {{
                const value = (() => {condition})();
                if (value) resolve(value);
                else if (left-- > 0) requestAnimationFrame(ask);
                else reject(new Error("gave up waiting"));
            }};
            ask();
        }})"""
        return self.evaluate(wait)

    def click(self, label: str) -> None:
        """Press the button, or the tab, with this text, as soon as nothing covers its middle."""
        place = self.until(
            f"""(() => {{
                const has = e => e.textContent.trim() === {json.dumps(label)} && e.offsetParent !== null;
                const found = [...document.querySelectorAll("button, [role=tab]")].find(has);
                if (!found || found.disabled) return false;
                found.scrollIntoView({{block: "nearest"}});
                const box = found.getBoundingClientRect();
                const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
                if (!found.contains(top)) return false;
                if (found.role === "tab") return [box.x + box.width / 2, box.y + box.height / 2];
                found.click();  // at once: what moves between two messages would be missed
                return true;
            }})()"""
        )
        if isinstance(place, list):  # a tab can be dragged, so it hears the mouse alone
            for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
                where = {"x": place[0], "y": place[1], "button": "left", "buttons": 1, "clickCount": 1}
                self.call("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, key: str, code: str) -> None:
        """Press and release a key, by its name and its place on the keyboard."""
        for kind in ("keyDown", "keyUp"):
            number = ord(key.upper())
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    def drag(self, start: tuple[int, int], end: tuple[int, int], modifiers: int = 0) -> None:
        """Drag with the left button; modifiers: 1 alt, 8 shift."""
        for kind, (x, y) in (
            ("mouseMoved", start),
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
                modifiers=modifiers,
            )

    def drop(self, file: Path) -> None:
        """Drop a file on the middle of the window."""
        size = self.evaluate("[innerWidth / 2, innerHeight / 2]")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=size[0], y=size[1], data=data)

    def screenshot(self, path: Path | None = None) -> np.ndarray:
        """Return the pixels [H, W, 3] of the window, also written to a .png."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def download(self) -> bytes:
        """Wait for the next download to end; return what it is."""
        while not self.finished:
            self._receive()
        self.finished.pop(0)
        (file,) = self.downloads.iterdir()
        content = file.read_bytes()
        file.unlink()
        return content


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 720) -> Iterator[Page]:
    """Return a page of a new browser, whose files are in `folder`."""
    assert PROGRAM is not None
    downloads = folder / "downloads"
    downloads.mkdir()
    command = [PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        [*command, "about:blank"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "DevTools listening on" in line)
        port = line.split("//")[1].split("/")[0]
        with connect(f"ws://{port}{page_path(port)}", max_size=None, open_timeout=PATIENCE) as socket:
            page = Page(socket, downloads)
            page.size(width, height)
            yield page
            page.call("Browser.close")
    finally:
        process.kill()
        process.communicate()


def page_path(address: str) -> str:
    """Return the path of the first page's socket."""
    from urllib.request import urlopen

    with urlopen(f"http://{address}/json", timeout=PATIENCE) as reply:
        pages = [page for page in json.load(reply) if page["type"] == "page"]
    return "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]
