"""What says how well pictures agree with texts: the judge in a teacher's folder, or a CLIP model."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.errors import UserError
from splatdistill.priors.base import Prior
from splatdistill.priors.judge import FOLDER, Judge
from splatdistill.priors.loading import locate, words_of
from splatdistill.priors.reading import Vocabulary
from splatdistill.scene.likeness import WHITE

JUDGE = "judge"  # the name of the one in the teacher's folder


class Agrees(Protocol):
    """A scorer of pictures and texts."""

    size: int  # pixels of the pictures
    scale: float  # of agreements: what makes logits of them

    def agreement(self, rgb: Tensor, texts: list[str]) -> Tensor:
        """Return how well pictures [n, 3, S, S] in [0, 1] agree with a text each, [n]; differentiable."""
        ...


class Naming:
    """A judge as a scorer: the log of how surely it names what a text asks for, of several things the mean.

    A picture's background is the color of its corners.
    """

    size, scale = Judge.size, 1.0

    def __init__(self, judge: Judge, vocabulary: Vocabulary) -> None:
        self.judge, self.vocabulary = judge, vocabulary

    def agreement(self, rgb: Tensor, texts: list[str]) -> Tensor:
        """Return log probabilities [n] of pictures [n, 3, S, S]; UserError for a text that names nothing."""
        logits = self.judge.network(self.judge.framed(on_white(rgb.cpu())))
        known = F.log_softmax(logits / self.judge.temperature, 1)
        rows = []
        for row, text in zip(known, texts, strict=True):
            asked = self.vocabulary.asked(text)
            right = [[self.judge.nouns.index(noun) for noun in thing.right] for thing in asked]
            rows.append(torch.stack([row[nouns].logsumexp(0) for nouns in right]).mean())
        return torch.stack(rows).to(rgb.device) + 0 * rgb.sum()  # a function of it, also of nothing


def on_white(rgb: Tensor) -> Tensor:
    """Return pictures [n, 3, S, S] with white where they have the color of their corners."""
    corners = rgb[..., [0, 0, -1, -1], [0, -1, 0, -1]].detach()  # [n, 3, 4]
    background = corners.median(-1).values[..., None, None]
    there = (rgb.detach() - background).abs().amax(1, keepdim=True) > WHITE
    return torch.where(there, rgb, torch.ones_like(rgb))


def load_scorer(name: str, prior: Prior) -> Agrees:
    """Load JUDGE, a CLIP model's folder, or one of the hub as owner/name@COMMIT.

    Raises UserError when it cannot be loaded, or the teacher has no judge.
    """
    if name != JUDGE:
        from splatdistill.priors.clip import Scorer

        return Scorer.load(name, prior.device)
    words = words_of(prior.name)
    if not isinstance(words, Vocabulary) or not (folder := locate(prior.name).root / FOLDER).is_dir():
        raise UserError(
            f"the teacher '{prior.name}' has no judge; name a CLIP model with method.scorer= or "
            "reward.scorer=: its folder, or owner/name@COMMIT of the hub"
        )
    return Naming(Judge.load(folder), words)
