"""DDIM inversion and other trajectories, with a timetable for each sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.query import Comparison, Query, gaussian_like
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at


@dataclass(frozen=True)
class Inversion:
    """Settings of SDI's inversion (2405.15891, Algorithm 2).

    Args:
        steps: points of the grid over [0, T).
        guidance: the scale g_inv.
        eta: noise added to the inverted latents.
        tau: the inversion lands at t + floor(U(0, tau T)), at most T - 1.
        published: the form of the published code (see `ddim_inversion`); its own tau is 0.1.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 10
    guidance: float = -7.5
    eta: float = 0.3
    tau: float = 1.0 / 30.0
    published: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eta < 0.0 or not 0.0 <= self.tau < 1.0:
            raise ValueError("inversion: expected steps >= 1, eta >= 0 and 0 <= tau < 1")


def invert(query: Query, settings: Inversion) -> Comparison:
    """Return (kappa, z_t) of `ddim_inversion`; published, kappa is the noise of z_t at its label t."""
    kappa, z_t = ddim_inversion(query.prior, query.z, query.t, query.cond, settings, query.generator)
    if not settings.published:
        return Comparison(kappa, z_t)
    alpha_bar = alpha_bar_at(query.prior, query.t)
    (at_t,) = ops.upload([ops.recover_coefficients(alpha_bar, alpha_bar)], z_t.device)
    return Comparison(ops.recover_noise(query.z, z_t, at_t)[0], z_t)


def inversion_grid(num_timesteps: int, settings: Inversion) -> Tensor:
    """Return the timesteps at which the network may be evaluated, the first being the clean end.

    Paper [n]: 0, T/n, 2T/n, ...; published code [n+1]: 1 - T/n, 1, 1 + T/n, ... (-99, 1, 101, ...).
    """
    stride = max(num_timesteps // settings.steps, 1)
    if settings.published:
        return torch.arange(settings.steps + 1) * stride + 1 - stride
    return torch.arange(settings.steps) * stride


def landing_timesteps(
    t: Tensor,
    num_timesteps: int,
    settings: Inversion,
    generator: torch.Generator | None,
    group: int = 1,
) -> Tensor:
    """Return t + floor(U(0, tau T)) for each group of samples [B], at most T - 1.

    Draws nothing where tau is 0.
    """
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
    settings: Inversion,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the noise kappa and the noisy latents z_t [B,C,h,w] of z [B,C,h,w] at t [B] by DDIM inversion.

    SDI, 2405.15891, Algorithm 2. Write s = t + tau for the landing timestep. The grid 0 = t_0 < t_1 < ...
    keeps its points below s and ends at s. The clean end has alpha_bar = 1 (so x_0 = z), while the network
    reads timestep 0 there. With e = e_null + g_inv (e_text - e_null) evaluated at (x_i, t_i):
        x0_hat = (x_i - sqrt(1-ab_i) e) / sqrt(ab_i);   x_{i+1} = sqrt(ab_{i+1}) x0_hat + sqrt(1-ab_{i+1}) e
    At the end, once: x_s += eta sqrt(1-ab_s) n, n ~ N(0, I). Then
        kappa = (x_s - sqrt(ab_s) z) / sqrt(1-ab_s);    z_t = sqrt(ab_t) z + sqrt(1-ab_t) kappa

    With `settings.published`, as the authors' code: the grid starts at 1 - T/n, a negative timestep that the
    network reads and where alpha_bar is the scheduler's own clean end (`Prior.clean_alpha_bar`), and keeps
    its points below t; every move adds eta sigma n with sigma the DDIM deviation
    (2010.02502, eq. 16) of that move; x_s is not remapped but labeled t: z_t = x_s.

    All samples move together, each on its own timetable; a sample that has landed leaves the batch.
    """
    t = t.cpu()
    landing = landing_timesteps(t, len(prior.alphas_cumprod), settings, generator, prior.group)  # [B]
    grid = inversion_grid(len(prior.alphas_cumprod), settings)
    moves = (grid < (t if settings.published else landing)[:, None]).sum(dim=1).clamp(min=1)  # [B]
    path = path_along(grid, moves, landing)
    eta = settings.eta if settings.published else 0.0
    branches, clean = cond.with_guidance(settings.guidance), not settings.published
    x = walk(prior, z, path, moves, branches, clean=clean, eta=eta, generator=generator)
    ab_t, ab_landing = alpha_bar_at(prior, t), alpha_bar_at(prior, landing)
    if settings.eta > 0.0 and not settings.published:
        scale = settings.eta * ops.send((1.0 - ab_landing).sqrt(), x).view(-1, 1, 1, 1)
        x = x + scale * gaussian_like(x, generator)
    (factors,) = ops.upload([ops.recover_coefficients(ab_landing, ab_t)], z.device)
    kappa, z_t = ops.recover_noise(z, x, factors)
    return kappa, x if settings.published else z_t


def path_along(grid: Tensor, moves: Tensor, last: Tensor) -> Tensor:
    """Return each sample's timesteps [B, M + 1]: the first `moves` [B] of the grid, then `last` [B]."""
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
    a share of the DDIM deviation (2010.02502, eq. 16). Samples whose moves are done leave the batch.
    """
    x = x.contiguous()
    plan = [_move(prior, path, moves, i, cond, clean, eta) for i in range(path.shape[1] - 1)]
    there = iter(ops.upload([part for move in plan for part in move], x.device))  # all that is known before
    for live, *_ in plan:
        here, t, coefficients, weights = (next(there) for _ in range(4))
        whole = len(live) == len(x)
        x_i, branches = (x, cond) if whole else (x[here], cond.select(live, here))
        noise = gaussian_like(x, generator) if eta > 0.0 else None
        if noise is not None and not whole:
            noise = noise[here]
        moved = ops.ddim_step(
            x_i, prior.predict(x_i, t, branches), weights, coefficients, noise, cond.perp_neg
        )
        x = moved if whole else x.index_copy(0, here, moved)
    return x


def _move(
    prior: Prior, path: Tensor, moves: Tensor, i: int, cond: Conditioning, clean: bool, eta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the i-th move of `walk` is made of, all on the CPU.

    Those samples that move [n], their timesteps [n], their factors [n,7], and the branches' weights [R,n].
    """
    live = (moves > i).nonzero().flatten()
    now, ab_next = path[live, i], alpha_bar_at(prior, path[live, i + 1])
    ab_now = alpha_bar_at(prior, now)
    if clean and i == 0:
        # an x0 prediction at alpha_bar 1 does not determine the noise: start at timestep 0's level
        first = prior.alphas_cumprod[0].item() if prior.prediction_type == "sample" else 1.0
        ab_now = torch.full_like(ab_next, first)
    coefficients = ops.ddim_coefficients(ab_now, ab_next, prior.prediction_type)
    if eta > 0.0:
        deviation = ((1.0 - ab_now) / (1.0 - ab_next) * (1.0 - ab_next / ab_now)).sqrt()
        coefficients[:, 6] = eta * deviation
    return live, now, coefficients, cond.weights[:, live]
