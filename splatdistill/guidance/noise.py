"""Noise sources: from clean latents z and timesteps t to (eps, z_t).

eps is what the teacher's guided prediction at z_t is compared with: the noise in z_t, or another prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at
from splatdistill.scene.cameras import Cameras

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Source:
    """What an edit starts from: latents z [B,C,h,w] of the source in the same views, and its branches."""

    z: Tensor
    cond: Conditioning


@dataclass(frozen=True, eq=False)
class Query:
    """What a noise source is asked: the latents z [B,C,h,w] at timesteps t [B], on the CPU, and with what."""

    prior: Prior
    z: Tensor
    t: Tensor
    cond: Conditioning
    generator: torch.Generator | None = None
    origin: Source | None = None
    cameras: Cameras | None = None  # of the samples [B], where there are any

    @property
    def levels(self) -> int:
        """T, the number of timesteps."""
        return len(self.prior.alphas_cumprod)

    @property
    def source(self) -> Source:
        """What is edited; raises ValueError where nothing is."""
        if self.origin is None:
            raise ValueError("this method edits: it needs a source")
        return self.origin

    def gaussian(self) -> Tensor:
        """Fresh noise from N(0, I) [B,C,h,w]."""
        return gaussian_like(self.z, self.generator)

    def uniform(self) -> Tensor:
        """U(0, 1) [B], float64 on the CPU; one draw for each group of views."""
        device = "cpu" if self.generator is None else self.generator.device
        count = len(self.t) // self.prior.group
        u = torch.rand(count, generator=self.generator, device=device, dtype=torch.float64).cpu()
        return u.repeat_interleave(self.prior.group)

    def noised(self, eps: Tensor, z: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """z, or other latents, with the noise eps at t, or another level."""
        return add_noise(self.prior, self.z if z is None else z, self.t if t is None else t, eps)

    def predict(self, z_t: Tensor, cond: Conditioning | None = None, t: Tensor | None = None) -> Tensor:
        """The guided prediction at z_t, of other branches or at another level where they are given."""
        return predicted_noise(self.prior, z_t, self.t if t is None else t, cond or self.cond)


NoiseSource = Callable[[Query], Pair]  # -> (eps, z_t), both [B,C,h,w] and without gradient


def add_noise(prior: Prior, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps, [B,C,h,w]."""
    alpha_bar = alpha_bar_at(prior, t).view(-1, 1, 1, 1)
    return alpha_bar.sqrt().to(z) * z + (1.0 - alpha_bar).sqrt().to(z) * eps


def gaussian_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) of z's shape and device, drawn where `generator` lives."""
    device = z.device if generator is None else generator.device
    return torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype).to(z.device)


