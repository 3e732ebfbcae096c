"""VSD's student: the teacher with a low-rank adapter, which learns along the run what is drawn by now."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn

from splatdistill import ops
from splatdistill.errors import UserError
from splatdistill.guidance.noise import Query, StudentSettings
from splatdistill.priors.base import Prior, alpha_bar_at
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.multiview import CAMERA, camera_matrices

ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention's linear maps


class Student(nn.Module):
    """A LoRA (2106.09685) on the UNet of a prior, whose own weights are shared and stay as they are.

    The camera is told as one more token behind the text. At first all predictions are the teacher's, but for
    a token of zeros. Raises UserError for a prior without a UNet.
    """

    def __init__(self, prior: Prior, settings: StudentSettings, seed: int) -> None:
        super().__init__()
        if not isinstance(prior, LatentPrior):
            raise UserError(f"vsd adapts the UNet of its teacher, and prior '{prior.name}' has none")
        self.settings = settings
        self._prior = copy.copy(prior)
        self.unet: Any = copy.deepcopy(prior.unet, {id(p): p for p in prior.unet.parameters()})
        with torch.random.fork_rng(devices=[]):  # the adapter's first values come from the global generator
            torch.manual_seed(seed)
            self.unet.add_adapter(
                LoraConfig(r=settings.rank, target_modules=ADAPTED, lora_alpha=settings.rank)
            )
        cast_training_params([self.unet])
        self._prior.unet = self.unet
        self.camera = nn.Linear(CAMERA, self.unet.config.cross_attention_dim, device=prior.device)
        nn.init.zeros_(self.camera.weight)
        nn.init.zeros_(self.camera.bias)
        self.learned = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.learned.values(), lr=settings.rate, weight_decay=1e-2)

    def forward(self, asked: Query, z_t: Tensor, t: Tensor) -> Tensor:
        """Raw outputs [B,C,h,w] for the text and the cameras of the query, at z_t [B,C,h,w] and t [B]."""
        cond, hidden = asked.cond, asked.cond.embeddings[1]
        if asked.cameras is not None:
            told = camera_matrices(asked.cameras).to(hidden)
            hidden = torch.cat([hidden, self.camera(told)[:, None]], dim=1)
        extra = () if cond.extra is None else (cond.extra[1],)
        return self._prior.network(z_t, t.to(z_t.device), hidden, *extra)

    def predict(self, asked: Query, z_t: Tensor) -> Tensor:
        """The noise prediction [B,C,h,w] at z_t, without gradient."""
        with torch.no_grad():
            in_z, in_output = noise_coefficients(asked.prior, asked.t, z_t)
            return in_z * z_t + in_output * self(asked, z_t, asked.t)

    def learn(self, asked: Query) -> None:
        """Take `settings.steps` steps toward denoising the latents of the query, at uniform timesteps."""
        for _ in range(self.settings.steps):
            t, eps = (asked.levels * asked.uniform()).long(), asked.gaussian()
            z_t = asked.noised(eps, t=t)
            in_z, in_output = noise_coefficients(asked.prior, t, z_t)
            with torch.enable_grad():
                loss = F.mse_loss(self(asked, z_t, t), (eps - in_z * z_t) / in_output)
                loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def noise_coefficients(prior: Prior, t: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """a and b [B,1,1,1] of eps = a z_t + b output, at timesteps t [B]."""
    columns = ops.prediction_coefficients(alpha_bar_at(prior, t), prior.prediction_type).to(z_t)
    return columns[:, 2].view(-1, 1, 1, 1), columns[:, 3].view(-1, 1, 1, 1)
