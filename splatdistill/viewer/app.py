"""The viewer: one thread that updates panels and canvases, another for slow work."""

import io
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import viser
from PIL import Image

from splatdistill.console import note
from splatdistill.errors import UserError
from splatdistill.scene.gaussians import sh_degree_of
from splatdistill.training.monitor import Snapshot, TeacherView
from splatdistill.viewer.drawing import Pose, RenderOptions, draw, splats_for_client, triple
from splatdistill.viewer.panels import AS_USUAL, FILM_SECONDS, MESHES, RASTERIZER, Panels
from splatdistill.viewer.path import Keyframe, along, film
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Server

IDLE = 0.5  # seconds between two updates
MOVING = 0.1  # the same, after a move of a camera
FRAME = 1 / 30  # the same, in a preview
STILL = 0.25  # seconds without a move until a view is rendered at full size
DRAFT_ROWS = 240  # pixels, while the camera moves
FILM_ROWS = 720  # at most
LONGEST_REST = 10.0  # seconds
DISTANCE, FOV = 3.0, math.radians(45.0)  # of the views that have a key
VIEWS = {str(k + 1): (45.0 * k, 20.0) for k in range(8)} | {"9": (0.0, 85.0), "R": (0.0, 20.0)}  # degrees


@dataclass(frozen=True)
class CanvasState:
    """The contents of a client's canvas, compared with what it should show."""

    camera: float  # time stamp
    scene: Snapshot | None
    options: RenderOptions
    rows: int  # 0: left to the browser


