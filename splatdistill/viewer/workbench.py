"""What the page does to the scene: the tools, the desk, the runs and the pages' sockets, connected."""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import viser
from viser._messages import RunJavascriptMessage

from splatdistill.errors import UserError
from splatdistill.training.monitor import Snapshot
from splatdistill.viewer.controls import Controls
from splatdistill.viewer.desk import Desk
from splatdistill.viewer.drawing import pose_of
from splatdistill.viewer.jobs import Jobs, Order
from splatdistill.viewer.messages import Message, Open, Pick, Split
from splatdistill.viewer.pages import Pages
from splatdistill.viewer.picking import covered
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Server
from splatdistill.viewer.tools import BOX, BRUSH, LONGEST_TEXT, LOOK, Mouse, Tools

SCRIPT = files("splatdistill").joinpath("assets", "viewer", "page.js")
KINDS = {LOOK: "look", BOX: "box", BRUSH: "stroke"}  # names of the mouse's tools in the page
MOUSE = (("Look around", "V", LOOK), ("Pick by box", "B", BOX), ("Pick by brush", "P", BRUSH))


def send_script(client: viser.ClientHandle, ticket: str | None) -> None:
    """Run our script in a page; without a ticket it can ask for nothing."""
    script = SCRIPT.read_text("utf-8") + f"\nstartSplatdistill({json.dumps(ticket)});"
    client._websock_connection.queue_message(RunJavascriptMessage(source=script))


