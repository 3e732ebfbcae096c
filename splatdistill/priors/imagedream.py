"""ImageDream (2312.02201): MVDream told by a picture as well, its "pixel" variant in the published layout.

A group has a fifth view, the picture's own latents without noise and without a camera, which the others
attend to. The picture's CLIP states become a few tokens behind the text, for which cross-attention has maps
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from splatdistill.errors import UserError
from splatdistill.ops import upload
from splatdistill.priors.base import Conditioning
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.latent import Pictured
from splatdistill.priors.multiview import (
    CAMERA,
    MVDREAM,
    VIEWS,
    MultiViewPrior,
    camera_matrices,
    diffusers_config,
    join_views,
    published_state,
)
from splatdistill.priors.networks import CLIP, load_network, normalization
from splatdistill.scene.cameras import Cameras

HEAD = 64  # width of a head of the resampler
PICTURED = (".to_k_ip.", ".to_v_ip.")


class PerceiverAttention(nn.Module):
    """Attention of queries [n,Q,D] to features and to themselves."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.heads = max(inner // HEAD, 1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """Return the change of the queries [n,Q,D] by features [n,L,D]."""
        queries = self.norm2(queries)
        keys, values = self.to_kv(torch.cat([self.norm1(features), queries], 1)).chunk(2, -1)
        return self.to_out(attended(self.to_q(queries), keys, values, self.heads))


class Resampler(nn.Module):
    """A picture's CLIP states as a few tokens; the names of modules are those of the published weights."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        _, queries, dim = state["latents"].shape
        inner, hidden = len(state["layers.0.0.to_q.weight"]), len(state["layers.0.1.1.weight"])
        output, features = len(state["proj_out.weight"]), state["proj_in.weight"].shape[1]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
        self.latents = nn.Parameter(torch.zeros(1, queries, dim))
        self.proj_in, self.proj_out = nn.Linear(features, dim), nn.Linear(dim, output)
        self.norm_out = nn.LayerNorm(output)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            widen, narrow = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
            forward = nn.Sequential(nn.LayerNorm(dim), widen, nn.GELU(), narrow)
            self.layers.append(nn.ModuleList([PerceiverAttention(dim, inner), forward]))
        self.load_state_dict(dict(state))

    def forward(self, states: Tensor) -> Tensor:
        """Return tokens [n,Q,D] of CLIP's states [n,L,F]."""
        tokens, features = self.latents.expand(len(states), -1, -1), self.proj_in(states)
        for layer in self.layers:
            attention, forward = layer  # pyright: ignore[reportGeneralTypeIssues]
            tokens = tokens + attention(features, tokens)
            tokens = tokens + forward(tokens)
        return self.norm_out(self.proj_out(tokens))


class PicturedAttention(nn.Module):
    """A processor of cross-attention whose last `tokens` keys and values have maps of their own."""

    def __init__(self, to_k: Tensor, to_v: Tensor, tokens: int, weight: float) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Linear(*w.shape[::-1], bias=False) for w in (to_k, to_v))
        self.load_state_dict({"to_k_ip.weight": to_k, "to_v_ip.weight": to_v})
        self.tokens, self.weight = tokens, weight

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output [n,L,D]: attention to the text, and to the picture."""
        text, picture = encoder_hidden_states.split(
            [encoder_hidden_states.shape[1] - self.tokens, self.tokens], 1
        )
        query = attn.to_q(hidden_states)
        read = attended(query, attn.to_k(text), attn.to_v(text), attn.heads)
        seen = attended(query, self.to_k_ip(picture), self.to_v_ip(picture), attn.heads)
        return attn.to_out[1](attn.to_out[0](read + self.weight * seen))


def attended(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Return attention [n,Q,D] of several heads side by side in D."""
    query, keys, values = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, keys, values))
    return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)


