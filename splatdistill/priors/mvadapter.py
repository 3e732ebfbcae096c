"""MV-Adapter (2412.03632) of texts on Stable Diffusion 2.1: six level views of a thing at once.

The published file holds what it adds to a base: beside every self-attention a second one with maps of its
own, over the same row of all six views, and an encoder of cameras, whose features go to the down blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import T2IAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from splatdistill.ops import upload
from splatdistill.priors.base import Conditioning
from splatdistill.priors.folders import Folder
from splatdistill.priors.latent import LatentPrior
from splatdistill.priors.multiview import camera_matrices
from splatdistill.priors.single import CAMERA_CELL, CAMERA_CHANNELS
from splatdistill.scene.cameras import Cameras

AZIMUTHS = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)  # of its six views, which are level
SHIFT = 8.0  # by which the signal-to-noise ratio is lower at the last timestep than the base's
ENCODER = "adapter."  # before the names of its weights


class RowAttention(nn.Module):
    """A processor of self-attention that adds another one, over one row of all views of a group.

    The maps have the names of the published weights.
    """

    def __init__(self, width: int, views: int, inner: Any) -> None:
        super().__init__()
        self.views, self.inner = views, inner
        self.to_q_mv, self.to_k_mv, self.to_v_mv = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out_mv = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map hidden_states [n, side * side, D], n a multiple of the views, to the same shape."""
        side = math.isqrt(hidden_states.shape[1])

        def rows(x: Tensor) -> Tensor:  # [n, side * side, D] -> [G, side, heads, views * side, D / heads]
            parts = x.unflatten(1, (side, side)).unflatten(0, (-1, self.views)).transpose(1, 2)
            return parts.flatten(2, 3).unflatten(-1, (attn.heads, -1)).transpose(2, 3)

        query, key, value = (rows(to(hidden_states)) for to in (self.to_q_mv, self.to_k_mv, self.to_v_mv))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(3)
        seen = seen.unflatten(2, (self.views, side)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        return self.inner(attn, hidden_states, *args, **kwargs) + self.to_out_mv[0](seen)


class MVAdapterPrior(LatentPrior):
    """Stable Diffusion 2.1 with MV-Adapter: six level views at once, told of their cameras; see `load`.

    Reads the published file of the adapter with a base's folder. Its noise levels are those that the adapter
    learned at, lower in signal than the base's own (see `shifted`).
    """

    group = len(AZIMUTHS)
    places_deg = tuple((azimuth, 0.0) for azimuth in AZIMUTHS)
    needs_cameras = True
    view_words = False  # it learned from one caption for all views

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether an adapter comes with the folder."""
        return folder.adapter is not None

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the small files show that it cannot be loaded."""
        config = folder.denoiser
        if not LatentPrior.reads(replace(folder, adapter=None)) or not config.get("use_linear_projection"):
            kind = str(config.get("_class_name", "nothing"))[:40]
            raise ValueError(
                f"this MV-Adapter belongs to Stable Diffusion 2.1; {folder.place}/ beside it is a {kind} of "
                "another family: put it into the folder of a Stable Diffusion 2"
            )
        super().check(folder)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alphas_cumprod = shifted(self.alphas_cumprod)

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load the base and the adapter; see `LatentPrior.load`."""
        cls.check(folder)
        return super().load(folder, device, dtype)

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        assert folder.adapter is not None
        unet, encoder = widened(super()._load_unet(folder, dtype))
        state = load_file(folder.adapter)
        fill(encoder, {name: value for name, value in state.items() if name.startswith(ENCODER)})
        fill(unet, {name: value for name, value in state.items() if not name.startswith(ENCODER)}, "_mv.")
        unet.add_module("camera_encoder", encoder)
        return unet.to(dtype)

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with what is read of the cameras [B], the same in all branches."""
        (told,) = upload([camera_planes(cameras)], self.device)
        return replace(cond, extra=told.expand(len(cond.embeddings), -1, -1))

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return the outputs as in `LatentPrior`; n is a multiple of six, with `camera_planes` extra[0]."""
        z_t, hidden, told = (x.to(self.dtype) for x in (z_t, embeddings, extra[0]))
        side = CAMERA_CELL * z_t.shape[-1]
        features = self.unet.camera_encoder(told[..., None, None].expand(-1, -1, side, side))
        known = {"encoder_hidden_states": hidden, "down_intrablock_additional_residuals": features}
        return self.unet(z_t, t, **known, return_dict=False)[0].float()


def widened(unet: Any) -> tuple[Any, Any]:
    """Return a UNet with `RowAttention` at every self-attention, in place, and the encoder of its cameras."""
    processors = dict(unet.attn_processors)
    for name, inner in processors.items():
        if name.endswith("attn1.processor"):
            width = unet.get_submodule(f"{name.removesuffix('.processor')}.to_q").in_features
            processors[name] = RowAttention(width, len(AZIMUTHS), inner)
    unet.set_attn_processor(processors)
    encoder = T2IAdapter(
        in_channels=CAMERA_CHANNELS,
        channels=unet.config.block_out_channels,
        num_res_blocks=unet.config.layers_per_block,
        downscale_factor=CAMERA_CELL,
    )
    return unet, encoder


def fill(network: nn.Module, state: Mapping[str, Tensor], part: str = "") -> None:
    """Load weights into a network: all of those with `part` in their names, and no others.

    Raises ValueError where some are missing, left over, or of another shape.
    """
    places = {name: value for name, value in network.state_dict().items() if part in name}
    missing, others = places.keys() - state.keys(), state.keys() - places.keys()
    if missing or others:
        count, what = (len(missing), "lacks") if missing else (len(others), "has no place for")
        raise ValueError(f"the MV-Adapter {what} {count} weights, such as {min(missing or others)[:90]}")
    if wrong := [name for name, value in places.items() if value.shape != state[name].shape]:
        have, want = (list(tensors[wrong[0]].shape) for tensors in (state, places))
        raise ValueError(f"the MV-Adapter is made for another UNet: {wrong[0][:90]} is {have}, not {want}")
    network.load_state_dict(dict(state), strict=False)


def camera_planes(cameras: Cameras) -> Tensor:
    """Return what the adapter reads of cameras [V]: the direction of view and of the position, in [0, 1].

    An orthographic camera is the same for all pixels; of a perspective one this is the middle of the picture.
    The world is MVDream's: the front of a thing faces -Y.
    """
    poses = camera_matrices(cameras).unflatten(1, (4, 4))
    return (torch.cat([-poses[:, :3, 2], poses[:, :3, 3]], 1) * 0.5 + 0.5).clamp(0.0, 1.0)


def shifted(alphas_cumprod: Tensor, scale: float = SHIFT) -> Tensor:
    """Return alpha_bar [T] whose signal-to-noise ratio is divided by scale^(t / (T - 1)) at timestep t."""
    weight = torch.linspace(0.0, 1.0, len(alphas_cumprod), dtype=alphas_cumprod.dtype)
    signal = alphas_cumprod * scale**-weight
    return signal / (signal + 1.0 - alphas_cumprod)
