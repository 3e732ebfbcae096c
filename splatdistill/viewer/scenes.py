"""The scenes that a viewer can show: the newest of a run, a file, and those kept during training."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.folder import kept_scenes, step_of
from splatdistill.scene.gaussians import select
from splatdistill.scene.orientation import reorient
from splatdistill.training.monitor import Session, Snapshot


@dataclass(eq=False)
class Scenes:
    """The scenes of a session, newest last; file: holds the newest as it is, if any does; folder: of the run.

    comments: stored in exported files. All but the session change when the scene is changed in the page.
    """

    session: Session
    comments: dict[str, str]
    file: Path | None = None
    folder: Path | None = None

    def kept(self) -> list[Path]:
        """Return the scenes that the run stored, in the order of their steps."""
        return kept_scenes(self.folder) if self.folder else []

    def get(self, path: Path | None) -> Snapshot | None:
        """Return the scene of a stored file, or for None the newest, on the CPU; None before there is one."""
        if path is None:
            return self.session.snapshot
        gaussians, _ = formats.read_splat(path)
        return Snapshot(step_of(path), gaussians.requires_grad_(False))

    def export(
        self,
        path: Path | None,
        ending: str,
        up: str | None = None,
        prune: float = 0.0,
        cells: int = 0,
        triangles: int = 20_000,
    ) -> bytes:
        """Return a scene in the format of an ending; a stored file in that format is returned as it is.

        path as in `get`; up: the up axis of the file, by default the format's; prune: leave out Gaussians of
        lower opacity; cells along the longest side of a mesh, 0 for splats, and about its largest number of
        triangles. Raises UserError when the format cannot hold it, or nothing is left.
        """
        done = self.file is not None and self.session.status.finished and self.file.is_file()
        stored = self.file if path is None and done else path
        asis = up is None and not prune and not cells
        if asis and stored is not None and formats.ending_of(stored) == ending:
            return stored.read_bytes()
        scene = self.get(path)
        if scene is None:
            raise UserError("there is no scene yet")
        gaussians = scene.gaussians
        if prune:
            gaussians = select(gaussians, gaussians["opacities"].sigmoid() >= prune)
        if not len(gaussians["means"]):
            raise UserError("no Gaussian is left; prune less")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"splat{ending}"
            if cells:
                from splatdistill.formats.mesh import write_mesh  # needs an extra

                turned = reorient(gaussians, "z", up or "y")
                write_mesh(target, turned, self.comments, cells, triangles, note=ignore)
            else:
                formats.write_splat(target, gaussians, self.comments, up)
            return target.read_bytes()


def ignore(line: str) -> None:
    """Ignore a note on what was left out: the panel has no place for it."""