class ImageDreamPrior(Pictured, MultiViewPrior):
    """ImageDream: MVDream told by a picture beside the text; see `condition_on`.

    The picture is seen from azimuth 0 and level, as the network was trained; other cameras are as they are.
    """

    needs_picture = True

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is MVDream's with tokens of a picture."""
        config = folder.denoiser
        pictured = number(config, "ip_dim") > 0 and number(config, "camera_dim") == CAMERA
        return config.get("_class_name") == MVDREAM and pictured

    def __init__(self, name: str, unet: Any, vae: Any, encoder: Any, normal: Any, **others: Any) -> None:
        super().__init__(name, unet, vae, **others)
        self.encoder = encoder.eval().requires_grad_(False)
        self.mean, self.std = normal

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        config = folder.denoiser
        unet: Any = UNet2DConditionModel.from_config(diffusers_config(config))
        state, rest = published_state(folder.root / folder.place, config)
        own = {name: state.pop(name) for name in list(state) if any(part in name for part in PICTURED)}
        unet.load_state_dict(state)
        join_views(unet, VIEWS + 1)
        processors = dict(unet.attn_processors)
        for name in processors:
            place = name.removesuffix(".processor")
            if place.endswith("attn2"):
                to_k, to_v = (own[f"{place}.to_{kind}_ip.weight"] for kind in "kv")
                weight = float(config.get("ip_weight", 1.0))
                processors[name] = PicturedAttention(to_k, to_v, number(config, "ip_dim"), weight)
        unet.set_attn_processor(processors)
        prefix = "image_embed."
        named = {key.removeprefix(prefix): value for key, value in rest.items() if key.startswith(prefix)}
        unet.add_module("image_embed", Resampler(named))
        return unet.to(dtype)

    @classmethod
    def _load_reader(cls, folder: Folder, device: torch.device | str) -> dict[str, Any]:
        kinds = (CLIPVisionModel, CLIPVisionModelWithProjection)
        encoder = load_network(folder.root, "image_encoder", torch.float32, allowed=kinds)
        given = normalization(folder.root / "feature_extractor") or CLIP
        normal = tuple(torch.tensor(x, device=device).view(3, 1, 1) for x in given)
        return super()._load_reader(folder, device) | {"encoder": encoder.to(device), "normal": normal}

    @torch.no_grad()
    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with cameras [B], and the picture on the backgrounds of its groups [B,3].

        The null branch sees neither the picture nor its tokens' states.
        """
        if self._reference is None:
            raise UserError(f"prior '{self.name}' needs a picture to start from; give --image FILE")
        matrices, behind = upload([camera_matrices(cameras), background[:: self.group]], self.device)
        pictures = self._reference.before(behind)  # [G, 3, S, S]
        latents = self.encode(pictures).flatten(1)
        none, seen = (self._tokens(states) for states in self._states(pictures))
        texts = len(cond.embeddings) - 1
        shown = torch.stack([torch.zeros_like(latents), *[latents] * texts])
        shown = shown.repeat_interleave(self.group, 1)  # [R, B, C h w]
        extra = torch.cat([matrices.to(shown).expand(len(shown), -1, -1), shown], 2)
        embeddings = self._behind(cond.embeddings, torch.stack([none, *[seen] * texts]))
        others = cond.others
        if others is not None:
            others = self._behind(others, none.expand(len(others), -1, -1, -1))
        return replace(cond, embeddings=embeddings, others=others, extra=extra)

    def _behind(self, texts: Tensor, tokens: Tensor) -> Tensor:
        """Return texts [R,B,L,D] with the tokens [R,G,Q,D] of their groups behind them."""
        return torch.cat([texts, tokens.repeat_interleave(self.group, 1).to(texts)], 2)

    def _states(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return CLIP's last states but one [G,L,F]: none at all, and those of pictures [G,3,S,S]."""
        side = self.encoder.config.image_size
        fitted = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        states = self.encoder((fitted - self.mean) / self.std, output_hidden_states=True).hidden_states[-2]
        return torch.zeros_like(states), states

    def _tokens(self, states: Tensor) -> Tensor:
        return self.unet.image_embed(states.to(self.dtype)).float()

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return the outputs [n,C,h,w] of whole groups; extra[0] has cameras and the picture's latents."""
        told = extra[0].unflatten(0, (-1, self.group))  # [G, 4, 16 + C h w]
        shown = told[:, :1, CAMERA:].unflatten(2, z_t.shape[1:])
        views = torch.cat([z_t.unflatten(0, (-1, self.group)), shown.to(z_t)], 1).flatten(0, 1)
        cameras = F.pad(told[..., :CAMERA], (0, 0, 0, 1)).flatten(0, 1)
        hidden, times = (_one_more(x.unflatten(0, (-1, self.group))) for x in (embeddings, t))
        known = {"encoder_hidden_states": hidden.to(self.dtype), "class_labels": cameras.to(self.dtype)}
        out = self.unet(views.to(self.dtype), times, **known, return_dict=False)[0].float()
        return out.unflatten(0, (-1, self.group + 1))[:, :-1].flatten(0, 1)


def _one_more(each: Tensor) -> Tensor:
    """Return what views [G,4,...] have, and the picture with them: [G * 5, ...]."""
    return torch.cat([each, each[:, :1]], 1).flatten(0, 1)
