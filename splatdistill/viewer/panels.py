"""The viewer's controls and their layout; app.py connects them."""

import html

import numpy as np
import viser
from viser import uplot

from splatdistill.formats import FORMATS
from splatdistill.scene.orientation import UPS
from splatdistill.training.monitor import Status, TeacherView
from splatdistill.viewer.drawing import CHANNELS

Icon = viser.Icon
WIDTH = 320  # pixels
PLOTTED = 400  # points of a plot, at most
BROWSER, RASTERIZER = "browser", "rasterizer"
FILM_SECONDS = 20.0  # at most
TILE = 160  # pixels a side of an image of the teacher's view
MESHES = ("mesh .glb", "mesh .obj")  # beside FORMATS
AS_USUAL = "as the format"  # up axes
HELP = {
    "drag": "turn",
    "right drag": "move",
    "wheel": "nearer, farther",
    "W A S D": "walk; Q, E down and up",
    "space": "pause, go on",
    "1 ... 8": "the front, and on around",
    "9": "from above",
    "R": "the first view again",
}


class Panels:
    """The handles of all controls, made once; `steps` above 0 adds those of a training in progress."""

    def __init__(self, server: viser.ViserServer, prompt: str, method: str, steps: int, degree: int) -> None:
        gui = self._gui = server.gui
        gui.configure_theme(show_logo=False, show_share_button=False, brand_color=(40, 90, 160))
        gui.main_panel.dock_right()
        gui.main_panel.set_width(WIDTH)
        gui.set_panel_label("splatdistill")
        self.live, self._prompt, self._method = steps > 0, prompt, method
        self.summary = gui.add_html("")
        if self.live:
            self.progress = gui.add_progress_bar(0.0)
            self.pause = gui.add_button("Pause", icon=Icon.PLAYER_PAUSE, color="yellow")
            self.step = gui.add_button("Single step", icon=Icon.PLAYER_TRACK_NEXT, color="gray")
        self.download = gui.add_button("Download .ply", icon=Icon.DOWNLOAD)
        self.tabs = tabs = gui.add_tab_group()
        if self.live:
            with tabs.add_tab("Training"):
                self._training(steps)
        with tabs.add_tab("View"):
            self._view(degree)
        with tabs.add_tab("Path"):
            self._path()
        with tabs.add_tab("Export"):
            self._export()

    def help(self, more: dict[str, str]) -> None:
        """Add the last tab: what keys and mouse do; more: what only some pages have."""
        rows = {key: does for key, does in HELP.items() if key != "space" or self.live}
        with self.tabs.add_tab("Help"):
            grid = f'<div style="{GRID_OF_TWO}">{cells(rows | more)}</div>'
            self._gui.add_html(f'<div style="{STYLE}">{grid}</div>')

    def title(self, prompt: str, method: str) -> None:
        """Set the head of the panel."""
        self._prompt, self._method = prompt, method

    def _training(self, steps: int) -> None:
        empty = np.zeros(1)
        series = (uplot.Series(label="step"), uplot.Series(label="loss", stroke="#285aa0", width=1.5))
        self.plot = self._gui.add_uplot(
            (empty, empty),
            series,
            height=130,
            scales={
                "x": uplot.Scale(time=False, auto=False, range=(0.0, float(steps))),
                "y": uplot.Scale(auto=True),
            },
        )
        self.share = self._gui.add_slider(
            "Share of training",
            min=0.5,
            max=0.99,
            step=0.01,
            initial_value=0.9,
            hint="of the time while it runs; the viewer takes the rest: less for training, more frames here",
        )
        self.stop = self._gui.add_button("Stop and save", icon=Icon.PLAYER_STOP, color="red")
        self.teacher = self._gui.add_checkbox(
            "Teacher's view", False, hint="what the teacher is shown and makes of it, once a second at most"
        )
        blank = np.full((TILE, 3 * TILE, 3), 255, np.uint8)
        self.teacher_view = self._gui.add_image(
            blank, label="one view, its x0 in one step, the noise", visible=False
        )

    def _view(self, degree: int) -> None:
        gui = self._gui
        self.reset = gui.add_button("Reset the view", icon=Icon.HOME, color="gray")
        self.scene = gui.add_slider("Checkpoint", min=0, max=1, step=1, initial_value=1, visible=False)
        self.mode = gui.add_dropdown(
            "Drawn by",
            (BROWSER, RASTERIZER),
            hint="the browser draws at once, colors of SH degree 0; the rasterizer exactly",
        )
        self.background = gui.add_rgb("Background", (255, 255, 255))
        self.channel = gui.add_dropdown("Channel", CHANNELS)
        self.degree = gui.add_slider("SH degree", min=0, max=3, step=1, initial_value=degree)
        self.resolution = gui.add_slider("Rows", min=120, max=1440, step=40, initial_value=720)
        self.planes = gui.add_vector2("Near, far", (0.01, 100.0), min=(0.001, 0.002), step=0.01)
        self.screenshot = gui.add_button("Screenshot", icon=Icon.CAMERA, color="gray")
        self.exact = (self.channel, self.degree, self.resolution, self.planes)

    def _path(self) -> None:
        gui = self._gui
        self.keyframes = gui.add_html("")
        self.add_key = gui.add_button("Add this view", icon=Icon.PLUS, color="gray")
        self.drop_key = gui.add_button("Remove the last", icon=Icon.MINUS, color="gray")
        self.seconds = gui.add_number("Seconds", 4.0, min=0.5, max=FILM_SECONDS, step=0.5)
        self.preview = gui.add_button("Preview", icon=Icon.PLAYER_PLAY, color="gray")
        self.film = gui.add_button("Download the film", icon=Icon.MOVIE)

    def _export(self) -> None:
        gui = self._gui
        self.format = gui.add_dropdown("Format", (*FORMATS, *MESHES))
        self.up = gui.add_dropdown(
            "Up", (AS_USUAL, *UPS), hint="a .ply is stored with +Z up; many viewers expect -y"
        )
        hint = "leave out Gaussians of lower opacity"
        self.prune = gui.add_slider("Prune", min=0.0, max=0.99, step=0.01, initial_value=0.0, hint=hint)
        self.cells = gui.add_slider(
            "Cells", min=32, max=256, step=8, initial_value=128, hint="of a mesh, along its longest side"
        )
        hint = "of a mesh: about so many at most"
        self.triangles = gui.add_slider(
            "Triangles", min=1_000, max=200_000, step=1_000, initial_value=20_000, hint=hint
        )
        self.export = gui.add_button("Download", icon=Icon.DOWNLOAD)

    def show_status(
        self, status: Status, count: int | None, scene_step: int | None, frame: float | None
    ) -> None:
        """Update summary and buttons; frame: seconds that the last image took."""
        rows = {"method": self._method, "Gaussians": f"{count:,}" if count is not None else "-"}
        if status.steps:
            rows["step"] = f"{status.step} / {status.steps}"
        if self.live or scene_step not in (None, status.step):  # keeps the layout below in place
            rows["shown"] = f"step {scene_step}" if scene_step is not None else "-"
        if self.live:
            metrics = status.metrics or {}
            rows |= {name: f"{metrics[key]:.4g}" if key in metrics else "-" for name, key in SHOWN.items()}
        if self.live and not status.finished:
            left = (status.steps - status.step) / status.speed if status.speed else 0.0
            rows["it/s"], rows["left"] = f"{status.speed:.1f}", "paused" if status.paused else f"{left:.0f} s"
        if self.mode.value == RASTERIZER:
            rows["frame"] = f"{1000 * frame:.0f} ms, {1 / frame:.0f}/s" if frame else "-"
        update(self.summary, content=summary(self._prompt, rows))
        if not self.live:
            return
        update(self.progress, value=100.0 * status.step / max(status.steps, 1))
        for button in (self.pause, self.step, self.stop):
            update(button, disabled=status.finished)
        wanted = "Resume" if status.paused else "Pause"
        if self.pause.label != wanted:
            self.pause.label = wanted
            self.pause.icon = Icon.PLAYER_PLAY if status.paused else Icon.PLAYER_PAUSE

    def show_history(self, history: list[tuple[int, float, float]]) -> None:
        """Plot the loss over the steps."""
        if len(history) > 1:
            every = max(len(history) // PLOTTED, 1)
            values = np.array(history[::-1][::every][::-1], np.float64)
            self.plot.data = (values[:, 0].copy(), np.where(np.isfinite(values[:, 1]), values[:, 1], np.nan))

    def show_teacher_view(self, teacher_view: TeacherView) -> None:
        """Show the three images of the teacher's evaluation side by side."""
        self.teacher_view.image = np.concatenate(
            [tile(p) for p in (teacher_view.view, teacher_view.x0_hat, teacher_view.noise)], 1
        )

    def show_mode(self) -> None:
        """Enable the controls of the chosen rendering mode."""
        for handle in self.exact:
            update(handle, visible=self.mode.value == RASTERIZER)
        for handle in (self.cells, self.triangles):
            update(handle, visible=self.format.value in MESHES)

    def show_scenes(self, count: int) -> None:
        """Offer the stored scenes, and the newest as the last position of the slider."""
        newest = self.scene.value >= self.scene.max
        if count and self.scene.max != count:
            self.scene.max = count
            if newest:
                self.scene.value = count
        update(self.scene, visible=count > 0)

    def show_keyframes(self, count: int) -> None:
        """Show the number of keyframes of the path."""
        text = (
            f"{count} views on the path" if count else "Move to a view and add it; two or more make a path."
        )
        update(self.keyframes, content=f'<div style="{STYLE}; color: gray">{text}</div>')
        for button in (self.preview, self.film):
            update(button, disabled=count < 2)


SHOWN = {"t": "t", "loss": "loss", "gradient": "gradient_norm"}
GRID = "display: grid; grid-template-columns: auto 1fr auto 1fr; gap: 2px 10px"
GRID_OF_TWO = "display: grid; grid-template-columns: auto 1fr; gap: 2px 10px"
STYLE = "padding: 2px 14px 6px; font-size: 0.85em"


def summary(prompt: str, rows: dict[str, str]) -> str:
    """Return the head of the panel as HTML, from plain texts."""
    return (
        f'<div style="{STYLE}; overflow-wrap: anywhere">'
        f'<div style="font-weight: 600; font-size: 1.15em; margin-bottom: 4px">{html.escape(prompt)}</div>'
        f'<div style="{GRID}">{cells(rows)}</div></div>'
    )


def cells(rows: dict[str, str]) -> str:
    """Return names and values as cells of an HTML grid, from plain texts."""
    return "".join(
        f'<div style="color: gray">{html.escape(name)}</div><div>{html.escape(value)}</div>'
        for name, value in rows.items()
    )


def tile(picture: np.ndarray) -> np.ndarray:
    """Return an image [H, W, 3] as TILE by TILE pixels, nearest-neighbor, with a white margin."""
    inner = TILE - 4
    rows = np.arange(inner) * picture.shape[0] // inner
    columns = np.arange(inner) * picture.shape[1] // inner
    return np.pad(picture[rows][:, columns], ((2, 2), (2, 2), (0, 0)), constant_values=255)


def update(handle: object, **values: object) -> None:
    """Set only attributes that differ: viser sends every assignment to every client."""
    for name, value in values.items():
        if getattr(handle, name) != value:
            setattr(handle, name, value)
