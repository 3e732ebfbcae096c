"""The viewer: one thread that updates panels and canvases, another for slow work."""

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import viser
from PIL import Image

from splatdistill.errors import UserError
from splatdistill.scene.gaussians import sh_degree_of
from splatdistill.training.monitor import Snapshot, TeacherView
from splatdistill.viewer.controls import Controls
from splatdistill.viewer.desk import Desk
from splatdistill.viewer.drawing import RenderOptions, draw, pose_of, splats_for_client, triple
from splatdistill.viewer.panels import AS_USUAL, FILM_SECONDS, MESHES, RASTERIZER, Panels
from splatdistill.viewer.path import VIEWS, Home, Keyframe, along, film, home_of, point
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Server
from splatdistill.viewer.tools import HELP
from splatdistill.viewer.workbench import Workbench, send_script

IDLE = 0.5  # seconds between two updates
MOVING = 0.1  # the same, after a move of a camera
FRAME = 1 / 30  # the same, in a preview
STILL = 0.25  # seconds without a move until a view is rendered at full size
DRAFT_ROWS = 240  # pixels, while the camera moves
FILM_ROWS = 720  # at most
LONGEST_REST = 10.0  # seconds
SHARE = 0.9  # of the time for a run that was started in the page; the viewer takes the rest


@dataclass(frozen=True)
class CanvasState:
    """The contents of a client's canvas, compared with what it should show."""

    camera: float  # time stamp
    scene: Snapshot | None
    options: RenderOptions
    rows: int  # 0: left to the browser
    before: Snapshot | None = None  # the scene on the left of the line, if there is one
    split: float = 0.0  # where the line is


