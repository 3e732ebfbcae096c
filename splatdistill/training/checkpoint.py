"""Crash-safe checkpoints: written atomically, verified when read, the last few kept."""

import io
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from splatdistill.config.load import dump
from splatdistill.config.schema import Config
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.folder import is_piece, step_of
from splatdistill.scene.gaussians import NAMES

# What config.yaml may say otherwise when a run is continued; everything else decides what the run is.
MAY_CHANGE = re.compile(
    r"(steps|checkpoint_every|optimizer\..*|densification\..*|guard\..*|report\..*|gaussians\.final_.*)"
)
ROWS = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3)}  # shapes but for N
COUNTS = ("step", "skipped", "bad_in_a_row")


KEEP = 2  # checkpoints of a run


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; then delete all but it and the KEEP - 1 before it.

    state holds tensors, numbers, strings, and dicts, lists or tuples of them. Equal states give equal bytes.
    Later checkpoints in the folder are deleted too: they were skipped as damaged, or belong to a run that
    this one replaces. Raises UserError when the folder cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(_interned(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    found = _newest_first(path.parent)
    for other in found[: found.index(path)]:
        other.unlink(missing_ok=True)
    drop_older(path)


def drop_older(path: Path) -> None:
    """Delete the checkpoints before the last KEEP up to this one; a kill within `save` leaves one more."""
    found = _newest_first(path.parent)
    for other in found[found.index(path) + KEEP :]:
        other.unlink(missing_ok=True)


def _interned(value: Any) -> Any:
    """Return a value whose equal keys are one string object, since pickle stores distinct objects twice."""
    if isinstance(value, dict):
        return {sys.intern(k) if isinstance(k, str) else k: _interned(v) for k, v in value.items()}
    return type(value)(map(_interned, value)) if isinstance(value, list | tuple) else value


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; never runs code from it.

    Raises UserError when it is missing, damaged (every byte is under a checksum) or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums itself
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict):
                return state
    except FileNotFoundError as error:
        raise UserError(
            f"there is no checkpoint {path}; give the folder of a run that was started"
        ) from error
    except Exception as error:  # what a damaged archive raises is not documented: zipfile, pickle, struct...
        raise UserError(f"{path} is not a whole checkpoint ({type(error).__name__}); delete it") from error
    raise UserError(f"{path} is damaged or not a checkpoint; delete it")


def latest(directory: str | Path, config: Config | None = None) -> dict[str, Any]:
    """Return the state in the newest readable checkpoint of a folder; damaged ones are skipped.

    config: the current configuration, which the state must match; see `validate`. Raises UserError when there
    is no checkpoint, or it does not match.
    """
    paths = _newest_first(Path(directory))
    for path in paths:
        try:
            state = load(path)
        except UserError:
            continue
        if config is not None:
            validate(state, config, path)
        return state
    found = f"{len(paths)} damaged ones" if paths else "none"
    raise UserError(f"no checkpoint to resume from in {directory}: found {found}; start the run anew")


def validate(saved: Mapping[str, Any], config: Config, path: str | Path) -> None:
    """Raise UserError for a state that a run of this configuration cannot continue from.

    Names, shapes, types and values are checked before use: an optimizer accepts tensors of any size, and
    reads beyond their end.
    """
    try:
        wrong = next(_faults(saved, config), None)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        RuntimeError,
        yaml.YAMLError,
    ) as error:
        wrong = f"its parts are not those of a run ({type(error).__name__}: {error})"
    if wrong:
        wrong = " ".join(wrong.split())
        raise UserError(f"{path} does not fit: {wrong}; delete it, or start the run anew with --overwrite")
    changes = changed(saved["settings"], config)
    if changes:
        key, before, now = changes[0]
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise UserError(
            f"this run was made with {key} {before!r}, and config.yaml says {now!r}{more}; put it back, or "
            "start another run"
        )


def changed(settings: str, config: Config) -> list[tuple[str, Any, Any]]:
    """Return settings that differ from an earlier part of the run and must not: key, before, now.

    settings: the result of `dump` then.
    """
    return [change for change in differing(settings, config) if not MAY_CHANGE.fullmatch(change[0])]


def differing(settings: str, config: Config) -> list[tuple[str, Any, Any]]:
    """Return settings that differ from those of a text: key, before, now.

    Keys known to only one of the two belong to another version, and do not count.
    """
    before, now = (dict(_leaves(yaml.safe_load(text))) for text in (settings, dump(config)))
    return [(key, before[key], now[key]) for key in now if key in before and before[key] != now[key]]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _faults(saved: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield what is wrong with a state, one line each."""
    for name in COUNTS:
        if type(saved[name]) is not int or saved[name] < 0:
            yield f"{name} is {saved[name]!r}, expected a number of steps"
    if not isinstance(yaml.safe_load(saved["settings"]), Mapping):
        yield "settings are no configuration"
    gaussians, count = saved["gaussians"], len(saved["gaussians"]["means"])
    rest = (gaussians["shN"].shape[1], 3)
    wanted = {(config.gaussians.sh_degree + 1) ** 2 - 1} if not config.edit.splat else {0, 3, 8, 15}
    if count < 1 or rest[0] not in wanted:
        yield f"it holds {count} Gaussians with {rest[0]} coefficients of higher SH degrees"
    for name, row in (ROWS | {"shN": rest}).items():
        shape = (count, *row)
        yield from _tensor(f"gaussians.{name}", gaussians[name], shape)
        moments = saved["optimizers"][name]["state"]
        if set(moments) - {0} or (moments and set(moments[0]) != {"step", "exp_avg", "exp_avg_sq"}):
            yield f"optimizers.{name} is not the state of one Adam"
        if moments:
            yield from _tensor(f"optimizers.{name}.step", moments[0]["step"], ())
            yield from _tensor(f"optimizers.{name}.exp_avg", moments[0]["exp_avg"], shape)
            yield from _tensor(f"optimizers.{name}.exp_avg_sq", moments[0]["exp_avg_sq"], shape)
    for name, value in saved["densifier"].items():
        yield from _tensor(f"densifier.{name}", value, (count,))
    if not isinstance(saved["method"], Mapping) or set(gaussians) != set(NAMES):
        yield "it holds other names"
    torch.Generator().set_state(saved["generator"])  # raises for what is none
    torch.Generator().set_state(saved["global_rng"]["cpu"])
    cuda = saved["global_rng"]["cuda"]
    if cuda is not None and not (isinstance(cuda, Tensor) and cuda.dtype == torch.uint8 and cuda.ndim == 1):
        yield "global_rng.cuda is no state of a generator"


def _tensor(name: str, value: Any, shape: tuple[int, ...]) -> Iterator[str]:
    """Yield what is wrong with a float32 tensor."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        yield f"{name} is no dense tensor"
    elif value.dtype != torch.float32 or tuple(value.shape) != shape:
        yield f"{name} is {value.dtype} {list(value.shape)}, expected torch.float32 {list(shape)}"
    elif not value.isfinite().all():
        yield f"{name} holds numbers that are not finite"


def _newest_first(directory: Path) -> list[Path]:
    return sorted(filter(is_piece, directory.glob("step-*.pt")), key=step_of, reverse=True)
