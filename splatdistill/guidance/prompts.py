"""View-dependent prompts, perp-neg branches and the embedding cache."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.priors.base import Conditioning, Prior, cfg
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.views import OVERHEAD_DEG, VIEW_WORDS, angle_from_front, view_word

RGB = tuple[float, float, float]
Fit = Callable[[str, Sequence[str]], str]  # see `Prior.fit`

# (a, b, c) of the negative weights -(a exp(-b r) + c), from 2304.04968: which negative, in which quarter.
F_SIDE_BACK = (1.0, 0.5, -0.606)  # "side" between side and back
F_FRONT_SIDE_BACK = (1.0, 0.5, 0.967)  # "front" between side and back
F_FRONT_SIDE = (4.0, 0.5, -2.426)  # "front" between front and side
F_SIDE_FRONT = (4.0, 0.5, -2.426)  # "side" between front and side


@dataclass(frozen=True)
class ViewPrompts:
    """A prompt that follows the camera; `negative` replaces the empty text in the null branch.

    With view_words False the view is not named, for a teacher conditioned on cameras. `fit` is that of the
    prior that reads the texts: it cuts a prompt that is too long, at the same place in all views, and never
    the words after it; None for no cut.
    """

    prompt: str
    negative: str = ""
    view_words: bool = True
    fit: Fit | None = None
    _cut: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict, repr=False, compare=False)

    def text(self, view: str, background: str | None = None) -> str:
        """Return the prompt with its view words and, where the background has a name, "NAME background"."""
        words = [
            self.read(self.prompt, background, VIEW_WORDS if self.view_words else ("",)),
            view if self.view_words else "",
            f"{background} background" if background else "",
        ]
        return ", ".join(word for word in words if word)

    def null_text(self, background: str | None = None) -> str:
        """Return the text of the null branch: `negative` and the background, which is thus not guided."""
        parts = [self.read(self.negative, background, ("",))]
        parts += [f"{background} background"] if background else []
        return ", ".join(filter(None, parts))

    def read(self, text: str, background: str | None, views: Sequence[str]) -> str:
        """Return the part of a text that is read with any of the view words and the background behind it."""
        tail = f", {background} background" if background else ""
        suffixes = tuple(f", {view}{tail}" if view else tail for view in views)
        if self.fit is not None and (text, suffixes) not in self._cut:
            self._cut[text, suffixes] = self.fit(text, suffixes)
        return self._cut.get((text, suffixes), text)

    def left_out(self, backgrounds: Iterable[str | None] = (None,), called: str = "prompt") -> list[str]:
        """Return a line for each text that is cut, with the part that is never read.

        backgrounds: that are named. called: what a user calls the prompt.
        """
        lines, backgrounds = [], list(backgrounds)
        views = VIEW_WORDS if self.view_words else ("",)
        for name, text, words in ((called, self.prompt, views), ("negative prompt", self.negative, ("",))):
            kept = min((self.read(text, background, words) for background in backgrounds), key=len)
            if rest := text[len(kept) :].strip(" ,;"):
                lines.append(f"the {name} is longer than the teacher reads; left out is: {rest}")
        return lines

    def texts(
        self,
        cameras: Cameras | None,
        background_names: Sequence[str | None] | None = None,
        count: int | None = None,
    ) -> list[str]:
        """Return one text a camera [V]; without cameras, `count` texts that name no view."""
        if cameras is None:
            names = background_names or [None] * (count or 1)
            return [self.text("", name) for name in names]
        names = background_names or [None] * len(cameras)
        angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), names, strict=True)
        return [self.text(view_word(azimuth, elevation), name) for azimuth, elevation, name in angles]


@dataclass
class PromptCache:
    """A cache of embeddings; each distinct text is encoded once."""

    prior: Prior
    embeddings: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [n,L,D] of `texts`; new ones go through the text encoder together."""
        new = [text for text in dict.fromkeys(texts) if text not in self.embeddings]
        if new:
            self.embeddings.update(zip(new, self.prior.embed(new), strict=True))
        return torch.stack([self.embeddings[text] for text in texts])


