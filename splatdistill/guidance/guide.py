"""From a step's images to one loss: a prior, a method, a prompt, and the state of a run."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import ParameterDict
from torch.utils.checkpoint import checkpoint

from splatdistill.guidance.core import PROMPT, GuideResult, Method, Views, distill
from splatdistill.guidance.prompts import PromptCache, ViewPrompts, conditioning
from splatdistill.guidance.query import Source, State
from splatdistill.guidance.reward import Reward
from splatdistill.priors.base import Conditioning, Prior
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.views import VIEW_WORDS

ViewMode = Literal["view", "perp_neg", "plain"]


class Guide:
    """Score distillation in one call, for any renderer and trainer.

    Example:
        guide = Guide(load_prior("sd21", "cuda"), SDI(guidance=7.5), "a red mushroom", views="perp_neg")
        out = guide(rgb, step / steps, cameras, generator=generator)  # rgb [V,H,W,3]
        out.loss.backward()

    Args:
        prior: the teacher.
        method: the distillation method; see METHODS.
        prompt: what the pictures should show.
        negative: what they should not show; it takes the null text's place.
        views: name the view in the prompt ("view"), make the other views negatives as well ("perp_neg",
            2304.04968), or neither ("plain"). A prior that reads cameras needs neither.
        source_prompt: of an edit, what the source shows.
        reward: weighs several evaluations by a scorer; None for one.
        seed: decides the method's own random state (DSD's path, VSD's student).
        state: the method's, of a run that goes on; None for a new one.
        slice: pictures that are encoded at a time, for less memory; 0 for all.

    Raises:
        UserError: the prior cannot serve this method.
    """

    def __init__(
        self,
        prior: Prior,
        method: Method,
        prompt: str,
        *,
        negative: str = "",
        views: ViewMode = "view",
        source_prompt: str = "",
        seed: int = 0,
        state: State | None = None,
        reward: Reward | None = None,
        slice: int = 0,
    ) -> None:
        if views not in ("view", "perp_neg", "plain"):
            raise ValueError(f"views must be 'view', 'perp_neg' or 'plain', got {views!r}")
        self.prior, self.method, self.reward = prior, method, reward
        self.mode: ViewMode = views
        self.slice = slice
        self.state = method.start(prior, seed) if state is None else state
        self.cache = PromptCache(prior)
        others = method.other_texts(negative, prior.vocabulary is None)
        null = "" if negative in others else negative
        words = prior.view_words and views != "plain"
        self.others = [
            ViewPrompts(text.replace(PROMPT, prompt), "", words and PROMPT in text, prior.fit)
            for text in others
        ]
        self.prompts = ViewPrompts(prompt, null, words, prior.fit)
        self.source_prompts = ViewPrompts(source_prompt, null, words, prior.fit)
        asked = [self.prompts, *self.others, *([self.source_prompts] if method.edits else [])]
        prior.expect([null, *(each.text(view) for each in asked for view in VIEW_WORDS)])

    def __call__(
        self,
        rgb: Tensor,
        progress: float,
        cameras: Cameras | None = None,
        *,
        generator: torch.Generator | None = None,
        background: Tensor | None = None,
        names: list[str] | None = None,
        source: Tensor | None = None,
        scene: ParameterDict | None = None,
    ) -> GuideResult:
        """Return the loss of a step's images, with the teacher's evaluation of them.

        Args:
            rgb: images [V,H,W,3] in [0,1], of any size.
            progress: the share of the run that is done, in [0,1].
            cameras: [V]; needed for view prompts and by priors that read cameras.
            generator: source of timesteps and noise; None for torch's global one.
            background: plain colors behind the images [V,3]; None for white.
            names: the backgrounds' names, for a teacher whose captions name them.
            source: of an edit, the same views [V,H,W,3] of the source.
            scene: the Gaussians that were drawn, for a method that carries something on them (CFD).

        Raises:
            ValueError: shapes or counts that do not fit.
        """
        if rgb.ndim != 4 or rgb.shape[-1] != 3:
            raise ValueError(f"rgb: expected [V, H, W, 3], got {list(rgb.shape)}")
        if cameras is not None and len(cameras) != len(rgb):
            raise ValueError(f"cameras: expected {len(rgb)}, as many as pictures, got {len(cameras)}")
        if len(rgb) % self.prior.group:
            raise ValueError(f"this prior reads {self.prior.group} views together, got {len(rgb)}")
        if cameras is None and (self.prompts.view_words or self.prior.needs_cameras):
            raise ValueError("this guide depends on the view: give cameras, or Guide(views='plain')")
        if background is None:
            background = torch.ones(len(rgb), 3, device=rgb.device)
        views = Views(rgb, cameras, background, names, source, scene)
        return self.method.evaluate(self, views, progress, generator)

    def distill(self, views: Views, progress: float, generator: torch.Generator | None) -> GuideResult:
        """Encode the pictures, draw timesteps, and distill; the default of `Method.evaluate`."""
        prior, method = self.prior, self.method
        z = self.encode(views.rgb.permute(0, 3, 1, 2))  # [V, C, h, w]
        levels = len(prior.alphas_cumprod)
        t = method.timesteps.sample(progress, len(z), levels, generator, prior.group)  # [V]
        cond, source = self.conditioning(self.prompts, views), self._source(views)
        here = (source, views.cameras, self.state, views.scene, progress)
        if self.reward is None:
            found = distill(prior, z, t, cond, method, generator, *here)
        else:
            several = [
                distill(prior, z, t, cond, method, generator, *here) for _ in range(self.reward.config.n)
            ]
            texts = self.prompts.texts(views.cameras, views.names, len(z))
            found = self.reward.combined(prior, z, several, texts)
        return GuideResult(found.loss, t, found)

    def encode(self, rgb: Tensor) -> Tensor:
        """Return the latents of pictures [V,3,H,W]; the activations of one slice are in memory at a time."""
        if not 0 < self.slice < len(rgb):
            return self.prior.encode(rgb)
        settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(self.prior.encode, part, **settings) for part in rgb.split(self.slice)])

    def conditioning(self, prompts: ViewPrompts, views: Views) -> Conditioning:
        """Return the guidance branches of the pictures, at the method's scale."""
        cond = conditioning(
            prompts, self.cache, views.cameras, views.names, self.method.guidance, self.mode, len(views.rgb)
        )
        if self.others:
            count = len(views.rgb)
            texts = [other.texts(views.cameras, None, count) for other in self.others]
            cond = replace(cond, others=torch.stack([self.cache(text) for text in texts]))
        if views.cameras is None:
            return cond
        assert views.background is not None
        return self.prior.with_cameras(cond, views.cameras, views.background)

    @torch.no_grad()
    def _source(self, views: Views) -> Source | None:
        if views.source is None:
            return None
        z = self.prior.encode(views.source.permute(0, 3, 1, 2))
        return Source(z, self.conditioning(self.source_prompts, views))

    def state_dict(self) -> dict[str, Any]:
        """Return the method's state; settings and prompts are the caller's."""
        return self.state.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a state_dict."""
        self.state.load_state_dict(saved)
