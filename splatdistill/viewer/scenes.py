"""The scenes that a viewer can show: the newest of a run, a file, and those kept over the training."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from splatdistill import formats
from splatdistill.errors import UserError
from splatdistill.folder import kept_scenes, step_of
from splatdistill.training.monitor import Session, Snapshot


@dataclass(frozen=True, eq=False)
class Scenes:
    """What a session shows, newest last; file: where the result is stored, once it is; folder: of the run.

    comments: what exported files say of it.
    """

    session: Session
    comments: dict[str, str]
    file: Path | None = None
    folder: Path | None = None

    def kept(self) -> list[Path]:
        """The scenes that the run stored on its way, in the order of their steps."""
        return kept_scenes(self.folder) if self.folder else []

    def get(self, path: Path | None) -> Snapshot | None:
        """The scene of a stored file, or for None the newest, on the CPU; None before there is one."""
        if path is None:
            return self.session.snapshot
        gaussians, _ = formats.read_splat(path)
        return Snapshot(step_of(path), gaussians.requires_grad_(False))

    def export(self, path: Path | None, ending: str) -> bytes:
        """A scene in the format of an ending: the very bytes of its file where that has it.

        path as in `get`. Raises UserError when the format cannot hold it.
        """
        done = self.file is not None and self.session.status.finished and self.file.is_file()
        stored = self.file if path is None and done else path
        if stored is not None and formats.ending_of(stored) == ending:
            return stored.read_bytes()
        scene = self.get(path)
        if scene is None:
            raise UserError("there is no scene yet")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"splat{ending}"
            formats.write_splat(target, scene.gaussians, self.comments)
            return target.read_bytes()
