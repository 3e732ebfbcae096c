"""The scene that is worked on in the page: what is chosen in it, and what undo brings back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.formats.shapes import read_scene
from splatdistill.scene.gaussians import from_tensors, rgb_to_sh0, select
from splatdistill.training.monitor import Snapshot
from splatdistill.viewer.scenes import Scenes

How = Literal["replace", "add", "remove"]
MOST_STEPS = 20  # that can be undone
MOST_BYTES = 1 << 30  # of the scenes kept for that; the last one is kept in any case
MARK, SHARE = (1.0, 0.55, 0.0), 0.65  # color of what is chosen, and how far it covers its own


@dataclass(frozen=True, eq=False)
class Step:
    """A scene as it was before a change, where it came from, and the name of that change."""

    snapshot: Snapshot
    comments: dict[str, str]
    file: Path | None
    folder: Path | None
    title: str
    files: int
    change: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(value.nbytes for value in self.snapshot.gaussians.values())


class Desk:
    """A scene, the Gaussians chosen in it, and its history; one thread at a time may call what changes it.

    scenes: publishes the scene, and is changed with it.
    """

    def __init__(self, scenes: Scenes, title: str) -> None:
        self._scenes, self.title = scenes, title
        self._opened = self.files = 0  # which of the files opened so far it came from
        self._history: list[Step] = []
        self._chosen: Tensor | None = None  # [N] bool
        self._marked: tuple[Snapshot, Snapshot] | None = None  # a scene, and the same with its marks

    @property
    def scene(self) -> Snapshot | None:
        """The newest scene."""
        return self._scenes.session.snapshot

    @property
    def chosen(self) -> Tensor | None:
        """Which Gaussians are chosen: [N] bool; None for none."""
        return self._chosen

    @property
    def before(self) -> Snapshot | None:
        """The scene that undo brings back; None where there is nothing to undo."""
        return self._history[-1].snapshot if self._history else None

    @property
    def undoes(self) -> str:
        """The name of the change that undo takes back; empty where there is none."""
        return self._history[-1].change if self._history else ""

    def marked(self) -> Snapshot | None:
        """Return the scene with what is chosen in another color; the same object until that changes."""
        scene, marked = self.scene, self._marked
        if scene is None or self._chosen is None or marked is None or marked[0] is not scene:
            return scene
        return marked[1]

    def choose(self, rows: Tensor, how: How) -> None:
        """Replace what is chosen by `rows` [N] bool, or add these or take them away."""
        scene = self._sound()
        if len(rows) != len(scene.gaussians["means"]):
            return  # the scene has changed since
        if self._chosen is not None and how != "replace":
            rows = self._chosen | rows if how == "add" else self._chosen & ~rows
        elif how == "remove":
            rows = torch.zeros_like(rows)
        self._mark(scene, rows)

    def clear(self) -> None:
        """Choose nothing."""
        self._chosen = self._marked = None
        self._scenes.session.wake()

    def invert(self) -> None:
        """Choose what is not chosen."""
        scene = self._sound()
        everything = torch.ones(len(scene.gaussians["means"]), dtype=torch.bool)
        self._mark(scene, everything if self._chosen is None else ~self._chosen)

    def _mark(self, scene: Snapshot, rows: Tensor) -> None:
        if not bool(rows.any()):
            return self.clear()
        tinted = dict(scene.gaussians.items())
        sh0, rest = tinted["sh0"].detach().clone(), tinted["shN"].detach().clone()
        sh0[rows] += SHARE * (rgb_to_sh0(sh0.new_tensor(MARK)) - sh0[rows])
        rest[rows] *= 1.0 - SHARE
        marked = from_tensors(**{**tinted, "sh0": sh0, "shN": rest}).requires_grad_(False)
        self._marked, self._chosen = (scene, Snapshot(scene.step, marked)), rows
        self._scenes.session.wake()

    def delete(self, *, others: bool = False) -> int:
        """Remove what is chosen, or all else; return how many went. Raises UserError when none would stay."""
        scene = self._sound()
        if self._chosen is None:
            raise UserError("nothing is picked")
        kept = self._chosen if others else ~self._chosen
        if not bool(kept.any()):
            raise UserError("no Gaussian would be left")
        self.replace(select(scene.gaussians, kept), "crop" if others else "delete")
        return int((~kept).sum())

    def replace(self, gaussians: ParameterDict, change: str, comments: dict[str, str] | None = None) -> None:
        """Put another scene in the place of this one; `undo` brings this one back.

        change: what was done, for the page; comments: of the new scene, where they are not the old one's.
        """
        scenes = self._scenes
        self._keep(change)
        scenes.file = scenes.folder = None
        scenes.comments = scenes.comments if comments is None else comments
        self._publish(gaussians)

    def open(self, path: Path, title: str, note: Callable[[str], None]) -> None:
        """Read a file in the place of this scene; raises UserError where that is not possible.

        title: what to call it; note: called with a line about what of it was left out.
        """
        gaussians, comments = read_scene(path, note=note)
        self.replace(gaussians, "open", comments)
        self.title, self._opened = comments.get("prompt") or title, self._opened + 1
        self.files = self._opened

    def undo(self) -> None:
        """Take the last change back; raises UserError where there is none."""
        if not self._history:
            raise UserError("there is nothing to undo")
        step, scenes = self._history.pop(), self._scenes
        scenes.comments, scenes.file, scenes.folder = step.comments, step.file, step.folder
        self.title, self.files = step.title, step.files
        self._publish(step.snapshot.gaussians)

    def _keep(self, change: str) -> None:
        """Add the scene to the history, from whose beginning goes what is too much."""
        scenes, scene = self._scenes, self._sound()
        self._history.append(
            Step(scene, scenes.comments, scenes.file, scenes.folder, self.title, self.files, change)
        )
        while len(self._history) > 1 and (
            len(self._history) > MOST_STEPS or sum(step.size for step in self._history) > MOST_BYTES
        ):
            self._history.pop(0)

    def _publish(self, gaussians: ParameterDict) -> None:
        self._chosen = self._marked = None
        self._scenes.session.finish(gaussians)

    def _sound(self) -> Snapshot:
        if self.scene is None:
            raise UserError("there is no scene yet")
        return self.scene
