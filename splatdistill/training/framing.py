"""The place of a splat on which something is put: so that this is where the teacher draws it.

A teacher with an album draws two things at places that it was taught: "a hat on top of a barrel" fills its
view, the barrel below and the hat above. A splat of the barrel alone fills the view by itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatdistill.config.schema import Config
from splatdistill.priors.album import FILE, Album, standing
from splatdistill.priors.loading import locate, words_of
from splatdistill.priors.reading import Vocabulary
from splatdistill.scene.gaussians import extent
from splatdistill.scene.masks import ABOVE, box_text, is_file, is_words, read_mask
from splatdistill.training.inputs import read_start

ON_TOP = "on top of"
ROOM = 1.12  # of the box on top of a splat, beside what is drawn there
LARGEST, FARTHEST = 2.0, 1.0  # change of a splat's size, and its distance from the middle, that are too much


def drawn_on_top(prior: str, prompt: str, seed: int) -> list[tuple[Tensor, Tensor]] | None:
    """Return the middle and half sides [3] of the boxes at which a teacher draws a thing, and what it is on.

    None where the prompt is of no such pair, or the teacher has no album.
    """
    vocabulary = words_of(prior)
    if not isinstance(vocabulary, Vocabulary):
        return None
    path = locate(prior).root / FILE
    things, relation = vocabulary.scene(vocabulary.understand(prompt, strict=False)[0])
    if len(things) != 2 or relation != ON_TOP or not path.is_file():
        return None
    album = Album.load(path)
    models = [album.find(noun, words) for noun, words in things]
    if not all(models):
        return None
    upper, lower = (album.halves[found[seed % len(found)]] for found in models)
    boxes = standing(upper, lower, ON_TOP)
    return [(torch.from_numpy(middle).float(), torch.from_numpy(half).float()) for middle, half in boxes]


def framed(config: Config) -> Config:
    """Return the configuration of an edit that puts something on a splat, with the splat where it belongs.

    With `above` the splat gets the size at which the teacher draws it, and the region becomes a box about
    what is drawn on top. Of another region the bottom is where that stands, as large as there is room for
    it. Any other edit, and a region far from the splat or of another size, is left as it is.
    """
    edit = config.edit
    if not edit.mask or is_words(edit.mask) or is_file(edit.mask):
        return config
    drawn = drawn_on_top(config.prior.name, config.prompt, config.seed)
    if drawn is None:
        return config
    (middle, half), (_, below) = drawn
    up = torch.tensor([0.0, 0.0, 1.0])
    splat = read_start(edit.splat, edit.program, edit.up)
    region, tight = read_mask(edit.mask, splat), edit.mask.strip().lower() == ABOVE
    stand = region.middle - up * region.half
    if tight:
        low, high = extent(splat)
        scale = float(2 * below.max() / (high - low).max().clamp(min=1e-6))
        box = ROOM * half / scale
        edit = replace(edit, mask=box_text(stand + box * up, box))
    else:
        scale = float((half / region.half).max())
    shift = (middle - up * half) / scale - stand
    off = float((shift - torch.tensor(edit.shift)).norm()) * scale
    if not tight and (not 1 / LARGEST <= scale / edit.scale <= LARGEST or off > FARTHEST):
        return config
    x, y, z = shift.tolist()
    return replace(config, edit=replace(edit, shift=(x, y, z), scale=scale))
