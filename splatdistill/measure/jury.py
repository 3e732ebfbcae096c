"""What a splat shows, by the judge and the true models in its teacher's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill.errors import UserError
from splatdistill.folder import RESULT
from splatdistill.formats.ply import read_ply
from splatdistill.measure.truth import Truth
from splatdistill.priors.judge import FOLDER, SIDE, TRUTH, Judge
from splatdistill.priors.loading import locate, words_of
from splatdistill.priors.reading import Vocabulary
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.likeness import framed, pieces
from splatdistill.scene.rendering import render

VIEWS, SIZE = 12, 128  # of the turntable that is judged
NONE = "(none of the nouns)"
ON_TOP = "on top of"


@dataclass(frozen=True)
class Jury:
    """The judge of a teacher's folder, its vocabulary, and where it has them, the true models."""

    judge: Judge
    vocabulary: Vocabulary
    truth: Truth | None

    @classmethod
    def of(cls, prior: str) -> Jury | None:
        """Return the jury in a prior's folder; None where it has none."""
        vocabulary = words_of(prior)
        if not isinstance(vocabulary, Vocabulary):
            return None
        folder = locate(prior).root / FOLDER
        if not folder.is_dir():
            return None
        truth = Truth.load(folder) if (folder / TRUTH).is_file() else None
        return cls(Judge.load(folder), vocabulary, truth)

    def names(self, rgb: Tensor, prompt: str) -> bool:
        """Return whether pictures [n, 3, S, S] of one thing, on white, are named as a prompt of one thing."""
        (asked,) = self.vocabulary.asked(prompt)
        said = self.judge.verdict(self.judge.framed(rgb))
        return not said.none and said.place(asked.right) == 0

    def row(self, run: Path, prompt: str) -> dict[str, Any]:
        """Return the figures of a finished run."""
        return self.verdict(prompt, *turned(run))

    def verdict(self, prompt: str, rgb: Tensor, alpha: Tensor) -> dict[str, Any]:
        """Return what views [V, 3, S, S] on white with coverage [V, 1, S, S] show of a prompt.

        object: whether all things that were asked for are named, each of two in a part of the views;
        object_first_five: whether they are among the first five; nothing: whether it shows none of the nouns.
        The figures of `Truth.compare` are there for one thing of a noun that has models, color_share only
        where the prompt names no color of its own.
        """
        try:
            things = self.vocabulary.asked(prompt)
        except UserError:
            return {}
        views = [framed(rgb, alpha, SIDE)]
        if len(things) > 1:
            relation = self.vocabulary.scene(self.vocabulary.understand(prompt)[0])[1]
            views = list(pieces(rgb, alpha, relation == ON_TOP, SIDE)) or views
        told = [said for part in views if not (said := self.judge.verdict(part)).none]
        places = [[p for said in told if (p := said.place(thing.right)) is not None] for thing in things]
        called = told[0].nouns if len(things) == 1 and told else [said.nouns[0] for said in told]
        row: dict[str, Any] = {
            "asked": [thing.noun for thing in things],
            "called": list(dict.fromkeys(called)) or [NONE],
            "sure": max((said.probabilities[0] for said in told), default=0.0),
            "nothing": not told,
            "object": all(0 in found for found in places),
            "object_first_five": all(places),
        }
        if self.truth is None or len(things) != 1 or things[0].noun not in self.truth.usual:
            return row
        row |= self.truth.compare(things[0].noun, rgb, alpha)
        row["janus"] = row.pop("second_front")
        if set(self.vocabulary.understand(prompt)[0].split()) & set(self.vocabulary.colors):
            row["color_share"] = None
        return row


def turned(run: Path) -> tuple[Tensor, Tensor]:
    """Return the views [VIEWS, 3, SIZE, SIZE] of a finished run on white, and their coverage."""
    return around(read_ply(run / RESULT)[0])


def around(gaussians: ParameterDict) -> tuple[Tensor, Tensor]:
    """Return the views [VIEWS, 3, SIZE, SIZE] of a splat on white, and their coverage."""
    with torch.no_grad():
        seen = render(gaussians, turntable(VIEWS, *EVALUATION_VIEW, SIZE), torch.ones(3))
    rgb, alpha = (x.permute(0, 3, 1, 2).clamp(0, 1).cpu() for x in (seen.rgb, seen.alpha))
    return rgb, alpha


def confusions(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of what was asked for and what it was called, the commonest first, tab-separated."""
    pairs = Counter((" + ".join(row["asked"]), row["called"][0]) for row in rows if row.get("called"))
    lines = [f"{asked}\t{called}\t{count}" for (asked, called), count in pairs.most_common()]
    return "\n".join(["asked\tcalled\tcount", *lines]) + "\n"
