"""The prior of the teacher of real objects, conditioned on cameras, and on text, a picture, or both."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from splatdistill.priors.base import Conditioning, alpha_bar_at, cut_to_fit
from splatdistill.priors.folders import Folder
from splatdistill.priors.graphs import Graphed
from splatdistill.priors.latent import LatentPrior, Pictured
from splatdistill.priors.networks import load_network
from splatdistill.priors.reading import MAX_WORDS, Vocabulary, canonical
from splatdistill.priors.view_transformer import CLEAN, ViewTransformer, describe_cameras, patch_rays
from splatdistill.scene.cameras import Cameras

PART = "transformer"  # the denoiser's folder
VIEWS = 4  # of a scene that are denoised together
USUAL = (0.0, math.radians(15.0), 3.0, math.radians(42.0), 0.0, 1.0, 1.0, 1.0, 0.0)  # the default camera
TOLD = len(USUAL)  # of each view: azimuth, elevation, distance, field of view, relative, background, shown


class ViewPrior(Pictured, LatentPrior):
    """The teacher of real objects: a transformer told of cameras and backgrounds; see `LatentPrior.load`.

    Samples come in groups of VIEWS of one scene; without cameras, each is alone and from the front. With
    `condition_on`, the text branch gets the picture as one more view of the scene, without noise, and
    azimuths are relative to it.
    """

    group = VIEWS
    view_words = False

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is a ViewTransformer, in a folder of that part's name."""
        return folder.json(f"{PART}/config.json").get("_class_name") == ViewTransformer.__name__

    def __init__(
        self, name: str, unet: Any, vae: Any, scheduler: Any, vocabulary: Vocabulary, text_encoder: Any
    ) -> None:
        super().__init__(name, unet, vae, text_encoder, None, scheduler)
        self.reader = vocabulary
        self.vocabulary = frozenset(vocabulary.words)

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the small files show that it cannot be loaded."""
        super().check(replace(folder, place=PART))

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load a folder in diffusers' layout whose denoiser is in transformer/; see `LatentPrior.load`."""
        return super().load(replace(folder, place=PART), device, dtype)

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        return load_network(folder.root, PART, dtype)

    @classmethod
    def _load_reader(cls, folder: Folder, device: torch.device | str) -> dict[str, Any]:
        text_encoder = load_network(folder.root, "text_encoder", torch.float32).to(device)
        return {"text_encoder": text_encoder, "vocabulary": Vocabulary.load(folder.root)}

    def alone(self) -> Self:
        """Return a copy that draws single views from the front."""
        single = copy.copy(self)
        single.group = 1
        single._denoise = Graphed(single.network)
        return single

    def understand(self, text: str) -> tuple[str, list[str]]:
        """Return a text in the words of the vocabulary; see `Prior.understand`."""
        return self.reader.understand(text, strict=False)

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return `text`, cut so that all of it is read; views and backgrounds are not read as words."""
        return cut_to_fit(text, ("",), lambda whole: len(canonical(whole).split()) < MAX_WORDS)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return hidden states [n,L,D] of the text encoder, float32; other words as `understand` has them."""
        read = {text: self.reader.numbers(self.understand(text)[0]) for text in dict.fromkeys(texts)}
        ids = torch.tensor([read[text] for text in texts], device=self.device)
        return self.text_encoder(input_ids=ids)[0].float()

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with cameras [B], backgrounds [B,3] and the picture, if any."""
        reference, branches = self._reference, len(cond.embeddings)
        first = 0.0 if reference is None else float(reference.camera.azimuth_deg[0])
        told = self._told(cameras, background, first, reference is not None)
        if reference is None:
            return replace(cond, extra=told.to(self.device).expand(branches, -1, -1))
        groups = background[:: self.group]
        latents = self.encode(reference.before(groups.to(self.device))).flatten(1)  # [G, C * h * w]
        pictured = self._told(reference.camera, groups[:1], first, True).expand(len(groups), -1)
        shown = torch.cat([pictured.to(latents), latents], 1).repeat_interleave(self.group, 0)
        extra = torch.cat([told.to(shown), shown], 1).repeat(branches, 1, 1)
        extra[1:, :, TOLD - 1] = 1.0
        return replace(cond, extra=extra)

    def _told(self, cameras: Cameras, background: Tensor, first_deg: float, relative: bool) -> Tensor:
        azimuth = (cameras.azimuth_deg - first_deg).deg2rad()
        fov = cameras.fov_deg.deg2rad()
        orbit = torch.stack([azimuth, cameras.elevation_deg.deg2rad(), cameras.distance, fov], 1)
        flag = torch.full_like(orbit[:, :1], float(relative))
        return torch.cat([orbit, flag, background.to(orbit), torch.zeros_like(flag)], 1)  # [B, TOLD]

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return raw float32 outputs [n,C,h,w] at z_t [n,C,h,w], t [n], texts [n,L,D], with extra[0]."""
        if not extra:
            told = torch.tensor(USUAL, device=z_t.device).expand(len(z_t), -1)
            return self._draw(z_t, t, embeddings, told, 1)
        told = extra[0]
        shown = told[:: self.group, TOLD - 1] > 0  # [G]
        if told.shape[1] == TOLD or not shown.any():
            return self._draw(z_t, t, embeddings, told[:, :TOLD], self.group)
        out = torch.empty_like(z_t, dtype=torch.float32)
        each = shown.repeat_interleave(self.group)
        if not shown.all():
            rest = ~each
            out[rest] = self._draw(z_t[rest], t[rest], embeddings[rest], told[rest, :TOLD], self.group)
        out[each] = self._draw_beside(z_t[each], t[each], embeddings[each], told[each])
        return out

    def _draw_beside(self, z_t: Tensor, t: Tensor, embeddings: Tensor, told: Tensor) -> Tensor:
        """Return outputs as `_draw`, for groups that each have a picture beside them."""
        views, told = told.unflatten(0, (-1, self.group)), told[:, :TOLD]
        picture = views[:, :1, 2 * TOLD :].unflatten(2, z_t.shape[1:]).to(z_t)  # [G, 1, C, h, w]
        z_t = torch.cat([picture, z_t.unflatten(0, (-1, self.group))], 1).flatten(0, 1)
        clean = torch.full_like(t[:: self.group], CLEAN)[:, None]
        t = torch.cat([clean, t.unflatten(0, (-1, self.group))], 1).flatten()
        told = torch.cat([views[:, :1, TOLD : 2 * TOLD], told.unflatten(0, (-1, self.group))], 1).flatten(
            0, 1
        )
        texts = embeddings[:: self.group].repeat_interleave(self.group + 1, 0)
        out = self._draw(z_t, t, texts, told, self.group + 1)
        return out.unflatten(0, (-1, self.group + 1))[:, 1:].flatten(0, 1)

    def _draw(self, z_t: Tensor, t: Tensor, embeddings: Tensor, told: Tensor, views: int) -> Tensor:
        azimuth, elevation, distance, fov, relative = told[:, :5].float().unbind(1)
        alpha_bar = alpha_bar_at(self, t).to(z_t.device, torch.float32)
        cameras = describe_cameras(azimuth, elevation, distance, fov, relative)
        rays = patch_rays(azimuth, elevation, distance, fov, self.unet.side)
        text = embeddings[::views].to(self.dtype)
        return self.unet(z_t.float(), t, alpha_bar, text, cameras, rays, told[:, 5:8].float(), views)