def predicted_noise(prior: Prior, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The guided prediction eps_hat [B,C,h,w] at z_t [B,C,h,w], t [B]."""
    coefficients = ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type)
    unweighted = torch.cat([coefficients, torch.ones(len(t), 1)], dim=1).to(z_t.device)
    outputs, weights = prior.predict(z_t, t, cond), cond.weights.to(z_t.device)
    nothing = torch.zeros_like(z_t)
    return ops.noise_residual(z_t, outputs, weights, unweighted, nothing, cond.perp_neg)[0]


def random_noise(asked: Query) -> Pair:
    """Fresh noise from N(0, I): SDS (2209.14988)."""
    eps = asked.gaussian()
    return eps, asked.noised(eps)


@dataclass(frozen=True, eq=False)
class FixedNoise:
    """The given noise eps [B,C,h,w], whatever z: a run's own noise, or the last prediction (cached SDI)."""

    eps: Tensor

    def __call__(self, asked: Query) -> Pair:
        """(eps, z_t) for the fixed eps."""
        return self.eps, asked.noised(self.eps)


@dataclass(frozen=True)
class InversionSettings:
    """How SDI (2405.15891, Algorithm 2) inverts z to its own noise. A noise source when called.

    steps: points of the grid over [0, T). guidance: scale g_inv. eta: noise added to the inverted latents.
    tau: the inversion lands at t + floor(U(0, tau T)), at most T - 1. published: the published code's form
    (see `ddim_inversion`); its own tau is 0.1.
    Raises ValueError for values outside their range.
    """

    steps: int = 10
    guidance: float = -7.5
    eta: float = 0.3
    tau: float = 1.0 / 30.0
    published: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eta < 0.0 or not 0.0 <= self.tau < 1.0:
            raise ValueError("inversion: expected steps >= 1, eta >= 0 and 0 <= tau < 1")

    def __call__(self, asked: Query) -> Pair:
        """(kappa, z_t) by `ddim_inversion`; if published, kappa is what z_t holds by its label t."""
        kappa, z_t = ddim_inversion(asked.prior, asked.z, asked.t, asked.cond, self, asked.generator)
        if not self.published:
            return kappa, z_t
        alpha_bar = alpha_bar_at(asked.prior, asked.t)
        at_t = ops.recover_coefficients(alpha_bar, alpha_bar).to(z_t.device)
        return ops.recover_noise(asked.z, z_t, at_t)[0], z_t


def inversion_grid(num_timesteps: int, settings: InversionSettings) -> Tensor:
    """Timesteps at which the network may be evaluated, the first being the clean end (alpha_bar = 1).

    Paper [n]: 0, T/n, 2T/n, ...; published code [n+1]: 1 - T/n, 1, 1 + T/n, ... (-99, 1, 101, ...).
    """
    stride = max(num_timesteps // settings.steps, 1)
    if settings.published:
        return torch.arange(settings.steps + 1) * stride + 1 - stride
    return torch.arange(settings.steps) * stride


def landing_timesteps(
    t: Tensor,
    num_timesteps: int,
    settings: InversionSettings,
    generator: torch.Generator | None,
    group: int = 1,
) -> Tensor:
    """t + floor(U(0, tau T)) for each group of samples [B], at most T - 1; draws nothing when tau is 0."""
    if settings.tau == 0.0:
        return t
    device = "cpu" if generator is None else generator.device
    u = torch.rand(len(t) // group, generator=generator, device=device, dtype=torch.float64).cpu()
    u = u.repeat_interleave(group)
    return (t + (u * settings.tau * num_timesteps).long()).clamp(max=num_timesteps - 1)


@torch.no_grad()
def ddim_inversion(
    prior: Prior,
    z: Tensor,
    t: Tensor,
    cond: Conditioning,
    settings: InversionSettings,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The noise kappa and the noisy latents z_t [B,C,h,w] that DDIM inversion of z [B,C,h,w] finds for t [B].

    SDI, 2405.15891, Algorithm 2. Write s = t + tau for the landing timestep. The grid 0 = t_0 < t_1 < ...
    keeps its points below s and ends at s. The clean end has alpha_bar = 1 (so x_0 = z), while the network
    is told timestep 0 there. With e = e_null + g_inv (e_text - e_null) evaluated at (x_i, t_i):
        x0_hat = (x_i - sqrt(1-ab_i) e) / sqrt(ab_i);   x_{i+1} = sqrt(ab_{i+1}) x0_hat + sqrt(1-ab_{i+1}) e
    At the end, once: x_s += eta sqrt(1-ab_s) n, n ~ N(0, I). Then
        kappa = (x_s - sqrt(ab_s) z) / sqrt(1-ab_s);    z_t = sqrt(ab_t) z + sqrt(1-ab_t) kappa

    With `settings.published`, as the authors' code: the grid starts at 1 - T/n, a negative timestep that the
    network sees, and keeps its points below t; every move adds eta sigma n with sigma the DDIM deviation
    (2010.02502, eq. 16) of that move; x_s is not remapped but labelled t: z_t = x_s.

    All samples move together, each on its own timetable; a sample that has landed leaves the batch.
    """
    t = t.cpu()
    landing = landing_timesteps(t, len(prior.alphas_cumprod), settings, generator, prior.group)  # [B]
    grid = inversion_grid(len(prior.alphas_cumprod), settings)
    moves = (grid < (t if settings.published else landing)[:, None]).sum(dim=1).clamp(min=1)  # [B]
    path = path_along(grid, moves, landing)
    eta = settings.eta if settings.published else 0.0
    x = walk(
        prior, z, path, moves, cond.with_guidance(settings.guidance), clean=True, eta=eta, generator=generator
    )
    ab_t, ab_landing = alpha_bar_at(prior, t), alpha_bar_at(prior, landing)
    if settings.eta > 0.0 and not settings.published:
        scale = settings.eta * (1.0 - ab_landing).sqrt().view(-1, 1, 1, 1).to(x)
        x += scale * gaussian_like(x, generator)
    kappa, z_t = ops.recover_noise(z, x, ops.recover_coefficients(ab_landing, ab_t).to(z.device))
    return kappa, x if settings.published else z_t


def path_along(grid: Tensor, moves: Tensor, last: Tensor) -> Tensor:
    """Each sample's timesteps [B, M + 1]: the first `moves` [B] of the grid, then `last` [B]."""
    steps = torch.arange(int(moves.max()) + 1)
    return torch.where(steps < moves[:, None], grid[steps.clamp(max=len(grid) - 1)], last[:, None])


@torch.no_grad()
def walk(
    prior: Prior,
    x: Tensor,
    path: Tensor,
    moves: Tensor,
    cond: Conditioning,
    clean: bool = False,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move x [B,C,h,w] by DDIM along the timesteps path [B, M + 1], sample b as often as moves[b] says.

    clean: x are clean latents, whose alpha_bar is 1 whatever the first timestep. eta: noise of each move, as
    a share of the DDIM deviation (2010.02502, eq. 16). All move together; who has arrived leaves the batch.
    """
    # a model of x0 says nothing of the noise in clean latents: its first level is that of timestep 0
    first = prior.alphas_cumprod[0].item() if prior.prediction_type == "sample" else 1.0
    x = x.clone(memory_format=torch.contiguous_format)
    for i in range(path.shape[1] - 1):
        live = (moves > i).nonzero().flatten()  # [n]
        now, ab_next = path[live, i], alpha_bar_at(prior, path[live, i + 1])
        ab_now = torch.full_like(ab_next, first) if clean and i == 0 else alpha_bar_at(prior, now)
        coefficients = ops.ddim_coefficients(ab_now, ab_next, prior.prediction_type)  # [n, 7]
        branches = cond.select(live)
        live = live.to(x.device)
        noise = None
        if eta > 0.0:
            deviation = ((1.0 - ab_now) / (1.0 - ab_next) * (1.0 - ab_next / ab_now)).sqrt()
            coefficients[:, 6] = eta * deviation
            noise = gaussian_like(x, generator)[live]
        x_i, weights = x[live], branches.weights.to(x.device)
        outputs = prior.predict(x_i, now, branches)
        x[live] = ops.ddim_step(x_i, outputs, weights, coefficients.to(x.device), noise, branches.perp_neg)
    return x


@dataclass(frozen=True)
class TrajectorySettings:
    """How DSD (2412.06780) finds its noise, on the DDIM path from its own seed. A noise source when called.

    steps: moves of the whole path from T - 1 to 0. seed: of the path's start, one for all views. spread:
    t_delta is t + floor(U(0, spread (t - lowest T))). scale: guidance of the prediction compared with.
    """

    steps: int = 10
    seed: int = 0
    spread: float = 0.1
    lowest: float = 0.32
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.spread < 0.0 or not 0.0 <= self.lowest < 1.0:
            raise ValueError("trajectory: expected steps >= 1, spread >= 0 and 0 <= lowest < 1")

    def __call__(self, asked: Query) -> Pair:
        """(e_1 at t_delta, z_t): both noised with eps*, the guided prediction on the path at t_delta."""
        further = self.further(asked)
        eps = self.on_path(asked, further)
        compared = asked.predict(asked.noised(eps, t=further), asked.cond.with_guidance(self.scale), further)
        return compared, asked.noised(eps)

    def further(self, asked: Query) -> Tensor:
        """t_delta [B], from 1 to T - 1; draws nothing where spread is 0."""
        last = asked.levels - 1
        if self.spread == 0.0:
            return asked.t.clamp(1, last)
        room = (self.spread * (asked.t - int(self.lowest * asked.levels)).double()).clamp(min=0.0)
        room = torch.minimum(room, (last - asked.t).double())
        return (asked.t + (room * asked.uniform()).long()).clamp(1, last)

    def on_path(self, asked: Query, t: Tensor) -> Tensor:
        """The guided prediction eps* [B,C,h,w] at t [B] on each view's DDIM path from the common start."""
        start = self.start(asked.prior).to(asked.z)
        grid = torch.linspace(asked.levels - 1, 0, self.steps + 1).long()
        moves = (grid > t[:, None]).sum(dim=1)
        path = path_along(grid, moves, t)
        x = walk(asked.prior, start.expand_as(asked.z), path, moves, asked.cond)
        return asked.predict(x, t=t)

    def start(self, prior: Prior) -> Tensor:
        """The noise [C,h,w] that the seed decides."""
        return torch.randn(prior.latent_shape, generator=torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class StudentSettings:
    """How VSD's student learns: the adapter's rank, AdamW's rate, and its steps for each of the run.

    Raises ValueError for values outside their range.
    """

    rank: int = 4
    rate: float = 1e-4
    steps: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.rate <= 0.0 or self.steps < 0:
            raise ValueError("student: expected rank >= 1, rate > 0 and steps >= 0")


class Variational:
    """VSD's noise source: (the student's prediction, z_t) at fresh noise; then the student learns.

    The student comes to be at the first call. Its state is part of a run's checkpoint.
    """

    def __init__(self, settings: StudentSettings | None = None, seed: int = 0, student: Any = None) -> None:
        self.settings, self.seed, self.student = settings or StudentSettings(), seed, student
        self._saved: dict[str, Any] = {}

    def __call__(self, asked: Query) -> Pair:
        """(e_student(z_t), z_t)."""
        if self.student is None:
            from splatdistill.guidance.vsd import Student  # heavy

            self.student = Student(asked.prior, self.settings, self.seed)
            self._restore()
        z_t = asked.noised(asked.gaussian())
        compared = self.student.predict(asked, z_t)
        self.student.learn(asked)
        return compared, z_t

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on; empty before the first call."""
        if self.student is None:
            return self._saved
        learned = {name: p.detach() for name, p in self.student.learned.items()}
        return {"learned": learned, "optimizer": self.student.optimizer.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from there, at once or as soon as there is a student."""
        self._saved = saved
        if self.student is not None:
            self._restore()

    def _restore(self) -> None:
        if not self._saved:
            return
        with torch.no_grad():
            for name, p in self.student.learned.items():
                p.copy_(self._saved["learned"][name])
        self.student.optimizer.load_state_dict(self._saved["optimizer"])
