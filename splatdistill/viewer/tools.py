"""The controls that change a scene, and their layout; workbench.py connects them."""

import html
from typing import Literal, get_args

import viser

from splatdistill.training.monitor import Status
from splatdistill.viewer.panels import STYLE, update

Icon = viser.Icon
Mouse = Literal["look around", "pick by box", "pick by brush"]
LOOK, BOX, BRUSH = get_args(Mouse)
REFINE, EDIT = "refine", "edit"
LONGEST_TEXT = 500  # letters of a prompt
HELP = {
    "B, P, V": "box, brush (paint), look around",
    "drag + shift": "pick more",
    "drag + alt": "pick less",
    "X": "delete what is picked",
    "Ctrl Z": "undo",
    "drop a file": "open it",
}


class Tools:
    """The handles of all controls that change the scene, made once."""

    def __init__(self, gui: viser.GuiApi, tabs: viser.GuiTabGroupHandle, prompt: str) -> None:
        self._gui = gui
        with tabs.add_tab("Pick"):
            self._choose()
        with tabs.add_tab("Edit"):
            self._change(prompt)

    def _choose(self) -> None:
        gui = self._gui
        self.chosen = gui.add_html("")
        self.mouse = gui.add_dropdown("Mouse", get_args(Mouse), hint="what dragging does; keys V, B, P")
        self.brush = gui.add_slider(
            "Brush", min=0.005, max=0.2, step=0.005, initial_value=0.03, hint="its radius, of the height"
        )
        self.seen_only = gui.add_checkbox("Seen only", False, hint="not what something hides")
        self.invert = gui.add_button("Invert", icon=Icon.CONTRAST, color="gray")
        self.clear = gui.add_button("Pick nothing", icon=Icon.X, color="gray")
        self.delete = gui.add_button("Delete", icon=Icon.TRASH, color="gray")
        self.crop = gui.add_button("Delete the rest", icon=Icon.CROP, color="gray")

    def _change(self, prompt: str) -> None:
        gui = self._gui
        self.verb = gui.add_dropdown("Do", (REFINE, EDIT))
        self.now = gui.add_text("It shows", prompt)
        self.wanted = gui.add_text("It should show", "")
        hint = "the highest level of noise: more changes more"
        self.strength = gui.add_slider("Strength", min=0.05, max=1.0, step=0.05, initial_value=0.5, hint=hint)
        hint = "what is not picked stays as it is, byte by byte"
        self.masked = gui.add_checkbox("Picked only", False, hint=hint)
        self.run = gui.add_button("Run", icon=Icon.PLAYER_PLAY)
        self.told = gui.add_html("")
        self.progress = gui.add_progress_bar(0.0, visible=False)
        self.stop = gui.add_button("Stop", icon=Icon.PLAYER_STOP, color="red", visible=False)
        self.undo = gui.add_button("Undo", icon=Icon.ARROW_BACK_UP, color="gray")
        hint = "the scene before the last change on the left of the line, which can be dragged"
        self.compare = gui.add_checkbox("Before and after", False, hint=hint)

    def show(self, chosen: int, whole: int, undoes: str, *, busy: bool, status: Status | None) -> None:
        """Update what the controls say, and which of them can be used."""
        text = f"{chosen:,} of {whole:,} Gaussians are picked" if chosen else "Nothing is picked."
        update(self.chosen, content=line(text))
        update(self.brush, visible=self.mouse.value == BRUSH)
        for handle in (self.delete, self.crop, self.clear):
            update(handle, disabled=busy or not chosen)
        update(self.invert, disabled=busy)
        editing = self.verb.value == EDIT
        update(self.wanted, visible=editing)
        update(self.strength, visible=not editing)
        update(self.masked, disabled=not chosen)
        update(self.run, disabled=busy)
        update(self.stop, visible=busy)
        update(self.progress, visible=busy)
        update(self.undo, disabled=busy or not undoes, label=f"Undo: {undoes}" if undoes else "Undo")
        update(self.compare, disabled=not undoes and not busy)
        share = 100.0 * status.step / max(status.steps, 1) if status is not None else 0.0
        update(self.progress, value=share)
        step = "the teacher is read ..." if status is None else f"step {status.step} of {status.steps}"
        update(self.told, content=line(step) if busy else "")


def line(text: str) -> str:
    """Return a plain text as a quiet line of HTML."""
    return f'<div style="{STYLE}; color: gray">{html.escape(text)}</div>'
