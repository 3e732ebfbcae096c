"""Inputs of a run (words, device, teacher, picture, splat): each is read and checked, or refused.

Heavy imports are deferred, so that help and errors answer at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.errors import UserError
from splatdistill.folder import CAPTURES, CONFIG, MASK, RESULT, SOURCE
from splatdistill.priors.loading import words_of

if TYPE_CHECKING:
    import torch
    from torch.nn import ParameterDict

    from splatdistill.config.schema import Config
    from splatdistill.priors.base import Prior
    from splatdistill.scene.captures import Captures
    from splatdistill.scene.pictures import Reference
    from splatdistill.training.origin import Origin

LETTERS = 60  # largest length of a prompt in a folder name


def check_words(config: Config, allow_unknown: bool) -> list[str]:
    """Return a line for each prompt of a run that its teacher reads otherwise than it is written.

    Raises UserError for an empty text, and for one that means nothing to the teacher and its LoRA.
    """
    prompts = list(filter(None, (config.prompt, config.edit.source_prompt)))
    negatives = list(filter(None, (config.negative_prompt,)))
    if any("\ud800" <= letter <= "\udfff" for text in prompts + negatives for letter in text):
        raise UserError("the prompt holds bytes that are not text; expected UTF-8")
    from splatdistill.priors.lora import taught

    words, strict = words_of(config.prior.name, taught(config.prior.lora)), not allow_unknown
    if words is None:
        return []
    read = [words.understand(text, strict=strict) for text in prompts]
    read += [words.understand(text, strict=strict, thing=False) for text in negatives]
    return [line for _, lines in read for line in lines]


def pick_device(name: str | None) -> torch.device:
    """Return the named device, by default CUDA where there is one; raises UserError when it is missing."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"there is no device '{name}' here; `python -m splatdistill.doctor` says what there is"
        )
    return device


def check_kernels(device: torch.device) -> list[str]:
    """Return a warning when a run has to do without the native kernels."""
    from splatdistill.ops import native

    if device.type != "cpu" or native.available():
        return []
    return [
        "the native extension is missing: on plain torch this run takes about 20 times as long; "
        "`splatdistill doctor` says what to do"
    ]


def teacher_of(config: Config, device: torch.device) -> Prior:
    """Load the teacher of a configuration, with its LoRA files, in the configured precision."""
    import torch

    from splatdistill.priors import load_prior

    dtype = None if config.prior.dtype == "auto" else getattr(torch, config.prior.dtype)
    return load_prior(config.prior.name, device, dtype, config.prior.lora)


def fit_teacher(config: Config, prior: Prior, picture: Reference | None) -> Prior:
    """Return a teacher as this run uses it, conditioned on its picture, after a trial prediction.

    Raises UserError when it wants other views or a text, or cannot predict, and Diverged when its prediction
    is not finite.
    """
    from splatdistill.priors.loading import probe

    if config.views.count % prior.group:
        raise UserError(
            f"this teacher sees {prior.group} views at a time; views.count is {config.views.count}, "
            "not a multiple"
        )
    shown = prior.needs_picture or (prior.reads_picture and picture is not None)
    if not shown and not config.prompt.strip():
        raise UserError("this teacher reads a text: give --prompt too, or an image-conditioned --prior")
    prior = prior.for_run(config.seed, config.prior.models)
    if picture is not None:
        prior = prior.condition_on(picture)
    probe(prior)
    if config.prior.compile:
        prior.compile()
    return prior


def remarks(config: Config, prior: Prior, flat: bool = False) -> list[str]:
    """Return a line for each prompt of a run that is longer than its teacher reads, and its own remarks.

    flat: for pictures without cameras, whose views and backgrounds no prompt names.
    """
    from splatdistill.guidance.prompts import ViewPrompts

    words = prior.view_words and config.guidance.mode != "plain" and not flat
    backgrounds = config.backgrounds
    names = list(backgrounds.colors) if backgrounds.in_prompt and not flat else [None]
    prompts = ViewPrompts(config.prompt, config.negative_prompt, words, prior.fit)
    source = ViewPrompts(config.edit.source_prompt, "", words, prior.fit)
    return [*prompts.left_out(names), *source.left_out(names, "source prompt"), *prior.remarks]


def read_reference(config: Config, path: Path) -> Reference | None:
    """Return the reference picture with its camera; None for a run from text alone."""
    if not config.image.path:
        return None
    from splatdistill.scene.cameras import orbit
    from splatdistill.scene.pictures import Reference, read_picture

    rgb, alpha = read_picture(path)
    side, image = rgb.shape[-1], config.image
    camera = orbit(0.0, image.elevation_deg, image.distance, image.fov_deg, side, side)
    return Reference(rgb, alpha, camera)


def read_pictures(config: Config, out: Path, resume: bool) -> Captures | None:
    """Return the reference pictures with cameras, in the frame of the splat; None for a run without.

    resume: read them from the run's folder, where it has them.
    """
    if not config.captures.path:
        return None
    from splatdistill.scene.captures import load_captures, read_captures

    if resume and (out / CAPTURES).exists():
        return load_captures(out / CAPTURES)
    return read_captures(Path(config.captures.path), config.views.size)


