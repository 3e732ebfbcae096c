"""One run, from its configuration to its files: prepare, fit, write.

Heavy imports are deferred, so that help and errors answer at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splatdistill.errors import Diverged, UserError
from splatdistill.folder import (
    CAPTURES,
    CHECKPOINTS,
    COMPARED,
    CONFIG,
    MASK,
    PREVIOUS,
    RECORD,
    REFERENCE,
    RESULT,
    SOURCE,
    checkpoint_path,
)
from splatdistill.training.claim import (
    bring_back,
    check_folder,
    claimed,
    drop_later,
    drop_previous,
    is_run,
    leftovers,
    set_aside,
)
from splatdistill.training.inputs import (
    check_kernels,
    check_words,
    fit_teacher,
    pick_device,
    read_pictures,
    read_reference,
    read_source,
    remarks,
    teacher_of,
)
from splatdistill.training.parallel import Alone
from splatdistill.training.progress import NullWatcher, RunResult, Watcher, interruptible

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import ParameterDict

    from splatdistill.config.schema import Config
    from splatdistill.priors.base import Prior
    from splatdistill.scene.captures import Captures
    from splatdistill.scene.pictures import Reference
    from splatdistill.training.origin import Origin
    from splatdistill.training.state import TrainState


@dataclass
class Job:
    """A run that is ready to start or continue: everything it needs is loaded and was checked."""

    config: Config
    out: Path
    device: torch.device
    prior: Prior
    state: TrainState
    picture: Reference | None  # the reference picture, as it was given
    origin: Origin | None  # the splat that it starts from
    new: bool  # no checkpoint exists yet
    warnings: list[str]  # about its prompts, and its speed
    captures: Captures | None = None  # the reference pictures with cameras, in the splat's own frame


Watch = Callable[[Job], AbstractContextManager[Watcher]]


def unwatched(job: Job) -> AbstractContextManager[Watcher]:
    """Yield a watcher that does nothing."""
    return nullcontext(NullWatcher())


def make_run(
    config: Config,
    out: Path | str,
    *,
    device: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    allow_unknown: bool = False,
    watch: Watch = unwatched,
    ranks: Alone | None = None,
    teacher: Prior | None = None,
) -> RunResult:
    """Make or continue a run, and return what came of it.

    Nothing is lost on the way. The teacher, the pictures and the state are loaded and tried before the folder
    is touched. A run that is replaced moves to previous-run/ inside the folder, comes back when the new one
    fails before its first step is done, and goes only when the new one has its result. A run that stops for
    any other reason continues with resume=True, and ends in the same bytes. One that is finished has its last
    things done again, or goes on where `config.steps` is larger than it was; its old result stays until then.

    Args:
        config: what to do. A continued run may have another number of steps, other learning rates and
            densification, guards and report; see `checkpoint.MAY_CHANGE`.
        out: the folder, which one process may work in at a time.
        device: cpu, cuda or cuda:N; by default CUDA where there is one.
        overwrite: replace a run in the folder.
        resume: continue the run in the folder.
        allow_unknown: only warn of words that a shipped teacher does not know.
        watch: makes the watcher of a job, for the time that it runs.
        ranks: the processes that make this run together, each by the same call; only the first writes, and is
            watched.
        teacher: of the configuration, if it is loaded already.

    Returns:
        Where the result is, or how far the run came when the watcher stopped it.

    Raises:
        UserError: the configuration, the folder, the teacher or a checkpoint cannot be used.
        Diverged: the run came to nothing.
    """
    from splatdistill.config.load import with_digests

    out, config, ranks = Path(out), with_digests(config), ranks or Alone()
    warnings = check_words(config, allow_unknown)
    if not ranks.first:
        return follow(config, out, device, resume, ranks)
    check_folder(out, overwrite=overwrite, resume=resume)
    with claimed(out):
        check_folder(out, overwrite=overwrite, resume=resume)  # under the lock
        ranks.wait()
        job = prepare(config, out, device=ranks.device(device), resume=resume, teacher=teacher)
        ranks.check(config.views.count, job.prior.group)
        ranks.wait()
        job.warnings = warnings + remarks(config, job.prior) + check_kernels(job.device) + gripped(job)
        with begun(job, resume), watch(job) as watcher:
            begin = time.perf_counter()
            done = fit(job, watcher, ranks)
            count = ranks.told(write(job) if done else 0)
            result = RunResult(out, config.steps, job.state.step, count, time.perf_counter() - begin)
            watcher.on_result(result)
    return result


def changed(
    config: Config, out: Path, watch: Watch = unwatched, teacher: Prior | None = None
) -> ParameterDict | None:
    """Return the scene that a run comes to, without its pictures; None when the watcher stopped it.

    Args:
        config: what to do.
        out: a new folder, for the run's checkpoints.
        watch: as in `make_run`.
        teacher: of the configuration, if it is loaded already.

    Raises:
        UserError: the configuration or what it names cannot be used.
        Diverged: the run came to nothing.
    """
    job = prepare(config, out, teacher=teacher)
    (out / CHECKPOINTS).mkdir(parents=True)
    with watch(job) as watcher:
        done = fit(job, watcher)
    return returned(job, *finished(job)) if done else None


def follow(config: Config, out: Path, device: str | None, resume: bool, ranks: Alone) -> RunResult:
    """Take part in a run that another process writes; see `make_run`.

    The folder is read only after the first process has claimed it, and changes only after all have read it.
    """
    ranks.wait()
    job = prepare(config, out, device=ranks.device(device), resume=resume)
    ranks.check(config.views.count, job.prior.group)
    ranks.wait()
    begin = time.perf_counter()
    try:
        with interruptible() as interrupted:
            watcher = NullWatcher()
            watcher.should_stop = interrupted
            fit(job, watcher, ranks)
            count = ranks.told(0)
    except UserError as error:
        if resume or job.state.step:
            raise UserError(f"{error}; then continue with --resume {out}") from error
        raise
    return RunResult(out, config.steps, job.state.step, count, time.perf_counter() - begin)


def prepare(
    config: Config,
    out: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    teacher: Prior | None = None,
) -> Job:
    """Load and check everything that a run needs; write nothing.

    Args:
        config: what to do.
        out: the folder of the run.
        device: as in `make_run`.
        resume: go on from the newest checkpoint in `out`, with the run's own pictures and source.
        teacher: of the configuration, if it is loaded already.

    Raises:
        UserError: something cannot be used.
        Diverged: the teacher predicts what is not finite.
    """
    from splatdistill.training import checkpoint
    from splatdistill.training.loop import guide_of
    from splatdistill.training.memory import check_memory
    from splatdistill.training.origin import found_mask
    from splatdistill.training.state import new_state
    from splatdistill.training.surprise import surprise

    if config.method.edits and not config.edit.splat:
        raise UserError(
            f"method '{config.method.name}' edits a splat: use python -m splatdistill.edit --splat FILE"
        )
    place = pick_device(device)
    check_memory(config, place)
    begun = resume and any((out / CHECKPOINTS).glob("*.pt"))  # else killed before its first checkpoint
    saved = checkpoint.latest(out / CHECKPOINTS, config) if begun else None
    own = resume and (out / REFERENCE).exists()
    picture = read_reference(config, out / REFERENCE if own else Path(config.image.path))
    captures = read_pictures(config, out, resume)
    prior = fit_teacher(config, teacher or teacher_of(config, place), picture)
    origin = found_mask(config, prior, read_source(config, out, place, resume))
    state = new_state(config, place, origin)
    guide = guide_of(config, prior, state)  # starts the method: VSD's student, or CLIP
    if origin is not None and config.hold.clean > 0.0:
        state.grip = config.hold.grip(surprise(config, guide, origin))
    if saved is not None:
        try:
            state.load_state_dict(saved, place)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RuntimeError,
        ) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{out / CHECKPOINTS} does not fit ({reason}); start the run anew with --overwrite"
            ) from error
    return Job(config, out, place, prior, state, picture, origin, saved is None, [], captures)


def gripped(job: Job) -> list[str]:
    """Return a line where the splat that a run starts from is held so firmly that little will change."""
    if job.state.grip < 0.9:
        return []
    return ["the teacher sees little to repair here, so the splat hardly changes; hold.clean=0 lets it"]


@contextmanager
def begun(job: Job, resume: bool) -> Iterator[None]:
    """Write the initial files of a run, after making room for it; undo both if its first step fails."""
    from splatdistill.config.load import dump
    from splatdistill.files import atomic_write
    from splatdistill.formats.ply import write_ply
    from splatdistill.training import checkpoint
    from splatdistill.training.origin import write_mask

    out, first = job.out, job.state.step
    for path in leftovers(out):
        path.unlink()
    if not resume:
        set_aside(out)
    try:
        with atomic_write(out / CONFIG) as file:
            file.write(dump(job.config).encode())
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        drop_later(out, first)
        if not job.new:
            checkpoint.drop_older(checkpoint_path(out, first))
        if job.new and job.picture is not None and not (out / REFERENCE).exists():
            job.picture.save(out / REFERENCE)
        if job.new and job.captures is not None and not (out / CAPTURES).exists():
            job.captures.save(out / CAPTURES)
        if job.new and job.origin is not None and not (out / SOURCE).exists():
            write_ply(out / SOURCE, job.origin.raw)
            write_mask(out / MASK, job.origin)
        yield
    except BaseException as error:
        if not resume and job.state.step == 0:
            bring_back(out)
        elif isinstance(error, UserError):
            raise UserError(f"{error}; then continue with --resume {out}") from error
        elif is_run(out / PREVIOUS):
            error.add_note(f"the run that was there before is in {out / PREVIOUS}")
        raise
    if (out / RESULT).exists() and job.state.step >= job.config.steps:
        drop_previous(out)


def fit(job: Job, watcher: Watcher, ranks: Alone | None = None) -> bool:
    """Run the remaining steps of a job; return whether all are done, or the watcher stopped it.

    Raises Diverged when the steps came to nothing; the state is saved.
    """
    from splatdistill.training import loop

    state, config = job.state, job.config
    held = None if job.picture is None else job.picture.resized(config.views.size).to(job.device)
    shift, scale = config.edit.shift, config.edit.scale
    captures = None if job.captures is None else job.captures.moved(shift, scale).to(job.device)
    anchors = loop.Anchors(held, job.origin, captures)
    done = loop.train(config, job.prior, state, job.out, watcher, anchors, ranks)
    if done and state.skipped >= state.step:
        raise Diverged(
            f"every one of the {state.step} steps was bad: its gradient was not finite or its norm above "
            f"guard.gradient_norm, {config.guard.gradient_norm:g}; try other settings or another --seed"
        )
    return done


def finished(job: Job) -> tuple[ParameterDict, Tensor]:
    """Return the pruned scene, and which Gaussians of the state it has: [N] bool.

    What a mask holds stays in any case. Raises Diverged when no Gaussian is left.
    """
    from splatdistill.scene.densification import keep_mask
    from splatdistill.scene.gaussians import select

    limits, scene, held = job.config.gaussians, job.state.gaussians, job.state.densifier.held
    keep = keep_mask(scene, limits.final_opacity, limits.final_scale, limits.final_floaters)
    if held is not None:
        keep |= held
    if not keep.any():
        raise Diverged("no Gaussian is left at the end; try other settings or another --seed")
    return select(scene, keep), keep


def returned(job: Job, scene: ParameterDict, keep: Tensor) -> ParameterDict:
    """Return a finished scene in the place of the splat that the run started from, if it did."""
    if job.origin is None:
        return scene
    return job.origin.returned(scene, job.state.densifier.rows[keep], job.config.edit)


def write(job: Job) -> int:
    """Prune the scene, write the images and splat.ply; return the number of Gaussians left.

    splat.ply comes last, so that a folder with it is complete. Raises Diverged when no Gaussian is left.
    """
    from splatdistill import __version__
    from splatdistill.formats.ply import write_ply
    from splatdistill.media.run_report import write_report
    from splatdistill.media.sheets import compare

    config, out = job.config, job.out
    scene, keep = finished(job)
    write_report(scene, out, config)
    write_record(job, len(scene["means"]))
    if job.origin is not None:
        compare(job.origin.placed, scene, out / COMPARED, config.report)
    comments = {
        "prompt": config.prompt,
        "method": config.method.name,
        "seed": str(config.seed),
        "version": __version__,
    }
    return len(scene["means"]) - write_ply(out / RESULT, returned(job, scene, keep), comments)


def write_record(job: Job, gaussians: int) -> None:
    """Write result.json: each prompt as it was given, how the teacher read it, and what it took for what."""
    from splatdistill import __version__
    from splatdistill.files import atomic_write

    config, prompts = job.config, {}
    given = {"prompt": config.prompt, "negative_prompt": config.negative_prompt}
    for name, text in (given | {"source_prompt": config.edit.source_prompt}).items():
        if text:
            read, notes = job.prior.understand(text)
            prompts[name] = {"given": text, "read_as": read, "notes": notes}
    record = {
        "prompts": prompts,
        "prior": config.prior.name,
        "method": config.method.name,
        "seed": config.seed,
        "steps": job.state.step,
        "gaussians": gaussians,
        "version": __version__,
    }
    with atomic_write(job.out / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
