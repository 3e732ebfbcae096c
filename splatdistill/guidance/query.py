"""The inputs of a method (latents, timesteps and conditioning) and its results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import ops
from splatdistill.priors.base import Conditioning, Prior, alpha_bar_at
from splatdistill.scene.cameras import Cameras


class Comparison(NamedTuple):
    """The noise or prediction eps to compare with, at z_t; both [B,C,h,w] and without gradient.

    eps is the noise in z_t, or another prediction at z_t. predicted: what takes the place of the guided
    prediction at z_t, where the method has evaluated it already or wants another; None for the guided one.
    """

    eps: Tensor
    z_t: Tensor
    predicted: Tensor | None = None


class State:
    """The state of a method during one run. This one, of a method without state, is empty."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Of what the method learns, if anything: over several processes their gradients are averaged."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which `load_state_dict` continues."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a state_dict on the device of this state."""


@dataclass(frozen=True, eq=False)
class Source:
    """The source of an edit: its latents z [B,C,h,w] in the same views, and its branches."""

    z: Tensor
    cond: Conditioning


@dataclass(frozen=True, eq=False)
class Query:
    """The inputs of a method: latents z [B,C,h,w] at timesteps t [B] (on the CPU), and their conditioning.

    Args:
        prior: the teacher.
        z: clean latents, without gradient.
        t: timesteps.
        cond: the guidance branches, at the method's scale.
        generator: source of random numbers.
        origin: what is edited, or None.
        cameras: of the samples [B], or None.
        scene: the Gaussians that the samples show, or None.
        progress: the share of the run that is done.
    """

    prior: Prior
    z: Tensor
    t: Tensor
    cond: Conditioning
    generator: torch.Generator | None = None
    origin: Source | None = None
    cameras: Cameras | None = None
    scene: ParameterDict | None = None
    progress: float = 0.0

    @property
    def levels(self) -> int:
        """The number of timesteps T."""
        return len(self.prior.alphas_cumprod)

    @property
    def source(self) -> Source:
        """The source of the edit; raises ValueError where there is none."""
        if self.origin is None:
            raise ValueError("this method edits: it needs a source")
        return self.origin

    def at(self, t: Tensor) -> "Query":
        """Return the same query at other timesteps [B]."""
        return replace(self, t=t)

    def gaussian(self) -> Tensor:
        """Draw noise from N(0, I) [B,C,h,w]."""
        return gaussian_like(self.z, self.generator)

    def uniform(self) -> Tensor:
        """Draw U(0, 1) [B], float64 on the CPU, one number for each group of views."""
        device = "cpu" if self.generator is None else self.generator.device
        count = len(self.t) // self.prior.group
        u = torch.rand(count, generator=self.generator, device=device, dtype=torch.float64).cpu()
        return u.repeat_interleave(self.prior.group)

    def further(self, spread: float, lowest: float) -> Tensor:
        """Draw t + floor(U(0, spread (t - lowest T))) [B], from 1 to T - 1; spread 0 draws nothing."""
        last = self.levels - 1
        if spread == 0.0:
            return self.t.clamp(1, last)
        room = (spread * (self.t - int(lowest * self.levels)).double()).clamp(min=0.0)
        room = torch.minimum(room, (last - self.t).double())
        return (self.t + (room * self.uniform()).long()).clamp(1, last)

    def noised(self, eps: Tensor, z: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Return z_t [B,C,h,w] of z, or of other latents, with the noise eps at t, or at another timestep."""
        return add_noise(self.prior, self.z if z is None else z, self.t if t is None else t, eps)

    def predict(self, z_t: Tensor, cond: Conditioning | None = None, t: Tensor | None = None) -> Tensor:
        """Return the guided prediction [B,C,h,w] at z_t, of other branches or timesteps if given."""
        return predicted_noise(self.prior, z_t, self.t if t is None else t, cond or self.cond)


def add_noise(prior: Prior, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps, [B,C,h,w]."""
    alpha_bar = alpha_bar_at(prior, t)
    scales = ops.send(torch.stack([alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()]), z)
    signal, sigma = scales.view(2, -1, 1, 1, 1)
    return signal * z + sigma * eps


def gaussian_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, I) of z's shape, on its device; the numbers come from the generator's device."""
    device = z.device if generator is None else generator.device
    return ops.send(torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype), z)


def predicted_noise(prior: Prior, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Return the guided prediction eps_hat [B,C,h,w] at z_t [B,C,h,w], t [B]."""
    coefficients = ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type)
    unweighted = torch.cat([coefficients, torch.ones(len(t), 1)], dim=1)
    there, weights, unweighted = ops.upload([t, cond.weights, unweighted], z_t.device)
    outputs = prior.predict(z_t, there, cond)
    nothing = torch.zeros_like(z_t)
    return ops.noise_residual(z_t, outputs, weights, unweighted, nothing, cond.perp_neg)[0]