def read_source(config: Config, out: Path, device: torch.device, resume: bool) -> Origin | None:
    """Return the splat that a run starts from, with its mask; None for a run that starts from nothing.

    resume: read both from the run's folder, where it has them. A mask in words is left for `found_mask`.
    """
    edit = config.edit
    if not edit.splat:
        return None
    from splatdistill.formats.ply import read_ply
    from splatdistill.scene.densification import lonely_mask
    from splatdistill.scene.gaussians import select
    from splatdistill.scene.masks import is_file, is_words, read_mask
    from splatdistill.scene.rounding import unrounded
    from splatdistill.scene.thinned import filled
    from splatdistill.training.origin import place

    if resume and (out / SOURCE).exists():
        raw, mask_file = read_ply(out / SOURCE)[0], out / MASK
    else:
        raw, mask_file = read_start(edit.splat, edit.program, edit.up), None
        if config.gaussians.unrounded and not edit.mask:
            raw = unrounded(raw)
        if config.gaussians.lonely and not edit.mask:
            raw = select(raw, ~lonely_mask(raw, config.gaussians.lonely))
        if config.gaussians.filled and not edit.mask:
            raw = filled(raw)
    mask = None
    if edit.mask:  # a shape gives its region too, and needs no file
        found = mask_file is not None and mask_file.exists() and (is_words(edit.mask) or is_file(edit.mask))
        text = str(mask_file) if found else edit.mask
        mask = None if is_words(text) else read_mask(text, raw)
    return place(raw, mask, edit, device)


def read_start(
    path: str | Path, program: str, up: str, note: Callable[[str], None] = lambda text: None
) -> ParameterDict:
    """Read what a run starts from, in the world frame: a splat, a point cloud or a mesh."""
    from splatdistill.formats.shapes import read_shape

    return read_shape(path, up or None, program=program or None, note=note)


def edit_settings(
    path: Path,
    source_prompt: str | None = None,
    note: Callable[[str], None] = lambda text: None,
    *,
    program: str | None = None,
    up: str | None = None,
    mask: str | None = None,
    prompted: bool = True,
) -> dict[str, Any]:
    """Return the settings of a run that starts from a splat: the file, its prompt, and its placement.

    Args:
        path: a splat file, a point cloud, a mesh, or the folder of a finished run.
        source_prompt: what it shows; by default the run's own prompt.
        note: called with a line about what of the file is left out.
        program: that wrote it, see `formats.read_splat`.
        up: the axis up in the file.
        mask: what may change, see `scene.masks`.
        prompted: whether its prompt must be known.

    Raises:
        UserError: it cannot be read, is empty, or its prompt is unknown.
    """
    splat = path
    if path.is_dir():
        if not (path / RESULT).is_file():
            raise UserError(f"{path}: there is no finished run (no {RESULT})")
        from splatdistill.config.load import load

        source_prompt = load(path / CONFIG).prompt if source_prompt is None else source_prompt
        splat = path / RESULT
    if not splat.exists():
        raise UserError(f"there is no {splat}; give a splat file, or the folder of a finished run")
    if prompted and not (source_prompt and source_prompt.strip()):
        raise UserError("what does the splat show? say it with --source-prompt 'a red car'")
    from splatdistill.scene.gaussians import placement
    from splatdistill.scene.masks import is_words, read_mask

    gaussians = read_start(splat, program or "", up or "", note)
    region = None if not mask or is_words(mask) else read_mask(mask, gaussians)
    shift, scale = placement(gaussians, besides=None if region is None else region.tips)
    found = {"splat": str(splat), "source_prompt": source_prompt or "", "shift": list(shift), "scale": scale}
    given = {"program": program, "up": up, "mask": mask}
    return found | {key: value for key, value in given.items() if value}


def mask_picture(config: Config, path: Path, device: str | None = None) -> tuple[int, int]:
    """Write a PNG of a splat, above the same views with what its mask covers in red; run nothing.

    Returns:
        How many Gaussians it covers, and how many there are. Raises UserError as `make_run` does.
    """
    from splatdistill.media.sheets import compare
    from splatdistill.scene.gaussians import painted
    from splatdistill.scene.masks import is_words
    from splatdistill.training.origin import found_mask

    place = pick_device(device)
    origin = read_source(config, path.parent, place, resume=False)
    if origin is not None and is_words(config.edit.mask):
        origin = found_mask(config, teacher_of(config, place), origin)
    if origin is None:
        raise UserError("there is no splat whose mask could be shown")
    rows = origin.changeable
    compare(origin.placed, painted(origin.placed, rows, (1.0, 0.0, 0.0)), path, config.report)
    return int(rows.sum()), len(rows)


def name_of(config: Config) -> str:
    """Return the default name of a run's folder, without the seed."""
    return slug(config.prompt or Path(config.image.path).stem)


def slug(text: str) -> str:
    """Return a folder name made of the letters and digits of a text.

    Where letters of other scripts or a long rest are left out, a short hash tells such texts apart.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if text.isascii() and 0 < len(plain) <= LETTERS:
        return plain
    mark = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{plain[:LETTERS].strip('-') or 'splat'}-{mark}"