class App:
    """Connection of scenes, session, panels and clients until `close`; its errors never end a run.

    settings: of runs that are started in the page, `key=value` each; None: the page cannot change the scene.
    """

    def __init__(
        self,
        server: Server,
        scenes: Scenes,
        prompt: str,
        method: str,
        live: bool,
        settings: Sequence[str] | None = None,
    ) -> None:
        self._server, self._scenes, self._session = server, scenes, scenes.session
        snapshot = self._session.snapshot
        degree = sh_degree_of(snapshot.gaussians) if snapshot else 3
        self.panels = Panels(server, prompt, method, self._session.status.steps if live else 0, degree)
        self._keyframes: list[Keyframe] = []
        self._preview: tuple[viser.ClientHandle, float] | None = None  # client and start time
        self._shown: Snapshot | None = None
        self._chosen: Path | None = None  # a stored scene instead of the newest
        self._splats: viser.GaussianSplatHandle | None = None
        self._sent: Snapshot | None = None  # their scene
        self._drawn: dict[int, CanvasState] = {}
        self._teacher_view: TeacherView | None = None
        self._history_length = 0
        self._controls = Controls(server)
        self._closed = self._controls.closed
        self._guard, self._later = self._controls.guard, self._controls.later
        self._compared: dict[int, tuple[CanvasState, np.ndarray, np.ndarray]] = {}
        self._home: Home = home_of(snapshot)
        self._files = 0  # as in Desk
        self.bench: Workbench | None = None
        if settings is not None:
            self.bench = Workbench(server, scenes, self._controls, self.panels.tabs, prompt, settings)
        self.panels.help({} if self.bench is None else HELP)
        self._frame: float | None = None  # duration of the last rendering in seconds
        start = self._home.view("R")
        server.initial_camera.position, server.initial_camera.look_at = start.position, start.look_at
        server.initial_camera.fov = start.fov_rad
        server.on_client_connect(self._on_connect)
        server.on_client_disconnect(self._on_disconnect)
        self._connect_controls()
        self._thread = threading.Thread(target=self._run, name="viewer", daemon=True)
        self._thread.start()
        server.open()

    def close(self) -> None:
        """End the threads; a film in progress is abandoned."""
        if self.bench is not None:
            self.bench.close()
        self._session.watch(False)
        self._controls.close()
        self._thread.join()

    # ---- actions of clients, in viser's event loop: nothing here may block ----

    async def _on_connect(self, client: viser.ClientHandle) -> None:
        async def moved(camera: viser.CameraHandle) -> None:
            self._session.wake()

        client.camera.on_update(moved)
        if self.bench is None:
            send_script(client, None)
        else:
            self.bench.welcome(client)
        self._watch()

    async def _on_disconnect(self, client: viser.ClientHandle) -> None:
        self._drawn.pop(client.client_id, None)
        self._compared.pop(client.client_id, None)
        if self.bench is not None:
            self.bench.pages.forget(client.client_id)
        self._watch()

    def _watch(self) -> None:
        teacher_views = self.panels.live and self.panels.teacher.value
        self._session.watch(bool(self._server.get_clients()), teacher_views)

    def _connect_controls(self) -> None:
        panels, session = self.panels, self._session
        on, later, command = self._controls.on, self._later, self._controls.command
        if panels.live:
            on(panels.pause, lambda _: self._toggle_pause())
            command("Pause or go on", "space", lambda _: self._toggle_pause())
            on(panels.step, lambda _: self._single_step())
            on(panels.stop, lambda _: session.stop())
            on(panels.teacher, lambda _: self._toggle_teacher())
        for handle in (panels.scene, panels.mode, panels.background, *panels.exact):
            on(handle, lambda _: session.wake())
        on(panels.reset, lambda client: self._go(client, "R"))
        for key, (azimuth, elevation) in VIEWS.items():
            label = "Reset the view" if key == "R" else f"View from {azimuth:.0f}, {elevation:.0f} degrees"
            command(label, key, lambda client, key=key: self._go(client, key))
        on(panels.add_key, lambda client: self._add_key(client))
        on(panels.drop_key, lambda _: self._drop_key())
        on(panels.preview, lambda client: self._start_preview(client))
        on(panels.download, lambda client: later("export", lambda: self._send_scene(client)))
        on(panels.export, lambda client: later("export", lambda: self._export(client)))
        on(panels.screenshot, lambda client: later("screenshot", lambda: self._send_screenshot(client)))
        on(panels.film, lambda client: later("film", lambda: self._send_film(client)))

    def _toggle_pause(self) -> None:
        if self._session.status.paused:
            self._session.resume()
        else:
            self._session.pause()
        self._show_panels()

    def _single_step(self) -> None:
        self._session.single_step()
        self._show_panels()

    def _toggle_teacher(self) -> None:
        self.panels.teacher_view.visible = self.panels.teacher.value
        self._watch()

    def _drop_key(self) -> None:
        if self._keyframes:
            self._keyframes.pop()
        self._session.wake()

    def _go(self, client: viser.ClientHandle, key: str) -> None:
        """Show a client one of the views that have a key."""
        self._preview = None
        point(client, self._home.view(key))

    # ---- the update thread ----

    def _run(self) -> None:
        version = -1
        while not self._closed.is_set():
            version = self._session.wait(version, self._patience())
            begin = time.monotonic()
            if self._server.get_clients():
                for job in (self._choose_scene, self._show_panels, self._fly, self._show_canvases):
                    self._guard(job)
            self._guard(lambda begin=begin: self._rest(time.monotonic() - begin))

    def _patience(self) -> float:
        if self._preview is not None:
            return FRAME
        return MOVING if any(drawn.rows == DRAFT_ROWS for drawn in list(self._drawn.values())) else IDLE

    def _rest(self, spent: float) -> None:
        """Sleep, so that a training in progress keeps its share of the time."""
        running = self.bench is not None and self.bench.jobs.busy
        if not (self.panels.live or running):
            return
        share = SHARE if running else float(np.clip(self.panels.share.value, 0.5, 0.99))
        end = time.monotonic() + min(spent * share / (1 - share), LONGEST_REST)
        version = -1
        while (left := end - time.monotonic()) > 0 and not self._closed.is_set():
            if self._session.status.paused or (self._session.status.finished and not running):
                return
            version = self._session.wait(version, left)

    def _choose_scene(self) -> None:
        panels, kept = self.panels, self._scenes.kept()
        panels.show_scenes(len(kept))
        place = int(panels.scene.value)
        chosen = kept[place] if 0 <= place < len(kept) else None
        if self.bench is not None:
            self.bench.newest = chosen is None
        if chosen is None:
            self._shown = self._session.snapshot if self.bench is None else self.bench.shown()
        elif chosen != self._chosen:
            self._shown = self._scenes.get(chosen)
        self._chosen = chosen

    def _show_panels(self) -> None:
        panels, status, shown = self.panels, self._session.status, self._shown
        count = len(shown.gaussians["means"]) if shown else None
        step = shown.step if shown and (panels.live or self._chosen) else None
        panels.show_status(status, count, step, self._frame)
        panels.show_mode()
        if self.bench is not None:
            if self.bench.desk.files != self._files:
                self._settle(self.bench.desk)
            self.bench.show(count or 0)
        panels.show_keyframes(len(self._keyframes))
        if not panels.live:
            return
        history = self._session.history()
        if len(history) != self._history_length:
            self._history_length = len(history)
            panels.show_history(history)
        teacher_view = self._session.teacher_view
        if teacher_view is not None and teacher_view is not self._teacher_view:
            self._teacher_view = teacher_view
            panels.show_teacher_view(teacher_view)

    def _show_canvases(self) -> None:
        shown = self._shown
        if shown is None:
            return
        compared = self.bench is not None and self.bench.compares
        exact = self.panels.mode.value == RASTERIZER or compared
        options = self._render_options()
        if not exact:
            self._send_splats(shown)
        if self._splats is not None and self._splats.visible == exact:
            self._splats.visible = not exact
        for client in self._server.get_clients().values():
            self._guard(lambda client=client: self._show_canvas(client, shown, options, exact))

    def _show_canvas(
        self, client: viser.ClientHandle, shown: Snapshot, options: RenderOptions, exact: bool
    ) -> None:
        """Send the rendered image, or the background of the browser's own rendering, to a canvas."""
        stamp = client.camera.update_timestamp
        rows = min(int(self.panels.resolution.value), client.camera.image_height)
        if time.time() - stamp < STILL:
            rows = min(rows, DRAFT_ROWS)
        if exact:
            wanted = CanvasState(stamp, shown, options, rows)
            if self.bench is not None and self.bench.compares:
                wanted = replace(wanted, before=self.bench.before, split=self.bench.split)
        else:
            wanted = CanvasState(0.0, None, RenderOptions(background=options.background), 0)
        if wanted == self._drawn.get(client.client_id):
            return
        if exact:
            image = self._drawn_as(client, wanted)
        else:
            image = np.array(options.background)[None, None] * 255
        quality = 75 if rows == DRAFT_ROWS else 95
        client.scene.set_background_image(image.astype(np.uint8), format="jpeg", jpeg_quality=quality)
        self._drawn[client.client_id] = wanted

    def _drawn_as(self, client: viser.ClientHandle, wanted: CanvasState) -> np.ndarray:
        """Return the picture [H, W, 3] of a canvas: one scene, or two beside each other."""
        assert wanted.scene is not None
        both = replace(wanted, split=0.0)
        kept = self._compared.get(client.client_id)
        if kept is None or kept[0] != both:
            cameras, begin = pose_of(client.camera).cameras(wanted.rows), time.perf_counter()
            now = draw(wanted.scene.gaussians, cameras, wanted.options)
            self._frame = time.perf_counter() - begin
            if wanted.before is None:
                return now
            kept = (both, draw(wanted.before.gaussians, cameras, wanted.options), now)
            self._compared[client.client_id] = kept
        image = kept[2].copy()
        edge = round(wanted.split * image.shape[1])
        image[:, :edge] = kept[1][:, :edge]
        return image

    def _settle(self, desk: Desk) -> None:
        """Show a scene that has come from another file: its name, and all of it."""
        self._files = desk.files
        self.panels.title(desk.title, self._scenes.comments.get("method", "-"))
        self._home = home_of(self._session.snapshot)
        self.panels.planes.value = self._home.planes
        for client in self._server.get_clients().values():
            point(client, self._home.view("R"))

    def _send_splats(self, shown: Snapshot) -> None:
        """Send the Gaussians to the browsers, if they do not have them."""
        if self._splats is None:
            self._splats = self._server.scene.add_gaussian_splats(
                "/splat", *splats_for_client(shown.gaussians)
            )
        elif self._sent is not shown:
            self._splats.set_gaussians(*splats_for_client(shown.gaussians))
        self._sent = shown

    def _render_options(self) -> RenderOptions:
        panels = self.panels
        background = triple(np.clip(panels.background.value, 0, 255) / 255)
        near, far = panels.planes.value
        return RenderOptions(panels.channel.value, int(panels.degree.value), background, near, far)

    # ---- camera path ----

    def _add_key(self, client: viser.ClientHandle) -> None:
        camera = client.camera
        self._keyframes.append(Keyframe(triple(camera.position), triple(camera.look_at), camera.fov))
        self._session.wake()

    def _start_preview(self, client: viser.ClientHandle) -> None:
        if len(self._keyframes) > 1:
            self._preview = (client, time.monotonic())
            self._session.wake()

    def _fly(self) -> None:
        """Move the camera of the client that asked for a preview."""
        if self._preview is None:
            return
        client, begin = self._preview
        share = (time.monotonic() - begin) / max(self.panels.seconds.value, 0.1)
        if share > 1 or len(self._keyframes) < 2 or client.client_id not in self._server.get_clients():
            self._preview = None
        if len(self._keyframes) > 1:
            point(client, along(self._keyframes, share))

    # ---- slow work ----

    def _export(self, client: viser.ClientHandle) -> None:
        panels = self.panels
        mesh, ending = panels.format.value in MESHES, panels.format.value.removeprefix("mesh ")
        up = None if panels.up.value == AS_USUAL else panels.up.value
        cells, triangles = int(panels.cells.value) * mesh, int(panels.triangles.value)
        self._send_scene(client, ending, up, panels.prune.value, cells, triangles)

    def _send_scene(
        self,
        client: viser.ClientHandle,
        ending: str = ".ply",
        up: str | None = None,
        prune: float = 0.0,
        cells: int = 0,
        triangles: int = 0,
    ) -> None:
        try:
            content = self._scenes.export(self._chosen, ending, up, prune, cells, triangles)
        except UserError as error:
            client.add_notification("Nothing to download", str(error), color="red")
            return
        client.send_file_download(f"splat{ending}", content, save_immediately=True)

    def _send_screenshot(self, client: viser.ClientHandle) -> None:
        if self._shown is None:
            return
        options = (
            self._render_options()
            if self.panels.mode.value == RASTERIZER
            else RenderOptions(background=self._render_options().background)
        )
        image = draw(
            self._shown.gaussians, pose_of(client.camera).cameras(client.camera.image_height), options
        )
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        client.send_file_download("screenshot.png", buffer.getvalue(), save_immediately=True)

    def _send_film(self, client: viser.ClientHandle) -> None:
        if self._shown is None or len(self._keyframes) < 2:
            return
        size = pose_of(client.camera).size(min(int(self.panels.resolution.value), FILM_ROWS))
        seconds = float(np.clip(self.panels.seconds.value, 0.5, FILM_SECONDS))
        name, content = film(
            self._shown.gaussians,
            list(self._keyframes),
            size,
            seconds,
            self._render_options(),
            self._closed.is_set,
        )
        client.send_file_download(name, content, save_immediately=True)
