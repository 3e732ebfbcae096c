"""Image-conditioned priors: novel views of a pictured object.

Zero-1-to-3 (2303.11328): the denoiser reads the picture's latents beside the noisy ones, and instead of a
text one token, a projection of the picture's CLIP embedding and the relative camera pose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from splatdistill.errors import UserError
from splatdistill.ops import upload
from splatdistill.priors.base import Conditioning
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.latent import LatentPrior, Pictured, reads_text_alone
from splatdistill.priors.networks import CLIP, STEM, load_network, normalization, weights_file
from splatdistill.scene.cameras import Cameras
from splatdistill.scene.pictures import Reference

STABLE = re.compile(r"stable[-_ ]?zero[-_ ]?123", re.IGNORECASE)
PROJECTIONS = (("clip_camera_projection", "proj"), ("cc_projection", "projection"))  # folders, their layers


class Zero123Prior(Pictured, LatentPrior):
    """Zero-1-to-3 and its kin: a picture and a relative camera instead of a text; see `condition_on`.

    Reads Zero-1-to-3's folders in diffusers layout, with safetensors.

    stable: whether it is Stable Zero123, which is told the picture's polar angle in place of the distance.
    """

    view_words = False
    needs_cameras = True
    needs_picture = True

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is a UNet that reads a picture's latents, with a token projection."""
        config = folder.denoiser
        twice = number(config, "in_channels") == 2 * number(config, "out_channels")
        projection = any((folder.root / part).is_dir() for part, _ in PROJECTIONS)
        return reads_text_alone(config) and twice and projection

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        scheduler: Any,
        projection: nn.Linear,
        encoder: Any | None = None,
        normal: tuple[Tensor, Tensor] | None = None,
        stable: bool = False,
    ) -> None:
        """Take the networks of a folder.

        `encoder` reads pictures normalized by the mean and standard deviation `normal`, [3, 1, 1] each.
        """
        super().__init__(name, unet, vae, None, None, scheduler)
        self.stable = stable
        self.projection = projection.eval().requires_grad_(False)
        self.encoder = None if encoder is None else encoder.eval().requires_grad_(False)
        self.mean, self.std = normal or (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))

    @classmethod
    def _load_reader(cls, folder: Folder, device: torch.device | str) -> dict[str, Any]:
        projection = load_projection(folder.root).to(device)
        reader: dict[str, Any] = {"projection": projection, "stable": is_stable(folder.root)}
        if not (folder.root / "image_encoder").is_dir():
            return reader
        encoder = load_network(folder.root, "image_encoder", torch.float32)
        given = normalization(folder.root / "feature_extractor") or CLIP
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in given)
        return reader | {"encoder": encoder.to(device), "normal": (mean, std)}

    @property
    def reference(self) -> Reference:
        """The picture; raises UserError where there is none."""
        if self._reference is None:
            raise UserError(f"prior '{self.name}' needs a picture to start from; give --image FILE")
        return self._reference

    def embed(self, texts: list[str]) -> Tensor:
        """Return zeros [n,1,D]: this network reads no text."""
        return torch.zeros(len(texts), 1, self.projection.out_features, device=self.device)

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return the text unchanged: this network does not read it."""
        return text

    @torch.no_grad()
    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return two branches for cameras [B]: null, and the picture on backgrounds [B,3] with its token."""
        pictures = self.reference.before(upload([background], self.device)[0])  # [B, 3, S, S]
        latents = self.encode(pictures) / self._scale + self._shift  # as the autoencoder gives them
        token = relative_pose(self.reference.camera, cameras.to(self.device), self.stable)
        seen = [] if self.encoder is None else [self._embedding(pictures)]
        token = self.projection(torch.cat([*seen, token], dim=1))[:, None]  # [B, 1, D]
        embeddings = torch.stack([torch.zeros_like(token), token])
        return Conditioning(embeddings, cond.scale, extra=torch.stack([torch.zeros_like(latents), latents]))

    def _embedding(self, pictures: Tensor) -> Tensor:
        """Return CLIP's embeddings [B,F] of pictures [B,3,S,S] in [0,1]."""
        encoder: Any = self.encoder
        side = encoder.config.image_size
        fitted = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return encoder((fitted - self.mean) / self.std).image_embeds

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return the outputs as in `LatentPrior`; extra[0] are the picture's latents [n,C,h,w]."""
        z_t = torch.cat([z_t, extra[0]], dim=1).to(self.dtype)
        hidden = embeddings.to(self.dtype)
        return self.unet(z_t, timestep=t, encoder_hidden_states=hidden, return_dict=False)[0].float()


def is_stable(folder: Path) -> bool:
    """Return whether a folder is Stable Zero123's, by its path or its card's title; its files do not tell."""
    card = folder / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    titles = [line for line in lines if line.startswith("# ")][:1]
    return any(STABLE.search(name) for name in (*folder.resolve().parts[-3:], *titles))


def relative_pose(reference: Cameras, cameras: Cameras, stable: bool = False) -> Tensor:
    """Return relative poses from cameras (one, or [V]) to others: [V,4], in radians.

    Polar angle down, sine and cosine of azimuth, increase of distance; for Stable Zero123, in its place, the
    first camera's polar angle.
    """
    polar = (reference.elevation_deg - cameras.elevation_deg).deg2rad()
    azimuth = (cameras.azimuth_deg - reference.azimuth_deg).deg2rad()
    last = cameras.distance - reference.distance
    if stable:
        last = (90.0 - reference.elevation_deg).deg2rad().expand_as(last)
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), last], dim=1)


def load_projection(folder: Path) -> nn.Linear:
    """Load the token's linear map, under either published name; ValueError if there is none."""
    for part, layer in PROJECTIONS:
        if (folder / part).is_dir():
            state = load_file(weights_file(folder / part, STEM))
            weight = state[f"{layer}.weight"].float()
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": state[f"{layer}.bias"].float()})
            return linear
    raise ValueError(f"there is no {PROJECTIONS[0][0]}/")
