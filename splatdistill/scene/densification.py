"""Densification and pruning: changes of the number of Gaussians N, with gsplat's operations and state.

default: the adaptive density control of 3DGS (2308.04079), with a cap on N. gsplat's DefaultStrategy (1.5.3)
never resets opacities (`step % reset_every == 0 & step > 0` is always false for step > 0), so the schedule is
ours. mcmc: 3DGS-MCMC (2404.09591) on any device; gsplat's own relocation is a CUDA kernel. none: N is fixed.

Random numbers come from torch's global generator of the Gaussians' device; a run that restores it resumes
exactly.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from gsplat.strategy import Strategy
from gsplat.strategy.ops import duplicate, remove, reset_opa, split
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor
from torch.nn import ParameterDict
from torch.optim import Optimizer

from splatdistill.errors import UserError
from splatdistill.ops import send
from splatdistill.scene.gaussians import finite_mask, select

MAX_COPIES = 51  # largest number of copies in one relocation, as in the authors' code
ALTERNATING_BINOMIALS = torch.tensor(  # [n, j - 1]: C(n, j) (-1)^(j - 1) / sqrt(j)
    [
        [(1 if j % 2 else -1) * math.comb(n, j) / math.sqrt(j) for j in range(1, MAX_COPIES + 1)]
        for n in range(MAX_COPIES + 1)
    ],
    dtype=torch.float64,
)
STATISTICS = ("grad2d", "count")  # kept by `default`
FEW = 0.01  # share of a splat: fewer lonely Gaussians than that are its thin parts, and no floaters
GRID = 32  # cells along each axis in the search for floaters


@dataclass(frozen=True)
class DensificationConfig:
    """Settings of densification; steps are absolute step numbers, lengths are in units of scene_scale.

    Refinement runs at every multiple of `every` with start <= step < stop.
    """

    kind: Literal["default", "mcmc", "none"] = "default"
    start: int = 500
    stop: int = 15_000
    every: int = 100
    grow_grad2d: float = 2e-4  # mean gradient of the center in units of half an image
    grow_scale3d: float = 0.01  # larger Gaussians are split, smaller ones duplicated
    prune_opacity: float = 0.005  # Gaussians below it are pruned (default) or relocated (mcmc)
    prune_scale3d: float = 0.1  # larger Gaussians are pruned (default)
    cap_max: int = 1_000_000
    reset_every: int = 0  # steps between opacity resets before `stop`; 0: never
    reset_opacity: float = 0.01  # opacities are lowered to this at a reset
    noise_lr: float = 5e5  # of the exploration noise (mcmc), times the learning rate of the means

    def __post_init__(self) -> None:
        if self.every < 1 or self.reset_every < 0 or self.cap_max < 1:
            raise UserError(
                f"densification: expected every >= 1, reset_every >= 0 and cap_max >= 1, "
                f"got {self.every}, {self.reset_every} and {self.cap_max}"
            )


class Densifier:
    """Apply a DensificationConfig beside the optimization.

    Optimizers are a dict: parameter name -> an optimizer of that one parameter, as gsplat wants them.

    Args:
        config: the settings.
        scene_scale: the unit of lengths in them.
        changeable: of a run that starts from a scene, which of its Gaussians may change: [N] bool. Then each
            Gaussian remembers its ancestor (`rows`), and what descends from the others is left alone.
    """

    def __init__(
        self, config: DensificationConfig, scene_scale: float = 1.0, changeable: Tensor | None = None
    ) -> None:
        self.config = config
        self.scene_scale = scene_scale
        self.changeable = changeable
        # grad2d [N], count [N]: gsplat's names; row [N]: the ancestor, exact in float32 below 2^24
        self._state: dict[str, Tensor] = {}

    @property
    def rows(self) -> Tensor:
        """The index [N] of each Gaussian's ancestor in the scene that the run started from."""
        return self._state["row"].long()

    @property
    def held(self) -> Tensor | None:
        """Which Gaussians must not change: [N] bool; None where all may."""
        if self.changeable is None or bool(self.changeable.all()):
            return None
        return ~self.changeable[self.rows]

    def initialize(self, gaussians: ParameterDict, optimizers: dict[str, Optimizer]) -> None:
        """Reset the statistics; raises AssertionError when optimizers and parameters do not match."""
        Strategy().check_sanity(gaussians, optimizers)
        self._state = self._empty(gaussians)

    def before_backward(self, info: dict[str, Any]) -> None:
        """Keep the gradient of the projected centers; call it before loss.backward() with a Render's info."""
        if self.config.kind == "default" and info["means2d"].requires_grad:
            info["means2d"].retain_grad()

    def seen(self, step: int, info: dict[str, Any]) -> list[Tensor]:
        """Return what a step's views add to the statistics, after the backward pass; if any are kept."""
        return statistics(info) if self.config.kind == "default" and step < self.config.stop else []

    @torch.no_grad()
    def after_backward(
        self, gaussians: ParameterDict, optimizers: dict[str, Optimizer], step: int, seen: Sequence[Tensor]
    ) -> dict[str, int]:
        """Update the statistics and, at a refinement step, change the Gaussians.

        Call it after the optimizers' step. Steps are absolute; `seen` is what `seen` returned.

        Returns:
            Numbers of Gaussians grown, pruned, relocated or reset; only those above zero.
        """
        config = self.config
        due = config.start <= step < config.stop and step % config.every == 0
        counts: dict[str, int] = {}
        if config.kind == "default" and step < config.stop:
            self._state |= {name: self._state[name] + value for name, value in zip(STATISTICS, seen)}
            if due:
                counts["grown"] = self._grow(gaussians, optimizers)
                counts["pruned"] = self._prune(gaussians, optimizers)
                for name in STATISTICS:
                    self._state[name] = torch.zeros_like(self._state[name])
            if config.reset_every and step > 0 and step % config.reset_every == 0:
                counts["reset"] = self._reset(gaussians, optimizers)
        elif config.kind == "mcmc":
            if due:
                floor, cap = config.prune_opacity, config.cap_max
                counts["relocated"] = _relocate_dead(
                    gaussians, optimizers, self._state, self.free(gaussians), floor
                )
                counts["grown"] = _add_samples(
                    gaussians, optimizers, self._state, self.free(gaussians), floor, cap
                )
            noise = config.noise_lr * optimizers["means"].param_groups[0]["lr"]
            _explore(gaussians, self.free(gaussians), noise)
        return {name: count for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the running statistics, for a checkpoint."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: dict[str, Tensor], gaussians: ParameterDict) -> None:
        """Restore what `state_dict` returned, on the Gaussians' device; missing statistics start empty."""
        self._state = {
            name: state[name].to(empty, copy=True) if name in state else empty
            for name, empty in self._empty(gaussians).items()
        }

    def remove(self, gaussians: ParameterDict, optimizers: dict[str, Optimizer], bad: Tensor) -> None:
        """Remove the Gaussians in `bad` [N] bool, with their moments and statistics."""
        remove(gaussians, optimizers, self._state, bad)

    def _empty(self, gaussians: ParameterDict) -> dict[str, Tensor]:
        names = STATISTICS if self.config.kind == "default" else ()
        opacities = gaussians["opacities"].detach()
        empty = {name: torch.zeros_like(opacities) for name in names}
        if self.changeable is not None:
            empty["row"] = torch.arange(len(opacities), device=opacities.device, dtype=opacities.dtype)
        return empty

    def free(self, gaussians: ParameterDict) -> Tensor:
        """Return which Gaussians may change: [N] bool."""
        held = self.held
        return torch.ones_like(gaussians["opacities"], dtype=torch.bool) if held is None else ~held

    def _reset(self, gaussians: ParameterDict, optimizers: dict[str, Optimizer]) -> int:
        """Lower the opacities of all Gaussians that may change; return how many these are."""
        free, before = self.free(gaussians), gaussians["opacities"].detach().clone()
        reset_opa(gaussians, optimizers, {}, self.config.reset_opacity)
        gaussians["opacities"].copy_(torch.where(free, gaussians["opacities"], before))
        return int(free.sum())

    def _grow(self, gaussians: ParameterDict, optimizers: dict[str, Optimizer]) -> int:
        """Duplicate small and split large Gaussians of large gradient, the largest first, up to the cap."""
        config = self.config
        gradient = self._state["grad2d"] / self._state["count"].clamp(min=1)
        gradient = gradient.where(self.free(gaussians), 0.0)
        room = max(config.cap_max - len(gradient), 0)
        order = gradient.argsort(descending=True, stable=True)[:room]
        chosen = torch.zeros_like(gradient, dtype=torch.bool)
        chosen[order] = gradient[order] > config.grow_grad2d
        large = gaussians["scales"].amax(-1).exp() > config.grow_scale3d * self.scene_scale
        copied = chosen & ~large
        if copied.any():
            duplicate(gaussians, optimizers, self._state, copied)
        cut = F.pad(chosen & large, (0, int(copied.sum())))  # the copies were appended, and are not split
        if cut.any():
            split(gaussians, optimizers, self._state, cut)
        return int(chosen.sum())

    def _prune(self, gaussians: ParameterDict, optimizers: dict[str, Optimizer]) -> int:
        """Remove transparent, oversize and non-finite Gaussians, but never the whole scene."""
        config = self.config
        bad = gaussians["opacities"].sigmoid() < config.prune_opacity
        bad |= gaussians["scales"].amax(-1).exp() > config.prune_scale3d * self.scene_scale
        bad |= ~finite_mask(gaussians)
        bad &= self.free(gaussians)
        if bad.all() or not bad.any():
            return 0
        remove(gaussians, optimizers, self._state, bad)
        return int(bad.sum())


@torch.no_grad()
def statistics(info: dict[str, Any]) -> list[Tensor]:
    """Return STATISTICS of a step's views: norms of normalized image-plane gradients, and views, both [N]."""
    points, half = info["means2d"], torch.tensor([info["width"], info["height"]]) / 2 * info["n_cameras"]
    norms = (points.grad * send(half, points)).norm(dim=-1)  # [V, N]
    visible = (info["radii"] > 0).all(-1)  # [V, N]
    return [norms.where(visible, 0.0).sum(0), visible.sum(0, dtype=norms.dtype)]


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity and scales of n coincident Gaussians that together look like one given Gaussian.

    opacities [M] in (0, 1), scales [M, 3], copies [M] n >= 1 (at most MAX_COPIES count); returns both.
    3DGS-MCMC (2404.09591), eq. 9: o' = 1 - (1 - o)^(1/n), and
    s' = s o / sum_{i=1..n} sum_{k<i} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1);
    since sum_i C(i-1, k) = C(n, k+1), the double sum is a single one over j = k + 1.
    """
    n = copies.clamp(1, MAX_COPIES)
    old = opacities.double()
    new = 1 - (1 - old) ** (1 / n)
    j = torch.arange(1, MAX_COPIES + 1, device=old.device)
    terms = ALTERNATING_BINOMIALS.to(old.device)[n] * new[:, None] ** j  # [M, MAX_COPIES]
    return new.float(), (scales * (old / terms.sum(-1))[:, None]).float()


def _shared(gaussians: ParameterDict, sources: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return logit opacities and log scales of `sources`, each divided among its copies."""
    copies = torch.bincount(sources)[sources] + 1
    scales = gaussians["scales"][sources].exp()
    opacities, scales = relocation(gaussians["opacities"][sources].sigmoid(), scales, copies)
    opacities = opacities.clamp(floor, 1 - torch.finfo(torch.float32).eps)
    return opacities.logit(), scales.log()


def _relocate_dead(
    gaussians: ParameterDict,
    optimizers: dict[str, Optimizer],
    state: dict[str, Tensor],
    free: Tensor,
    floor: float,
) -> int:
    """Move free Gaussians below the floor opacity onto live ones, drawn in proportion to opacity."""
    opacities = gaussians["opacities"].sigmoid()
    lost = ~(opacities > floor) | ~finite_mask(gaussians)
    dead = torch.where(lost & free)[0]
    weights = opacities.masked_fill(lost | ~free, 0.0)
    if not len(dead) or not weights.any():
        return 0
    sources = torch.multinomial(weights, len(dead), replacement=True)
    gaussians["opacities"][sources], gaussians["scales"][sources] = _shared(gaussians, sources, floor)
    moved = torch.cat([sources, dead])
    for name, parameter in gaussians.items():
        parameter[dead] = parameter[sources]
        for key, value in optimizers[name].state[parameter].items():
            if key != "step":
                value[moved] = 0
    for value in state.values():
        value[dead] = value[sources]
    return len(dead)


def _add_samples(
    gaussians: ParameterDict,
    optimizers: dict[str, Optimizer],
    state: dict[str, Tensor],
    free: Tensor,
    floor: float,
    cap: int,
) -> int:
    """Grow N by 5 % of the free ones, up to the cap, with copies of them drawn in proportion to opacity."""
    opacities, count = gaussians["opacities"].sigmoid(), int(free.sum())
    added = min(cap - len(opacities), int(1.05 * count) - count)
    if added <= 0:
        return 0
    # Without replacement, unlike the paper: so few are drawn that it hardly matters, and `duplicate` serves.
    sources = torch.multinomial(opacities.clamp(min=1e-12).where(free, 0.0), added, replacement=False)
    gaussians["opacities"][sources], gaussians["scales"][sources] = _shared(gaussians, sources, floor)
    chosen = torch.zeros_like(opacities, dtype=torch.bool).index_fill(0, sources, True)
    duplicate(gaussians, optimizers, state, chosen)
    return added


def _explore(gaussians: ParameterDict, free: Tensor, scale: float) -> None:
    """Move free centers at random within their shape, transparent Gaussians the most (2404.09591)."""
    gate = torch.sigmoid(100 * (0.005 - gaussians["opacities"].sigmoid()))  # 1 - o against 0.995
    rotations = normalized_quat_to_rotmat(F.normalize(gaussians["quats"], dim=-1))  # [N, 3, 3]
    noise = torch.randn_like(gaussians["means"]) * gate.where(free, 0.0)[:, None] * scale
    covariances = rotations * gaussians["scales"].exp().square()[:, None] @ rotations.transpose(1, 2)
    gaussians["means"].add_((covariances @ noise[:, :, None])[:, :, 0])


@torch.no_grad()
def keep_mask(
    gaussians: ParameterDict, opacity: float, max_scale: float, floater_share: float, cell: float = 0.1
) -> Tensor:
    """Return which Gaussians belong to the object: [N] bool, never all False if any is finite.

    Dropped are faint, oversized and non-finite Gaussians, and floaters: clusters that hold less than
    `floater_share` of the remaining opacity. Two clusters are separate when an empty grid cell lies between
    them.

    Args:
        gaussians: the scene.
        opacity: lowest opacity that is kept.
        max_scale: largest standard deviation that is kept, in world units.
        floater_share: smallest share of the total opacity of a cluster that is kept.
        cell: size of a grid cell in world units.
    """
    finite = finite_mask(gaussians)
    opacities = gaussians["opacities"].sigmoid()
    keep = finite & (opacities >= opacity) & (gaussians["scales"].amax(-1).exp() <= max_scale)
    if not keep.any():  # a failed run still returns a scene
        return finite
    labels = _clusters(select(gaussians, keep), cell)  # [M]
    weights = torch.zeros(GRID**3 + 1, device=labels.device).index_add_(0, labels, opacities[keep])
    keep[keep.clone()] = (weights[labels] >= floater_share * weights.sum()) | (
        weights[labels] == weights.max()
    )
    return keep


@torch.no_grad()
def lonely_mask(gaussians: ParameterDict, neighbors: int, opacity: float = 0.05) -> Tensor:
    """Return which visible Gaussians have fewer visible neighbors than `neighbors`: [N] bool.

    Neighbors share a block of 3 x 3 x 3 cells, whose side is twice the median distance of a Gaussian to its
    fourth nearest. Those fainter than `opacity` neither count nor are chosen; nor is one as wide as a cell,
    and none where they are FEW.
    """
    seen = (gaussians["opacities"].sigmoid() >= opacity).nonzero()[:, 0]
    lonely = torch.zeros(len(gaussians["means"]), dtype=torch.bool, device=seen.device)
    if len(seen) < 10 * max(neighbors, 1):
        return lonely
    means = gaussians["means"].detach()[seen]
    some = means[torch.linspace(0, len(means) - 1, min(len(means), 500), device=means.device).long()]
    exact = "donot_use_mm_for_euclid_dist"  # far from the origin the other way is too coarse
    apart = (torch.cdist(part, means, compute_mode=exact) for part in some.split(50))
    fourth = torch.cat([distances.topk(5, largest=False).values[:, 4] for distances in apart])
    side = (2.0 * fourth.median()).clamp(min=1e-12)
    cells = (means / side).floor()
    cells = (cells - cells.amin(0) + 1.0).clamp(max=2.0**20).long()  # 3 x 21 bits make one key

    def key(where: Tensor) -> Tensor:
        return (where[:, 0] << 42) | (where[:, 1] << 21) | where[:, 2]

    keys, counts = key(cells).unique(return_counts=True)
    found = torch.zeros(len(cells), dtype=torch.long, device=means.device)
    for x, y, z in itertools.product((-1, 0, 1), repeat=3):
        wanted = key(cells + torch.tensor([x, y, z], device=means.device))
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        found += torch.where(keys[place] == wanted, counts[place], 0)
    small = 2.0 * gaussians["scales"].detach()[seen].amax(-1).exp() < side  # a large one reaches others
    alone = (found <= neighbors) & small  # itself is one of those found
    if alone.float().mean() >= FEW:
        lonely[seen] = alone
    return lonely


def _clusters(gaussians: ParameterDict, cell: float) -> Tensor:
    """Label the connected groups of occupied cells: one label [M] for each Gaussian.

    A Gaussian occupies the cells within two standard deviations along its axes. Labels spread to the 26
    neighbors until nothing changes; positions beyond the grid are clamped to its border cells.
    """
    means, device = gaussians["means"], gaussians["means"].device
    rotations = normalized_quat_to_rotmat(F.normalize(gaussians["quats"], dim=-1))  # [M, 3, 3]
    axes = (rotations * gaussians["scales"].exp()[:, None]).transpose(1, 2)  # [M, axis, 3]
    steps = torch.tensor([-2.0, -1.0, 1.0, 2.0], device=device)
    extent = means[:, None] + (steps[:, None, None] * axes[:, None]).flatten(1, 2)  # [M, 12, 3]
    points = torch.cat([means[:, None], extent], 1)  # [M, 13, 3]
    i, j, k = (points / cell + GRID / 2).floor().clamp(0, GRID - 1).long().unbind(-1)
    index = (i * GRID + j) * GRID + k  # [M, 13]
    # Float labels are exact (they stay below 2^24), and max_pool3d is the neighborhood maximum.
    numbers = torch.arange(1.0, GRID**3 + 1, device=device)
    occupied = torch.zeros_like(numbers).index_fill(0, index.flatten(), 1.0)
    labels = (numbers * occupied).view(1, 1, GRID, GRID, GRID)
    while True:
        spread = F.max_pool3d(labels, 3, stride=1, padding=1) * occupied.view_as(labels)
        if torch.equal(spread, labels):
            return labels.flatten()[index[:, 0]].long()
        labels = spread
