"""The configurations of runs that change a splat, for the verbs and the viewer; light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from splatdistill.errors import UserError

if TYPE_CHECKING:
    from splatdistill.config.schema import Config

COMPARING = ("pds", "dds", "dreamcatalyst")  # methods of edits that read what the splat shows
LAST = 0.02  # level of noise at the end of refining, a share of T; configs/refine.yaml has that at the start


def edit_method(name: str | None, *, masked: bool) -> str:
    """Return the method of an edit: by default pds, or within a mask sdi, which makes what was not there.

    Raises UserError for sdi on a whole splat.
    """
    if name == "sdi" and not masked:
        raise UserError("--method sdi makes the whole splat anew: give --mask, or use splatdistill.refine")
    return name or ("sdi" if masked else "pds")


def edit_config(
    prompt: str,
    method: str,
    edit: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    file: str | None = None,
    words: Sequence[str] = (),
) -> Config:
    """Return the configuration of an edit; raises UserError as `config.load.resolve`.

    Args:
        prompt: what the splat should show.
        method: of `edit_method`.
        edit: of `inputs.edit_settings`.
        flags: further settings, nested.
        file: a YAML file below them.
        words: `key=value` each.
    """
    from splatdistill.config.load import resolve

    told = {"prompt": prompt, "method": method, "edit": edit}
    if not edit.get("mask"):
        return resolve({**told, **(flags or {})}, file, words, "edit")
    from splatdistill.training.framing import framed

    return framed(resolve({**told, **(flags or {})}, file, words, "edit-part"))


def refine_config(
    prompt: str,
    strength: float | None,
    edit: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    file: str | None = None,
    words: Sequence[str] = (),
) -> Config:
    """Return the configuration of a run that refines; arguments and errors as of `edit_config`.

    strength: the highest level of noise, above LAST and at most 1; None for the preset's.
    """
    from splatdistill.config.load import resolve

    levels = noise_levels(strength)
    told = {"prompt": prompt, "edit": {**edit, "source_prompt": ""}}
    config = resolve({**told, **(flags or {})}, file, [*levels, *words], "refine")
    if config.method.edits:
        raise UserError(f"method '{config.method.name}' edits: use python -m splatdistill.edit")
    return config


def noise_levels(strength: float | None) -> list[str]:
    """Return the settings of the levels of noise from a strength down to LAST; none for None.

    Raises UserError for one that is not above LAST and at most 1.
    """
    if strength is None:
        return []
    if not LAST < strength <= 1.0:
        raise UserError(f"--strength {strength:g}: expected a level of noise above {LAST:g}, at most 1")
    return [f"method.timesteps.{end}=[{strength}, {LAST}]" for end in ("low", "high")]
