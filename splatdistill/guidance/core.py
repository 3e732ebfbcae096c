"""The one skeleton of score distillation, and the one loss scale.

    eps, z_t = method.compare(z, t)
    gradient = w(t) (e_g(z_t) - eps)

A method is one frozen dataclass: its fields are its settings, its methods its behavior; what it learns or
keeps during a run is an explicit State.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import ops
from splatdistill.guidance.prompts import ViewPrompts
from splatdistill.guidance.query import Comparison, Query, Source, State, gaussian_like
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at
from splatdistill.scene.cameras import Cameras

Weight = Callable[[Prior, Tensor], Tensor]
PROMPT = "{prompt}"  # in a method's further text: the prompt of the view


def one(prior: Prior, t: Tensor) -> Tensor:
    """Return w = 1, [B] for t [B]."""
    return torch.ones(len(t), dtype=torch.float64)


def sds_weight(prior: Prior, t: Tensor) -> Tensor:
    """Return w = 1 - alpha_bar, DreamFusion's sigma_t^2, [B] for t [B]."""
    return 1.0 - alpha_bar_at(prior, t)


def x0_weight(prior: Prior, t: Tensor) -> Tensor:
    """Return w = sqrt((1 - alpha_bar) / alpha_bar), with which the gradient is z - x0_hat, [B] for t [B]."""
    alpha_bar = alpha_bar_at(prior, t)
    return ((1.0 - alpha_bar) / alpha_bar).sqrt()


def score_weight(prior: Prior, t: Tensor) -> Tensor:
    """Return w = sqrt(alpha_bar / (1 - alpha_bar)), with which the gradient is a difference of scores."""
    return 1.0 / x0_weight(prior, t)


@dataclass(frozen=True, eq=False)
class Distillation:
    """The result of one evaluation; everything but `loss` is without gradient.

    Args:
        loss: scalar whose gradient at z is gradient / B.
        gradient: [B,C,h,w].
        target: z - gradient (x0_hat, for SDI), [B,C,h,w].
        x0_hat: the guided estimate of the clean latents, [B,C,h,w].
        noise: eps that the prediction was compared with, [B,C,h,w].
        z_t: the noisy latents at which it was predicted, [B,C,h,w].
    """

    loss: Tensor
    gradient: Tensor
    target: Tensor
    x0_hat: Tensor
    noise: Tensor
    z_t: Tensor


@dataclass(frozen=True, eq=False)
class Views:
    """The pictures of one step.

    Args:
        rgb: [V,H,W,3] in [0,1]; the loss carries their gradient.
        cameras: [V], or None where nothing depends on them.
        background: the plain colors behind them [V,3], or None for white.
        names: the backgrounds' names for the prompts, or None for none.
        source: the same views [V,H,W,3] of what is edited, or None.
        scene: the Gaussians that were drawn, or None.
    """

    rgb: Tensor
    cameras: Cameras | None = None
    background: Tensor | None = None
    names: list[str] | None = None
    source: Tensor | None = None
    scene: ParameterDict | None = None


@dataclass(frozen=True, eq=False)
class GuideResult:
    """The result of a guide: a scalar loss, the timesteps t [V], and the teacher's evaluation."""

    loss: Tensor
    t: Tensor
    distillation: Distillation | None = None

    @property
    def x0_hat(self) -> Tensor | None:
        """The guided estimate of the clean latents [V,C,h,w]; None for a method without a teacher."""
        return None if self.distillation is None else self.distillation.x0_hat


class Distiller(Protocol):
    """What a method sees of a guide."""

    prior: Prior
    prompts: ViewPrompts
    state: State

    def distill(self, views: Views, progress: float, generator: torch.Generator | None) -> GuideResult:
        """Encode the pictures, draw timesteps, and distill."""
        ...


@dataclass(frozen=True)
class Method:
    """A distillation method; a subclass adds its own settings as fields and overrides `compare`.

    Args:
        guidance: the scale g of e_g = e_null + g (e_text - e_null).
        timesteps: the schedule of t.

    A subclass sets `name`, as in YAML and on the command line; `weight`, which maps (prior, t [B]) to w [B];
    and `edits` where it compares with a source.
    """

    name: ClassVar[str] = ""
    edits: ClassVar[bool] = False
    reads_latents: ClassVar[bool] = True  # False: it evaluates images without a teacher

    guidance: float = 7.5
    timesteps: Timesteps = field(default_factory=Timesteps)

    def start(self, prior: Prior, seed: int) -> State:
        """Return the state of a new run."""
        return State()

    def compare(self, query: Query, state: Any) -> Comparison:
        """Return what the guided prediction is compared with, and where."""
        raise NotImplementedError(f"method '{self.name}' does not compare predictions")

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return w [B] at t [B]: 1."""
        return one(prior, t)

    def other_texts(self, negative: str, open_vocabulary: bool) -> tuple[str, ...]:
        """Return texts that `compare` needs beside the prompt and the null text, for `Conditioning.of_other`.

        PROMPT in one stands for the prompt, whose view is then named; with the run's negative prompt among
        them, the null text is empty.

        Args:
            negative: the run's negative prompt; empty for none.
            open_vocabulary: the teacher reads any text.
        """
        return ()

    def evaluate(
        self, guide: Distiller, views: Views, progress: float, generator: torch.Generator | None
    ) -> GuideResult:
        """Return the loss of a step's pictures: by distillation, unless a method judges pictures itself."""
        return guide.distill(views, progress, generator)


