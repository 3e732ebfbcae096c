"""A run that is started from the page, on the scene that it shows: one at a time, in a thread of its own."""

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import __version__
from splatdistill.config.schema import Config
from splatdistill.errors import Diverged, UserError
from splatdistill.folder import MASK
from splatdistill.formats.ply import write_ply
from splatdistill.training.changes import COMPARING, edit_config, edit_method, refine_config
from splatdistill.training.inputs import check_words, edit_settings
from splatdistill.training.monitor import Session, Snapshot, Status
from splatdistill.training.progress import Watcher
from splatdistill.training.run import Job, changed

Verb = Literal["refine", "edit"]
Done = Callable[[ParameterDict, str, dict[str, str]], None]


@dataclass(frozen=True)
class Order:
    """What a run should do to a scene; `now`: what it shows, `wanted`: what it should, of an edit."""

    verb: Verb
    now: str
    wanted: str = ""
    strength: float = 0.5  # of refining

    def config(self, splat: Path, mask: Path | None, settings: Sequence[str] = ()) -> Config:
        """Return the configuration that the verb of the same name makes; raises UserError.

        settings: `key=value` each.
        """
        prompt = self.now if self.verb == "refine" else self.wanted
        if not prompt.strip():
            raise UserError("say what it shows" if self.verb == "refine" else "say what it should show")
        method = edit_method(None, masked=mask is not None)
        compares = self.verb == "edit" and method in COMPARING
        text = None if mask is None else str(mask)
        edit = edit_settings(splat, self.now, mask=text, prompted=compares)
        if self.verb == "refine":
            return refine_config(prompt, self.strength, edit, words=settings)
        return edit_config(prompt, method, edit, words=settings)


class Jobs:
    """The run in progress, if there is one.

    Args:
        done: called with the new scene, what was done, and its comments, in the run's thread.
        failed: called with a line for the page where there is none.
        ended: called when a run has ended, however it did.
        settings: of all runs, `key=value` each.
    """

    def __init__(
        self,
        done: Done,
        failed: Callable[[str], None],
        ended: Callable[[], None],
        settings: Sequence[str] = (),
    ) -> None:
        self._done, self._failed, self._ended = done, failed, ended
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a run is in progress."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def status(self) -> Status | None:
        """How far the run is; None while it is prepared, and without one."""
        return None if self._session is None else self._session.status

    @property
    def snapshot(self) -> Snapshot | None:
        """The run's newest scene; None before there is one."""
        return None if self._session is None else self._session.snapshot

    def start(self, order: Order, gaussians: ParameterDict, rows: Tensor | None) -> None:
        """Begin a run; raises UserError when another is in progress.

        Args:
            order: what to do.
            gaussians: the scene.
            rows: which Gaussians may change, [N] bool; None for all.
        """
        with self._lock:
            if self.busy:
                raise UserError("a run is in progress; stop it first")
            self._stopped = False
            arguments = (order, gaussians, rows)
            self._thread = threading.Thread(target=self._run, args=arguments, name="job", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask the run to end after its step; the scene stays as it was."""
        self._stopped = True
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, order: Order, gaussians: ParameterDict, rows: Tensor | None) -> None:
        try:
            with tempfile.TemporaryDirectory() as name:
                found = self._made(order, gaussians, rows, Path(name))
            if found is None:
                self._failed("the run was stopped; nothing has changed")
            else:
                self._done(found[0], order.verb, found[1])
        except (UserError, Diverged) as error:
            self._failed(str(error))
        except MemoryError:
            self._failed("there is not enough memory for this run; nothing has changed")
        except Exception as error:  # no run may end the viewer
            self._failed(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}; nothing has changed")
        finally:
            self._session = None
            self._ended()

    def _made(
        self, order: Order, gaussians: ParameterDict, rows: Tensor | None, folder: Path
    ) -> tuple[ParameterDict, dict[str, str]] | None:
        """Return the scene that an order asks for, with its comments; None when it was stopped."""
        mask = None if rows is None else folder / MASK
        if write_ply(folder / "in.ply", gaussians) and rows is not None:
            raise UserError("the scene has Gaussians that no file can hold; delete them first")
        if mask is not None and rows is not None:
            np.save(mask, rows.numpy(), allow_pickle=False)
        config = order.config(folder / "in.ply", mask, self._settings)
        check_words(config, allow_unknown=False)
        scene = changed(config, folder / "run", self._watched) if not self._stopped else None
        told = {"prompt": config.prompt, "method": config.method.name, "seed": str(config.seed)}
        return None if scene is None else (scene, told | {"version": __version__})

    @contextmanager
    def _watched(self, job: Job) -> Iterator[Watcher]:
        """Yield the session that shows a run, in the place of the scene that it starts from."""
        origin, state, place = job.origin, job.state, job.config.edit
        assert origin is not None

        def scene() -> ParameterDict:
            return origin.returned(state.gaussians, state.densifier.rows, place)

        session = Session(scene, job.prior.decode, job.config.steps)
        session.watch(True)
        self._session = session
        if self._stopped:
            session.stop()
        yield session