class App:
    """Connection of scenes, session, panels and clients until `close`; its errors never end a run."""

    def __init__(self, server: Server, scenes: Scenes, prompt: str, method: str, live: bool) -> None:
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
        self._told: set[str] = set()
        self._pending: set[str] = set()
        self._closed = threading.Event()
        self._slow = ThreadPoolExecutor(1, "viewer")
        self._frame: float | None = None  # duration of the last rendering in seconds
        server.initial_camera.position = place_of(*VIEWS["R"])
        server.initial_camera.fov = FOV
        server.on_client_connect(self._on_connect)
        server.on_client_disconnect(self._on_disconnect)
        self._connect_controls()
        self._thread = threading.Thread(target=self._run, name="viewer", daemon=True)
        self._thread.start()
        server.open()

    def close(self) -> None:
        """End the threads; a film in progress is abandoned."""
        self._closed.set()
        self._session.watch(False)
        self._slow.shutdown(cancel_futures=True)
        self._thread.join()

    # ---- actions of clients, in viser's event loop: nothing here may block ----

    async def _on_connect(self, client: viser.ClientHandle) -> None:
        async def moved(camera: viser.CameraHandle) -> None:
            self._session.wake()

        client.camera.on_update(moved)
        self._watch()

    async def _on_disconnect(self, client: viser.ClientHandle) -> None:
        self._drawn.pop(client.client_id, None)
        self._watch()

    def _watch(self) -> None:
        teacher_views = self.panels.live and self.panels.teacher.value
        self._session.watch(bool(self._server.get_clients()), teacher_views)

    def _connect_controls(self) -> None:
        panels, session = self.panels, self._session
        on, later = self._on, self._later
        if panels.live:
            on(panels.pause, lambda _: self._toggle_pause())
            self._command("Pause or go on", "space", lambda _: self._toggle_pause())
            on(panels.step, lambda _: self._single_step())
            on(panels.stop, lambda _: session.stop())
            on(panels.teacher, lambda _: self._toggle_teacher())
        for handle in (panels.scene, panels.mode, panels.background, *panels.exact):
            on(handle, lambda _: session.wake())
        on(panels.reset, lambda client: self._go(client, "R"))
        for key, (azimuth, elevation) in VIEWS.items():
            label = "Reset the view" if key == "R" else f"View from {azimuth:.0f}, {elevation:.0f} degrees"
            self._command(label, key, lambda client, key=key: self._go(client, key))
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

    def _on(self, handle: Any, act: Callable[[viser.ClientHandle], object]) -> None:
        """Call `act` with the client that used a control."""

        async def used(event: Any) -> None:
            if event.client is not None:
                self._guard(lambda: act(event.client))

        attach = handle.on_click if isinstance(handle, viser.GuiButtonHandle) else handle.on_update
        attach(used)

    def _command(self, label: str, key: Any, act: Callable[[viser.ClientHandle], object]) -> None:
        """Call `act` with the client whose key was pressed, or who chose it from the list (Ctrl-K)."""

        async def used(event: Any) -> None:
            if event.client is not None:
                self._guard(lambda: act(event.client))

        self._server.gui.add_command(label, hotkey=key).on_trigger(used)

    def _go(self, client: viser.ClientHandle, key: str) -> None:
        """Show a client one of the views that have a key."""
        self._preview = None
        point(client, Keyframe(place_of(*VIEWS[key]), (0.0, 0.0, 0.0), FOV))

    def _later(self, name: str, job: Callable[[], None]) -> None:
        """Run slow work in its own thread, unless the same is already queued."""
        if name in self._pending or self._closed.is_set():
            return
        self._pending.add(name)

        def run() -> None:
            self._guard(job)
            self._pending.discard(name)

        self._slow.submit(run)

    def _guard(self, job: Callable[[], object]) -> None:
        """Run something that must not end the run; each error is reported once."""
        try:
            job()
        except Exception as error:  # no error here may end the run
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            if line not in self._told and len(self._told) < 10 and not self._closed.is_set():
                self._told.add(line)
                note(f"viewer: {line}; the run goes on")

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
        if not self.panels.live:
            return
        share = float(np.clip(self.panels.share.value, 0.5, 0.99))
        end = time.monotonic() + min(spent * share / (1 - share), LONGEST_REST)
        version = -1
        while (left := end - time.monotonic()) > 0 and not self._closed.is_set():
            if self._session.status.paused or self._session.status.finished:
                return
            version = self._session.wait(version, left)

    def _choose_scene(self) -> None:
        panels, kept = self.panels, self._scenes.kept()
        panels.show_scenes(len(kept))
        place = int(panels.scene.value)
        chosen = kept[place] if 0 <= place < len(kept) else None
        if chosen is None:
            self._shown = self._session.snapshot
        elif chosen != self._chosen:
            self._shown = self._scenes.get(chosen)
        self._chosen = chosen

    def _show_panels(self) -> None:
        panels, status, shown = self.panels, self._session.status, self._shown
        count = len(shown.gaussians["means"]) if shown else None
        panels.show_status(status, count, shown.step if shown else None, self._frame)
        panels.show_mode()
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
        exact = self.panels.mode.value == RASTERIZER
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
        else:
            wanted = CanvasState(0.0, None, RenderOptions(background=options.background), 0)
        if wanted == self._drawn.get(client.client_id):
            return
        if exact:
            begin = time.perf_counter()
            image = draw(shown.gaussians, pose_of(client.camera).cameras(rows), options)
            self._frame = time.perf_counter() - begin
        else:
            image = np.array(options.background)[None, None] * 255
        quality = 75 if rows == DRAFT_ROWS else 95
        client.scene.set_background_image(image.astype(np.uint8), format="jpeg", jpeg_quality=quality)
        self._drawn[client.client_id] = wanted

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
        self._send_scene(client, ending, up, panels.prune.value, int(panels.cells.value) * mesh)

    def _send_scene(
        self,
        client: viser.ClientHandle,
        ending: str = ".ply",
        up: str | None = None,
        prune: float = 0.0,
        cells: int = 0,
    ) -> None:
        try:
            content = self._scenes.export(self._chosen, ending, up, prune, cells)
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


def pose_of(camera: viser.CameraHandle) -> Pose:
    """Return the camera of a browser; raises ValueError for an invalid one."""
    w, x, y, z = (float(value) for value in camera.wxyz)
    return Pose((w, x, y, z), triple(camera.position), float(camera.fov), camera.aspect)


def place_of(azimuth_deg: float, elevation_deg: float) -> tuple[float, float, float]:
    """Return the position of a camera that looks at the origin from DISTANCE."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = DISTANCE * math.cos(e)
    return (flat * math.cos(a), flat * math.sin(a), DISTANCE * math.sin(e))


def point(client: viser.ClientHandle, key: Keyframe) -> None:
    """Move a client's camera, with +Z up."""
    with client.atomic():
        client.camera.up_direction = (0.0, 0.0, 1.0)
        client.camera.position = key.position
        client.camera.look_at = key.look_at
        client.camera.fov = key.fov_rad
