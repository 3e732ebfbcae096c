"""Optimization against a scorer without a diffusion model: the baseline of Dream Fields and CLIP-Mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.guidance.core import Distiller, GuideResult, Method, Views
from splatdistill.guidance.query import State
from splatdistill.priors.base import Prior

if TYPE_CHECKING:
    from splatdistill.priors.scorers import Agrees

SMALLEST_CROP = 0.8  # as a share of the side


class LoadedScorer(State):
    """The scorer of a run, which is constant."""

    def __init__(self, scorer: Agrees) -> None:
        self.scorer = scorer


@dataclass(frozen=True)
class CLIP(Method):
    """Dream Fields, 2112.01455, and CLIP-Mesh, 2203.13333: no teacher, but 100 (1 - cos(picture, text)).

    100 is the scale of CLIP's logits; `guidance` is a factor of the loss, and there is no timestep.

    Args:
        scorer: the folder of a CLIP model, owner/name@COMMIT of the hub, or "judge", that in the teacher's
            folder, with the log of its probability for the cosine.
    """

    name: ClassVar[str] = "clip"
    reads_latents: ClassVar[bool] = False

    guidance: float = 1.0
    scorer: str = "judge"

    def start(self, prior: Prior, seed: int) -> LoadedScorer:
        """Load the scorer; raises UserError when it cannot be read."""
        from splatdistill.priors.scorers import load_scorer

        return LoadedScorer(load_scorer(self.scorer, prior))

    def evaluate(
        self, guide: Distiller, views: Views, progress: float, generator: torch.Generator | None
    ) -> GuideResult:
        """Compare the pictures with the prompt, view and background named as for a teacher."""
        assert isinstance(guide.state, LoadedScorer)
        texts = guide.prompts.texts(views.cameras, views.names, len(views.rgb))
        loss = clip_loss(guide.state.scorer, views.rgb.permute(0, 3, 1, 2), texts, generator)
        return GuideResult(self.guidance * loss, torch.zeros(len(texts)))


def clip_loss(
    scorer: Agrees, rgb: Tensor, texts: list[str], generator: torch.Generator | None = None
) -> Tensor:
    """Return scale (1 - agreement of picture and text), averaged over pictures [V,3,H,W] in [0,1].

    Sources: Dream Fields (2112.01455), eq. 2, and CLIP-Mesh (2203.13333). Each picture is compared in one
    random square crop, as in both: without crops the gradient finds what only CLIP can see.
    """
    side = rgb.shape[-1]
    share = SMALLEST_CROP + (1.0 - SMALLEST_CROP) * torch.rand(len(rgb), generator=generator)
    place = torch.rand(len(rgb), 2, generator=generator)
    crops = []
    for picture, length, (down, right) in zip(
        rgb, (share * side).long().tolist(), place.tolist(), strict=True
    ):
        top, left = int(down * (side - length)), int(right * (side - length))
        crop = picture[None, :, top : top + length, left : left + length]
        size = (scorer.size, scorer.size)
        crops.append(F.interpolate(crop, size, mode="bilinear", antialias=length > scorer.size))
    return scorer.scale * (1.0 - scorer.agreement(torch.cat(crops), texts)).mean()