def pick_backgrounds(
    palette: Mapping[str, RGB], count: int, generator: torch.Generator
) -> tuple[list[str], Tensor]:
    """Draw `count` random entries of `palette`: their names and colors [V,3]."""
    names = list(palette)
    picked = [names[i] for i in torch.randint(len(names), (count,), generator=generator).tolist()]
    return picked, torch.tensor([palette[name] for name in picked])


@dataclass(frozen=True)
class PerpNegMix:
    """Perp-neg branches (2304.04968).

    positive [V,4] mixes the texts of VIEW_WORDS into the positive embedding; weights [2,V] are those of the
    negatives "front view" and "side view", relative to the positive.
    """

    positive: Tensor
    weights: Tensor


def _decay(abc: tuple[float, float, float], r: Tensor) -> Tensor:
    a, b, c = abc
    return -(a * torch.exp(-b * r) + c)


def perp_neg_mix(azimuth_deg: Tensor, elevation_deg: Tensor) -> PerpNegMix:
    """Return the interpolation and weights of Perp-Neg (2304.04968) at azimuth_deg, elevation_deg [V].

    From front (r = 1) to side (r = 0) and from side (r = 1) to back (r = 0); overhead has no negatives.
    """
    azimuth, elevation = azimuth_deg.double().cpu(), elevation_deg.double().cpu()
    angle = angle_from_front(azimuth) / 90.0  # 0 front, 1 side, 2 back
    near, overhead = angle < 1.0, elevation > OVERHEAD_DEG
    r = torch.where(near, 1.0 - angle, 2.0 - angle)
    none = torch.zeros_like(r)
    positive = torch.stack(
        [torch.where(near, r, none), torch.where(near, 1.0 - r, r), torch.where(near, none, 1.0 - r), none],
        dim=1,
    )
    positive[overhead] = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=positive.dtype)
    first = torch.where(near, _decay(F_FRONT_SIDE, r), _decay(F_FRONT_SIDE_BACK, r))  # against "front"
    second = torch.where(near, _decay(F_SIDE_FRONT, 1.0 - r), _decay(F_SIDE_BACK, r))  # against "side"
    weights = torch.stack([first, second]).masked_fill(overhead, 0.0)
    return PerpNegMix(positive.float(), weights.float())


def conditioning(
    prompts: ViewPrompts,
    cache: PromptCache,
    cameras: Cameras | None,
    background_names: Sequence[str | None] | None = None,
    guidance: float | None = 7.5,
    mode: Literal["view", "perp_neg", "plain"] = "view",
    count: int | None = None,
) -> Conditioning:
    """Return the guidance branches for V pictures: CFG with the prompts' texts, or perp-neg branches.

    Args:
        prompts: the texts.
        cache: their embeddings.
        cameras: [V], or None for `count` pictures whose view is not named.
        background_names: one a picture, or None.
        guidance: the scale; None leaves it to the method.
        mode: "perp_neg" for branches that push away from the other views.
        count: V, where there are no cameras.

    Raises:
        ValueError: another mode, or perp-neg without cameras.
    """
    if mode not in ("view", "perp_neg", "plain"):
        raise ValueError(f"conditioning: mode must be 'view', 'perp_neg' or 'plain', got {mode!r}")
    count = len(cameras) if cameras is not None else (count or 1)
    names = background_names or [None] * count
    null = cache([prompts.null_text(name) for name in names])  # [V, L, D]
    if mode != "perp_neg":
        return cfg(null, cache(prompts.texts(cameras, names, count)), guidance)
    if cameras is None:
        raise ValueError("conditioning: perp-neg depends on the view and needs cameras")
    views = torch.stack(
        [cache([prompts.text(word, name) for name in names]) for word in VIEW_WORDS]
    )  # [4, V, L, D]
    mix = perp_neg_mix(cameras.azimuth_deg, cameras.elevation_deg)
    positive = torch.einsum("vk,kvld->vld", ops.send(mix.positive, views), views)
    embeddings = torch.stack([null, positive, views[0], views[1]])
    return Conditioning(embeddings, guidance, negatives=mix.weights)
