"""The shipped teacher's autoencoder: an orthogonal basis of 8 x 8 patches, and a residual decoder.

Encoding is one linear map, the first principal components of patches of pictures: it costs next to nothing
forward and backward, and a distance between latents is one between pictures. Each component is scaled by its
standard deviation to the power -1/2, halfway to white.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class PatchCodec(ModelMixin, ConfigMixin):
    """An autoencoder of images [B, 3, H, W] in [-1, 1] to latents [B, C, H / 8, W / 8], as AutoencoderTiny.

    Args:
        latent_channels: components that are kept.
        patch_size: pixels a side of a patch.
        width: features of the decoder.
        layers: residual blocks of the decoder.
        scaling_factor: of the latents; the basis has the scale in it, so 1.
        block_out_channels: its length gives the downsampling factor, as in diffusers' classes.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 24,
        patch_size: int = 8,
        width: int = 192,
        layers: int = 3,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.patch = patch_size
        self.basis: Any = nn.Conv2d(3, latent_channels, patch_size, stride=patch_size)
        self.inverse: Any = nn.ConvTranspose2d(latent_channels, 3, patch_size, stride=patch_size)
        self.spread = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(layers))
        self.mend: Any = nn.Conv2d(width, 3 * patch_size**2, 1)
        nn.init.zeros_(self.mend.weight)
        nn.init.zeros_(self.mend.bias)

    def fit(self, pictures: Tensor) -> None:
        """Set the basis from images [B, 3, H, W] in [-1, 1]: the principal components of their patches."""
        size, count = self.patch, self.basis.out_channels
        patches = F.unfold(pictures.double(), size, stride=size).mT.flatten(0, 1)  # [n, 3 * size^2]
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).mT @ (patches - mean) / len(patches))
        basis = vectors.flip(1)[:, :count].mT  # [C, 3 * size^2]
        basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)
        scale = values.flip(0)[:count, None].clamp(min=1e-8) ** -0.25
        scale = scale / (values.flip(0)[:count].sqrt() * scale[:, 0] ** 2).mean().sqrt()
        with torch.no_grad():
            self.basis.weight.copy_((basis * scale).view_as(self.basis.weight))
            self.basis.bias.copy_(-(basis * scale) @ mean)
            self.inverse.weight.copy_((basis / scale).view_as(self.inverse.weight))
            self.inverse.bias.zero_()
            self.mend.bias.copy_(mean)

    def encode(self, pictures: Tensor) -> Any:
        """Return `.latents` [B, C, h, w] of images [B, 3, H, W] in [-1, 1]."""
        return SimpleNamespace(latents=self.basis(pictures))

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        """Return `.sample`, or a tuple of it: images [B, 3, H, W] of latents [B, C, h, w]."""
        hidden = self.spread(latents)
        for block in self.blocks:
            hidden = block(hidden)
        fine = F.pixel_shuffle(self.mend(hidden), self.patch)
        sample = self.inverse(latents) + fine
        return SimpleNamespace(sample=sample) if return_dict else (sample,)


class Residual(nn.Module):
    """A residual block of 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, width, h, w] to the same shape."""
        return hidden + self.second(F.relu(self.first(F.relu(hidden))))
