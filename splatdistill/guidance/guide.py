"""What pulls a run's pictures toward the prompt: a teacher by distillation, or CLIP by its similarity."""

import dataclasses
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from splatdistill.config.presets import is_embedded
from splatdistill.config.schema import Config
from splatdistill.guidance import Distillation, Method, Source, distill
from splatdistill.guidance.clip import clip_loss
from splatdistill.guidance.prompts import PromptCache, ViewPrompts, conditioning
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.priors.clip import Scorer
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.rendering import render


class Shot(NamedTuple):
    """The pictures of one step: rgb [V,H,W,3] by cameras [V] before backgrounds [V,3], named or not."""

    rgb: Tensor
    cameras: Cameras
    background: Tensor
    names: list[str] | None


class Guided(NamedTuple):
    """What a guide says: a loss, the timesteps t [V] that it asked about, and how it came to the loss."""

    loss: Tensor
    t: Tensor
    distillation: Distillation | None = None


class Guide(Protocol):
    """Looks at the pictures of a step."""

    def __call__(self, shot: Shot, progress: float, generator: torch.Generator) -> Guided:
        """progress: the share of the run that is done."""
        ...


class Teacher:
    """A diffusion model that is asked about noised pictures; with the splat that is edited, about both."""

    def __init__(
        self, config: Config, method: Method, prior: Prior, origin: torch.nn.ParameterDict | None = None
    ) -> None:
        self.config, self.method, self.prior, self.origin = config, method, prior, origin
        self.cache = PromptCache(prior)
        against = config.negative_prompt or method.negative  # where the method asks for a text beside
        if method.negative is None or (not config.negative_prompt and is_embedded(config.prior.name)):
            against = None
        self.against = against
        null = "" if method.negative is not None else config.negative_prompt
        words = prior.view_words and config.guidance.mode != "plain"
        self.prompts = ViewPrompts(config.prompt, null, words)
        self.source_prompts = ViewPrompts(config.edit.source_prompt, null, words)

    def __call__(self, shot: Shot, progress: float, generator: torch.Generator) -> Guided:
        """Noise the latents, ask, and take the disagreement as the gradient."""
        prior, method = self.prior, self.method
        z = prior.encode(shot.rgb.permute(0, 3, 1, 2))  # [V, C, h, w]
        levels = len(prior.alphas_cumprod)
        t = method.timesteps.sample(progress, len(z), levels, generator, prior.group)  # [V]
        cond, source = self.branches(self.prompts, shot), self.source(shot)
        distillation = distill(prior, z, t, cond, method, generator, source, shot.cameras)
        return Guided(distillation.loss, t, distillation)

    def branches(self, prompts: ViewPrompts, shot: Shot) -> Conditioning:
        """The guidance branches for the pictures."""
        guidance = self.config.guidance
        cond = conditioning(prompts, self.cache, shot.cameras, shot.names, guidance.scale, guidance.mode)
        if self.against is not None:
            cond = dataclasses.replace(cond, negative=self.cache([self.against] * len(shot.cameras)))
        return self.prior.with_cameras(cond, shot.cameras, shot.background)

    @torch.no_grad()
    def source(self, shot: Shot) -> Source | None:
        """In an edit, the splat as it was, in the same views, with its own branches."""
        if self.origin is None:
            return None
        before = render(self.origin, shot.cameras, shot.background).rgb
        return Source(self.prior.encode(before.permute(0, 3, 1, 2)), self.branches(self.source_prompts, shot))


class Critic:
    """CLIP, which compares the pictures with the prompts, view and background named as for a teacher."""

    def __init__(self, config: Config, scorer: Scorer) -> None:
        self.scorer, self.scale = scorer, config.guidance.scale
        self.prompts = ViewPrompts(config.prompt, "")

    def __call__(self, shot: Shot, progress: float, generator: torch.Generator) -> Guided:
        """The loss, at timestep 0."""
        texts = self.prompts.texts(shot.cameras, shot.names)
        loss = clip_loss(self.scorer, shot.rgb.permute(0, 3, 1, 2), texts, generator)
        return Guided(self.scale * loss, torch.zeros(len(texts)))


def make_guide(
    config: Config, method: Method, prior: Prior, origin: torch.nn.ParameterDict | None = None
) -> Guide:
    """The guide that the method wants. origin: the splat that is edited."""
    if method.by_clip:
        return Critic(config, Scorer.load(config.guidance.clip, prior.device))
    return Teacher(config, method, prior, origin)
