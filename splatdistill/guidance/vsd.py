"""Variational Score Distillation, and its student: the teacher with a low-rank adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from splatdistill import ops
from splatdistill.guidance.core import Method, sds_weight
from splatdistill.guidance.query import Comparison, Query, State
from splatdistill.guidance.schedules import Timesteps
from splatdistill.priors.base import Prior, alpha_bar_at

LOSS_SCALE = 1024.0  # of a float16 network: its small gradients would vanish


@dataclass(frozen=True)
class VSD(Method):
    """Variational Score Distillation, 2305.16213: gradient = (1 - ab) (e_g(z_t, y) - e_lora(z_t, y, camera)).

    Args:
        rank: of the student's adapter.
        rate: AdamW's learning rate of the student.
        steps: the student's steps for each of the run.
    """

    name: ClassVar[str] = "vsd"

    timesteps: Timesteps = Timesteps(high=(0.98, 0.50))
    rank: int = 4
    rate: float = 1e-4
    steps: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.rate <= 0.0 or self.steps < 0:
            raise ValueError("vsd: expected rank >= 1, rate > 0 and steps >= 0")

    def start(self, prior: Prior, seed: int) -> Student:
        """Return a new student of this prior; raises UserError for one that cannot be adapted."""
        return Student(prior, self.rank, self.rate, seed)

    def compare(self, query: Query, state: Student) -> Comparison:
        """Return (the student's prediction, z_t) at fresh noise; then the student learns."""
        z_t = query.noised(query.gaussian())
        compared = state.predict(query, z_t)
        state.learn(query, self.steps)
        return Comparison(compared, z_t)

    def weight(self, prior: Prior, t: Tensor) -> Tensor:
        """Return 1 - ab [B] at t [B]."""
        return sds_weight(prior, t)


class Student(State):
    """A LoRA (2106.09685) on the denoiser of a prior, whose own weights are shared and unchanged.

    Initially identical to the teacher. A network that is not told of cameras has them as one more token after
    the text: it is then identical up to a zero token.

    Raises:
        UserError: the prior has no denoiser that could be adapted.
    """

    def __init__(self, prior: Prior, rank: int, rate: float, seed: int) -> None:
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        from splatdistill.priors.multiview import CAMERA

        adaptable = prior.adaptable()
        self.unet: Any = adaptable.module
        self._predict = adaptable.predict
        with torch.random.fork_rng(devices=[]):  # the adapter's first values come from the global generator
            torch.manual_seed(seed)
            self.unet.add_adapter(LoraConfig(r=rank, target_modules=list(adaptable.maps), lora_alpha=rank))
        cast_training_params([self.unet])
        self.learned = {f"unet.{name}": p for name, p in self.unet.named_parameters() if p.requires_grad}
        self.camera: torch.nn.Linear | None = None
        if adaptable.width is not None:
            self.camera = torch.nn.Linear(CAMERA, adaptable.width, device=prior.device)
            for name, p in self.camera.named_parameters():
                self.learned[f"camera.{name}"] = torch.nn.init.zeros_(p)
        self.optimizer = torch.optim.AdamW(self.learned.values(), lr=rate, weight_decay=1e-2)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The student's one."""
        return [self.optimizer]

    def output(self, query: Query, z_t: Tensor, t: Tensor) -> Tensor:
        """Return raw outputs [B,C,h,w] for the query's text and cameras, at z_t [B,C,h,w] and t [B]."""
        from splatdistill.priors.multiview import camera_matrices

        cond, hidden = query.cond, query.cond.embeddings
        if self.camera is not None and query.cameras is not None:
            token = self.camera(ops.send(camera_matrices(query.cameras), hidden))[:, None]  # [B,1,D]
            cond = replace(cond, embeddings=torch.cat([hidden, token.expand_as(hidden[:, :, :1])], dim=2))
        return self._predict(z_t, ops.upload([t], z_t.device)[0], cond)

    def predict(self, query: Query, z_t: Tensor) -> Tensor:
        """Return the noise prediction [B,C,h,w] at z_t, without gradient."""
        with torch.no_grad():
            in_z, in_output = noise_coefficients(query.prior, query.t, z_t)
            return in_z * z_t + in_output * self.output(query, z_t, query.t)

    def learn(self, query: Query, steps: int) -> None:
        """Take `steps` optimizer steps of denoising the query's latents, at uniform timesteps."""
        scale = LOSS_SCALE if self.unet.dtype == torch.float16 else 1.0
        for _ in range(steps):
            t, eps = (query.levels * query.uniform()).long(), query.gaussian()
            z_t = query.noised(eps, t=t)
            in_z, in_output = noise_coefficients(query.prior, t, z_t)
            with torch.enable_grad():
                loss = F.mse_loss(self.output(query, z_t, t), (eps - in_z * z_t) / in_output)
                (scale * loss).backward()
            if scale != 1.0:
                for p in self.learned.values():
                    p.grad = None if p.grad is None else p.grad / scale
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the learned parameters and the optimizer's state."""
        learned = {name: p.detach() for name, p in self.learned.items()}
        return {"learned": learned, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a state_dict; the tensors move to the student's device.

        Raises ValueError, before anything is changed, for tensors of other shapes or that are not finite.
        """
        moments = saved["optimizer"]["state"]
        for index, (name, p) in enumerate(self.learned.items()):
            kept = [saved["learned"][name]]
            kept += [moments[index][key] for key in ("exp_avg", "exp_avg_sq") if index in moments]
            if any(value.shape != p.shape or not value.isfinite().all() for value in kept):
                raise ValueError(f"the student's {name} has another shape, or is not finite")
        with torch.no_grad():
            for name, p in self.learned.items():
                p.copy_(saved["learned"][name])
        self.optimizer.load_state_dict(saved["optimizer"])


def noise_coefficients(prior: Prior, t: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b [B,1,1,1] of eps = a z_t + b output, at timesteps t [B]."""
    columns = ops.send(ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type), z_t)
    return columns[:, 2].view(-1, 1, 1, 1), columns[:, 3].view(-1, 1, 1, 1)
