"""The mutable state of a run; it saves and restores itself on the run's device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from splatdistill.config.schema import Config, OptimizerConfig
from splatdistill.errors import Diverged, UserError
from splatdistill.guidance.query import State
from splatdistill.guidance.schedules import Linear
from splatdistill.scene.densification import Densifier
from splatdistill.scene.gaussians import NAMES, finite_mask, from_tensors, init_blob, joined, select
from splatdistill.training.origin import Origin

LARGEST_RATE = 10.0  # largest learning rate; beyond, one step destroys a scene


@dataclass
class TrainState:
    """The contents of a checkpoint, except the states of torch's global generators."""

    gaussians: torch.nn.ParameterDict
    optimizers: dict[str, torch.optim.Optimizer]
    rates: OptimizerConfig  # the optimizers' settings
    densifier: Densifier
    generator: torch.Generator  # on the CPU: cameras, backgrounds, timesteps and noise
    method: State | None = None  # of the guide; None before it is started
    step: int = 0  # steps done
    grip: float = 0.0  # how firmly the run holds on to a sound splat, from 0 to 1; not saved, see `surprise`
    skipped: int = 0  # number of bad steps among them
    bad_in_a_row: int = 0

    @property
    def device(self) -> torch.device:
        """The device of the Gaussians."""
        return self.gaussians["means"].device

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values; see `checkpoint.save`."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "gaussians": {name: self.gaussians[name].detach() for name in NAMES},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "densifier": self.densifier.state_dict(),
            "method": {} if self.method is None else self.method.state_dict(),
            "generator": self.generator.get_state(),
            "global_rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "step": self.step,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned, on a device, as if the run was never interrupted.

        The learning rates stay those of this state: a resumed run may have others. saved must be valid; see
        `checkpoint.validate`.
        """
        self.gaussians = from_tensors(**saved["gaussians"]).to(device)
        self.optimizers = make_optimizers(self.gaussians, self.rates)
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["optimizers"][name]["state"], "param_groups": groups})
        self.densifier.load_state_dict(saved["densifier"], self.gaussians)
        if saved["method"]:
            if self.method is None:
                raise ValueError("load_state_dict: start the method before its state is loaded")
            self.method.load_state_dict(saved["method"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global_rng"]["cpu"])
        if saved["global_rng"]["cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(saved["global_rng"]["cuda"], device)
        self.step, self.skipped = saved["step"], saved["skipped"]
        self.bad_in_a_row = saved["bad_in_a_row"]

    def drop_broken(self) -> int:
        """Remove Gaussians that are not finite, so that what is saved is valid; return how many.

        Raises Diverged when they are more than half.
        """
        bad = ~finite_mask(self.gaussians)
        count = int(bad.sum())
        if 2 * count > len(bad):
            raise Diverged(
                f"{count} of {len(bad)} Gaussians are not finite after step {self.step}; lower the learning "
                "rates (optimizer.*), or try another --seed"
            )
        if count:
            self.densifier.remove(self.gaussians, self.optimizers, bad)
        return count

    def set_learning_rates(self, progress: float) -> None:
        """Decay every learning rate linearly to `rates.final` of its start; progress in [0, 1].

        They are the lower, the firmer the grip: Adam's steps are as long for a small gradient as for a large.
        """
        factor = Linear(1.0, self.rates.final)(progress) * (1.0 - self.grip)
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = getattr(self.rates, name) * factor


def new_state(config: Config, device: torch.device, origin: Origin | None = None) -> TrainState:
    """Return the state before the first step: a random blob, or a splat, in a mask's region with seeds."""
    torch.manual_seed(config.seed)  # the source of gsplat's strategies
    generator = torch.Generator().manual_seed(config.seed)
    scene, changeable = config.gaussians, None
    if origin is None:
        gaussians = init_blob(
            scene.count, scene.radius, opacity=scene.opacity, sh_degree=scene.sh_degree, generator=generator
        )
    else:
        gaussians, changeable = select(origin.placed, slice(None)), origin.changeable
        if origin.mask is not None and config.edit.seeds:
            seeds = origin.mask.seeds(config.edit.seeds, gaussians["shN"].shape[1], generator)
            gaussians = joined(gaussians, seeds.to(device))
            changeable = torch.nn.functional.pad(changeable, (0, config.edit.seeds), value=True)
    gaussians = gaussians.to(device)
    densifier = Densifier(config.densification, changeable=changeable)
    optimizers = make_optimizers(gaussians, config.optimizer)
    densifier.initialize(gaussians, optimizers)
    return TrainState(gaussians, optimizers, config.optimizer, densifier, generator)


def make_optimizers(
    gaussians: torch.nn.ParameterDict, rates: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """Return one Adam a parameter, as gsplat's strategies expect them; raises UserError for rates of none."""
    betas = (rates.beta1, rates.beta2)
    for name in NAMES:
        if not getattr(rates, name) <= LARGEST_RATE:
            raise UserError(
                f"optimizer.{name} is {getattr(rates, name):g}; Adam moves every parameter so far in a step, "
                f"in a scene of radius 1: expected at most {LARGEST_RATE:g}"
            )
    try:
        return {
            name: torch.optim.Adam(
                [gaussians[name]], lr=getattr(rates, name), betas=betas, eps=1e-15, fused=True
            )
            for name in NAMES
        }
    except ValueError as error:
        raise UserError(f"optimizer: {error}; expected rates of 0 or more and betas from 0 to 1") from error
