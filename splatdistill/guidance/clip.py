"""CLIP as the judge of pictures, without a diffusion model: the baseline of Dream Fields and CLIP-Mesh."""

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill.priors.clip import Scorer, image_embeddings

SCALE = 100.0  # CLIP's own, of its logits
LEAST = 0.8  # the smallest crop, as a share of the side


def clip_loss(
    scorer: Scorer, rgb: Tensor, texts: list[str], generator: torch.Generator | None = None
) -> Tensor:
    """100 (1 - cos(picture, text)), summed over a picture and averaged over pictures [V,3,H,W] in [0,1].

    Sources: Dream Fields (2112.01455), eq. 2, and CLIP-Mesh (2203.13333). Each picture is seen in one random
    square crop, as in both: without crops the gradient finds what only CLIP can see.
    """
    side = rgb.shape[-1]
    share = LEAST + (1.0 - LEAST) * torch.rand(len(rgb), generator=generator)
    place = torch.rand(len(rgb), 2, generator=generator)
    seen = []
    for picture, length, (down, right) in zip(
        rgb, (share * side).long().tolist(), place.tolist(), strict=True
    ):
        top, left = int(down * (side - length)), int(right * (side - length))
        crop = picture[None, :, top : top + length, left : left + length]
        size = (scorer.size, scorer.size)
        seen.append(F.interpolate(crop, size, mode="bilinear", antialias=length > scorer.size))
    pixels = (torch.cat(seen) - scorer.mean) / scorer.std
    cosine = (image_embeddings(scorer.model, pixels) * scorer.texts(texts)).sum(dim=1)
    return SCALE * (1.0 - cosine).mean()