@dataclass(frozen=True, eq=False)
class FixedNoise(Method):
    """Comparison with a given noise eps [B,C,h,w], independent of z: a run's own, or the last prediction."""

    name: ClassVar[str] = "fixed"

    eps: Tensor = field(default_factory=lambda: torch.zeros(()))

    def compare(self, query: Query, state: State) -> Comparison:
        """Return (eps, z_t) of the given noise."""
        return Comparison(self.eps, query.noised(self.eps))

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return sqrt((1 - ab) / ab) [B] at t [B]."""
        return x0_weight(prior, t)


def distill(
    prior: Prior,
    z: Tensor,
    t: Tensor,
    cond: Conditioning,
    method: Method,
    generator: torch.Generator | None = None,
    source: Source | None = None,
    cameras: Cameras | None = None,
    state: State | None = None,
    scene: ParameterDict | None = None,
    progress: float = 0.0,
) -> Distillation:
    """Distill latents z [B,C,h,w] at timesteps t [B].

    loss = sum |z - stopgrad(z - gradient)|^2 / (2 B), so that backward injects the gradient summed over a
    sample and averaged over the batch.

    Args:
        prior: the teacher.
        z: clean latents; the loss carries their gradient.
        t: timesteps.
        cond: the guidance branches; one without a scale takes the method's.
        method: what the prediction is compared with, and the weight.
        generator: source of random numbers.
        source: what an editing method compares with; its branches likewise.
        cameras: of the samples [B], for a method that reads them.
        state: of the run; None for a fresh one from seed 0.
        scene: the Gaussians that the samples show, for a method that carries something on them.
        progress: the share of the run that is done, for a method of several stages.

    Raises:
        ValueError: an edit without a source, or a method that judges pictures.
    """
    if method.edits and source is None:
        raise ValueError(f"distill: method '{method.name}' needs the source that it edits")
    if not method.reads_latents:
        raise ValueError(f"distill: method '{method.name}' judges pictures, not latents; use Guide")
    t = t.cpu()
    cond = cond.with_default(method.guidance)
    if source is not None:
        source = Source(source.z, source.cond.with_default(method.guidance))
    with torch.no_grad():
        clean = z.detach().contiguous()
        query = Query(prior, clean, t, cond, generator, source, cameras, scene, progress)
        found = method.compare(query, method.start(prior, 0) if state is None else state)
        gradient, x0_hat = residual(query, found, method.weight(prior, t))
        target = clean - gradient
    loss = 0.5 * (z - target).square().sum() / len(z)
    return Distillation(loss, gradient, target, x0_hat, found.eps, found.z_t)


def residual(query: Query, found: Comparison, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient w (e_g(z_t) - eps) and the guided x0_hat, both [B,C,h,w]; w [B]."""
    prior, t, given = query.prior, query.t, found.predicted
    kind = prior.prediction_type if given is None else "epsilon"
    conversion = ops.prediction_coefficients(alpha_bar_at(prior, t), kind)
    coefficients = torch.cat([conversion, w.float().unsqueeze(1)], dim=1)
    weights = query.cond.weights if given is None else torch.ones(1, len(t))
    there, weights, coefficients = ops.upload([t, weights, coefficients], found.z_t.device)
    outputs = prior.predict(found.z_t, there, query.cond) if given is None else given[None]
    perp_neg = given is None and query.cond.perp_neg
    gradient, x0_hat, _ = ops.noise_residual(found.z_t, outputs, weights, coefficients, found.eps, perp_neg)
    return gradient, x0_hat


def sampling_timesteps(num_timesteps: int, steps: int) -> Tensor:
    """Return evenly spaced timesteps [steps], from T - 1 down ("trailing": 2305.08891, section 3.3)."""
    return (num_timesteps * torch.arange(steps, 0, -1, dtype=torch.float64) / steps).round().long() - 1


@torch.no_grad()
def sample(
    prior: Prior,
    cond: Conditioning,
    z_T: Tensor,
    steps: int = 50,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample clean latents from noise z_T, both [B,C,h,w], by DDIM (2010.02502, eq. 12).

    The grid is `sampling_timesteps`; the last move ends at the scheduler's own clean end.
    """
    x = z_T.contiguous()
    timesteps = sampling_timesteps(len(prior.alphas_cumprod), steps)
    following = [*timesteps[1:], torch.tensor(-1)]
    for t, t_next in zip(timesteps, following, strict=True):
        now = t.expand(len(x))
        ab_now, ab_next = alpha_bar_at(prior, now), alpha_bar_at(prior, t_next.expand(len(x)))
        coefficients = ops.ddim_coefficients(ab_now, ab_next, prior.prediction_type, eta)
        noise = gaussian_like(x, generator) if eta > 0.0 else None
        now, weights, coefficients = ops.upload([now, cond.weights, coefficients], x.device)
        outputs = prior.predict(x, now, cond)
        x = ops.ddim_step(x, outputs, weights, coefficients, noise, cond.perp_neg)
    return x