class Workbench:
    """The tools of a page that shows a file, until `close`."""

    def __init__(
        self,
        server: Server,
        scenes: Scenes,
        controls: Controls,
        tabs: viser.GuiTabGroupHandle,
        title: str,
        settings: Sequence[str] = (),
    ) -> None:
        self._server, self._scenes, self._controls = server, scenes, controls
        self.desk = Desk(scenes, title)
        self.tools = Tools(server.gui, tabs, scenes.comments.get("prompt", ""))
        self.jobs = Jobs(self._take, self.complain, scenes.session.wake, settings)
        self.pages = Pages(self._hear)
        self.newest = True  # whether pages show the newest scene, the one that can be changed
        self.split = 0.5  # share of the picture's width that shows the scene before
        self._told: tuple[int, dict[str, Any]] = (0, {})  # how many pages have been told what
        server.attach(self.pages)
        self._connect()

    def close(self) -> None:
        """End the run in progress, and let no page in."""
        self.jobs.close()
        self.pages.close()

    def _connect(self) -> None:
        tools, on = self.tools, self._controls.on
        for handle in (tools.mouse, tools.brush, tools.verb, tools.compare):
            on(handle, lambda _: self._scenes.session.wake())
        on(tools.clear, lambda _: self._change(self.desk.clear))
        on(tools.invert, lambda _: self._change(self.desk.invert))
        on(tools.delete, lambda _: self._change(self.desk.delete))
        on(tools.crop, lambda _: self._change(lambda: self.desk.delete(others=True)))
        on(tools.undo, lambda _: self._change(self.desk.undo))
        on(tools.run, lambda _: self._change(self._run))
        on(tools.stop, lambda _: self.jobs.stop())
        for label, key, mouse in MOUSE:
            self._controls.command(label, key, lambda _, mouse=mouse: self._take_up(mouse))
        self._controls.command("Delete what is picked", "X", lambda _: self._change(self.desk.delete))
        self._controls.command("Undo", "Z", lambda _: self._change(self.desk.undo), "cmd/ctrl")

    def welcome(self, client: viser.ClientHandle) -> None:
        """Give a page that has just come its script, with a ticket."""
        send_script(client, self.pages.ticket(client.client_id))

    def complain(self, text: str) -> None:
        """Show a line in all pages."""
        for client in self._server.get_clients().values():
            client.add_notification("That did not work", text, color="red", auto_close_seconds=12.0)

    def show(self, whole: int) -> None:
        """Update the tools, and tell the pages what the mouse does; whole: Gaussians of the scene."""
        desk, tools = self.desk, self.tools
        chosen = 0 if desk.chosen is None else int(desk.chosen.sum())
        tools.show(chosen, whole, desk.undoes, busy=self.jobs.busy, status=self.jobs.status)
        told: dict[str, Any] = {"kind": "mouse", "tool": KINDS[tools.mouse.value]}
        told |= {"radius": float(tools.brush.value), "split": self.split if self.compares else None}
        if self._told != (self.pages.count, told):
            self._told = (self.pages.count, told)
            self.pages.tell(told)

    @property
    def compares(self) -> bool:
        """Whether pages show the scene before as well."""
        return bool(self.tools.compare.value) and self.before is not None

    @property
    def before(self) -> Snapshot | None:
        """The scene on the left of the line: while a run is in progress that which it starts from."""
        return self.desk.scene if self.jobs.busy else self.desk.before

    def shown(self) -> Snapshot | None:
        """Return the scene to show: that of a run in progress, or the desk's with what is chosen."""
        return (self.jobs.snapshot if self.jobs.busy else None) or self.desk.marked()

    # ---- what pages ask for ----

    def _take_up(self, mouse: Mouse) -> None:
        self.tools.mouse.value = mouse
        self._scenes.session.wake()

    def _change(self, change: Callable[[], object], file: Path | None = None) -> None:
        """Change the scene in the thread of slow work, unless a run is in progress.

        file: is removed afterwards, in any case.
        """

        def work() -> None:
            try:
                if self.jobs.busy:
                    raise UserError("a run is in progress; stop it first")
                if not self.newest:
                    raise UserError(
                        "an earlier scene is shown; move Checkpoint to its end to change the newest"
                    )
                change()
            except UserError as error:
                self.complain(str(error))
            finally:
                forget()

        def forget() -> None:
            if file is not None:
                file.unlink(missing_ok=True)

        if not self._controls.later("change", work, once=False):
            forget()
            self.complain("there is too much to do; wait a moment")

    def _hear(self, client: int, message: Message, path: Path | None) -> None:
        """Do what a page says; in viser's event loop."""
        acts = {Pick: self._pick, Split: self._divide, Open: self._open}
        acts[type(message)](client, message, path)

    def _pick(self, client: int, message: Pick, path: None) -> None:
        handle = self._server.get_clients().get(client)
        if handle is None:
            return
        pose, seen_only = pose_of(handle.camera), bool(self.tools.seen_only.value)

        def choose() -> None:
            if (scene := self.desk.scene) is not None:
                rows = covered(scene.gaussians, pose, message.shape, seen_only)
                self.desk.choose(rows, message.how)

        self._change(choose)

    def _divide(self, client: int, message: Split, path: None) -> None:
        self.split = message.share
        self._scenes.session.wake()

    def _open(self, client: int, message: Open, path: Path) -> None:
        def read() -> None:
            try:
                self.desk.open(path, message.name, lambda line: None)
                self.tools.now.value = self._scenes.comments.get("prompt", "")
            except UserError as error:  # in the file's own name
                raise UserError(str(error).replace(str(path), message.name)) from None

        self._change(read, path)

    def _run(self) -> None:
        tools, scene = self.tools, self.desk.scene
        now, wanted = str(tools.now.value), str(tools.wanted.value)
        if max(len(now), len(wanted)) > LONGEST_TEXT:
            raise UserError(f"expected a text of at most {LONGEST_TEXT} letters")
        if scene is None:
            raise UserError("there is no scene yet")
        order = Order(tools.verb.value, now, wanted, float(tools.strength.value))
        rows = self.desk.chosen if tools.masked.value else None
        if tools.masked.value and rows is None:
            raise UserError("nothing is picked: pick a part, or clear 'Picked only'")
        self.jobs.start(order, scene.gaussians, rows)

    def _take(self, gaussians: Any, change: str, comments: dict[str, str]) -> None:
        """Put what a run has made in the place of the scene; in the run's thread, while nothing else may."""
        self.desk.replace(gaussians, change, comments)
