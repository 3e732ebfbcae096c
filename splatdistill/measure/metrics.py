"""Metrics of generated images and of sets of samples: pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Interval = tuple[float, float]
T = TypeVar("T")


def r_precision(images: Tensor, texts: Tensor, right: Tensor) -> Tensor:
    """Return whether each image is nearest to its own text: [n] bool (DreamFusion's protocol, 2209.14988).

    Args:
        images: unit embeddings [n, D].
        texts: unit embeddings [m, D].
        right: the index of each image's own text [n].
    """
    return (images @ texts.mT).argmax(-1) == right


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """Return 100 max(cosine, 0) of images with their texts, unit embeddings [n, D]: [n] (2104.08718)."""
    return 100.0 * (images * texts).sum(-1).clamp(min=0.0)


def antonym_score(images: Tensor, good: Tensor, bad: Tensor, scale: float = 100.0) -> Tensor:
    """Return how much more an image is like one text than like its opposite: [n] in (0, 1).

    CLIP-IQA (2207.12396): the softmax of the two scaled cosines. images [n, D], good and bad [D]: unit
    embeddings.
    """
    return (scale * images @ torch.stack([good, bad]).mT).softmax(-1)[:, 0]


def likeness_to_front(images: Tensor, azimuths_deg: Tensor) -> float:
    """Return the mean cosine of the front view with those from behind, from above 120 degrees.

    The higher, the more alike a back is to the front: near 1 for what has no front, and for a Janus.
    images: unit embeddings [n, D] of views at these azimuths [n].
    """
    away = ((azimuths_deg + 180.0) % 360.0 - 180.0).abs()
    return (images[away > 120.0] @ images[away.argmin()]).mean().item()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio [n] in dB of images [n, 3, H, W] in [0, 1]; at most 100."""
    return psnr_of_error((images - others).square().flatten(1).mean(1))


def psnr_of_error(mse: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of mean squared errors of values in [0, 1]; at most 100."""
    return -10.0 * mse.clamp(min=1e-10).log10()


def saturation(images: Tensor) -> Tensor:
    """Return the mean HSV saturation [n] of the pixels of images [n, 3, H, W] in [0, 1]."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean((-2, -1))


def high_frequency_ratio(images: Tensor) -> Tensor:
    """Return the share [n] of spectral energy above half of Nyquist in images [n, 3, H, W], mean removed."""
    power = torch.fft.fft2(images - images.mean((-2, -1), keepdim=True)).abs().square().sum(1)  # [n, H, W]
    y, x = (torch.fft.fftfreq(size, device=images.device) for size in images.shape[-2:])
    high = (y[:, None].square() + x.square()).sqrt() > 0.25  # cycles a pixel
    return (power * high).sum((-2, -1)) / power.sum((-2, -1)).clamp(min=1e-12)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of normal distributions fitted to features a [n, D], b [m, D] (1706.08500).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)); needs at least two of each.
    """
    means, spreads = [], []
    for x in (a.double(), b.double()):
        means.append(x.mean(0))
        spread = (x - x.mean(0)) / (len(x) - 1) ** 0.5  # its square is the covariance
        spreads.append(torch.linalg.qr(spread, mode="r").R)  # of no more rows than columns, the same square
    first, second = spreads
    # tr (A B)^(1/2) is the sum of the singular values of the spreads' product
    cross = torch.linalg.svdvals(first @ second.mT).sum()
    apart = (means[0] - means[1]).square().sum()
    return max((apart + first.square().sum() + second.square().sum() - 2.0 * cross).item(), 0.0)


def pairwise_distance(features: Tensor) -> float:
    """Return the mean cosine distance between distinct rows of features [n, D]; 0 for a single row."""
    if len(features) < 2:
        return 0.0
    unit = F.normalize(features.double(), dim=-1)
    similarity = unit @ unit.mT
    return 1.0 - ((similarity.sum() - similarity.trace()) / (len(unit) * (len(unit) - 1))).item()


def vendi_score(features: Tensor) -> float:
    """Return the effective number of different features [n, D], from 1 (all alike) to n (2210.02410)."""
    unit = F.normalize(features.double(), dim=-1)
    values = torch.linalg.eigvalsh(unit @ unit.mT / len(unit)).clamp(min=1e-12)
    return math.exp(-(values * values.log()).sum().item())


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> Interval:
    """Return the 95 % interval of a rate of `hits` in `count` (Wilson 1927); (0, 1) for a count of 0."""
    if count == 0:
        return 0.0, 1.0
    rate, spread = hits / count, z * z / count
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / count + spread / (4 * count))
    return max(center - half, 0.0), min(center + half, 1.0)


def bootstrap_interval(values: Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of the mean of values [n]; (nan, nan) without values."""
    if len(values) == 0:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    low, high = values.double().cpu()[rows].mean(-1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def jackknife_interval(
    statistic: Callable[[Sequence[Sequence[T]]], float], strata: Sequence[Sequence[T]], z: float = 1.959964
) -> Interval:
    """Return the 95 % interval of a statistic of independent strata, by leaving one item out at a time.

    For what is no mean, such as one over pairs, where a bootstrap would pair an item with itself. The
    variance is the sum over strata of (n - 1) / n sum_i (s_i - mean s)^2, with s_i the statistic without item
    i (Efron and Stein 1981: too large rather than too small).

    Args:
        statistic: of strata, each of at least one item.
        strata: each of at least two.
        z: of the normal distribution.
    """
    variance = 0.0
    for place, items in enumerate(strata):
        left = [
            statistic([*strata[:place], [*items[:i], *items[i + 1 :]], *strata[place + 1 :]])
            for i in range(len(items))
        ]
        values = torch.tensor(left, dtype=torch.float64)
        variance += (len(items) - 1) / len(items) * (values - values.mean()).square().sum().item()
    value, half = statistic(strata), z * math.sqrt(variance)
    return value - half, value + half
