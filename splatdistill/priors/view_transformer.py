"""The shipped teacher's denoiser: a transformer over the patches of one or more views of a scene.

It is conditioned on cameras by the rays of its patches, on the background by its color, and on content by a
text, by pictures of the scene from other cameras, or by both. The pictures are more channels of the noisy
latents, as in Zero-1-to-3 (2303.11328). Some layers attend within each view, on patches of 2 x 2 latents;
between them, the others attend across all views, on patches of 4 x 4, and hold most of the weights. Matrix
products are few and large: attention and MLP of a layer share one normalization and run in parallel
(2302.05442), with squared ReLU (2109.08668).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

CAMERA = 9  # features of a camera, see `describe_cameras`
RAY = 9  # features of a ray: origin, direction, moment
TIME = 128  # features of the noise level


class Layer(nn.Module):
    """A transformer layer with parallel attention and MLP.

    x + gate W_out [attention(q, k, v), relu(m)^2], with [q, k, v, m] = W_in (scale norm(x) + shift).
    """

    def __init__(self, width: int, head: int, told: int, text: int = 0, hidden: int = 4) -> None:
        """Create a layer; `told`: size of the modulation vector; `text`: size of text tokens, 0 for none."""
        super().__init__()
        self.width, self.head, self.hidden = width, head, hidden * width
        self.enter = nn.Linear(width, 3 * width + self.hidden)
        self.leave = nn.Linear(width + self.hidden, width)
        self.modulate = nn.Linear(told, 3 * width)
        self.words = nn.Linear(text, 2 * width) if text else None
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, told: Tensor, text: Tensor | None = None) -> Tensor:
        """Attend within each of G groups; returns x.

        x [G, views, tokens, D]; told [G, views, 1, E] is the modulation vector; text [G, L, T].
        """
        scale, shift, gate = self.modulate(told).chunk(3, -1)
        q, k, v, m = self._entering(torch.addcmul(shift, F.rms_norm(x, x.shape[-1:]), 1 + scale), text)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return torch.addcmul(x, 1 + gate, self.leave(torch.cat([seen, F.relu(m).square()], -1)))

    def attention(self, x: Tensor, told: Tensor, text: Tensor) -> Tensor:
        """Return how much each place looks at each word, [G * views, heads, tokens, L], as shares of 1."""
        scale, shift, _ = self.modulate(told).chunk(3, -1)
        q, k, *_ = self._entering(torch.addcmul(shift, F.rms_norm(x, x.shape[-1:]), 1 + scale), text)
        shares = (q.float() @ k.float().mT * self.head**-0.5).softmax(-1)[..., -text.shape[1] :]
        return shares.unflatten(2, x.shape[1:3]).transpose(1, 2).flatten(0, 1)

    def _entering(self, normed: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v [G, heads, ., head] of all views, the text's keys and values last, and m."""
        groups, views, tokens, width = normed.shape
        q, k, v, m = self.enter(normed).split([width, width, width, self.hidden], -1)
        q, k, v = (part.reshape(groups, views * tokens, -1, self.head) for part in (q, k, v))
        if self.words is not None and text is not None:
            known = self.words(text).unflatten(-1, (2, -1, self.head))  # [G, L, 2, heads, head]
            k, v = torch.cat([k, known[:, :, 0]], 1), torch.cat([v, known[:, :, 1]], 1)
        q, k = F.rms_norm(q, (self.head,)), F.rms_norm(k, (self.head,))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), m


class ViewTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A transformer that predicts v of noisy latents [n, C, h, w] of the views of scenes; see the module.

    Each channel is predicted as the best linear guess from the noisy latents and the channel's mean and
    variance, plus what the network adds: F of EDM (2206.00364, eq. 7), for each channel by itself.

    Args:
        in_channels, out_channels, sample_size: of the latents; the two are the same.
        patch_size: of the outer layers' patches.
        outer_width, outer_layers: of the layers that see one view, half before and half after the others.
        width, layers: of the layers that see all views together.
        head: features of an attention head.
        told: features of the vector of noise level, camera, background and text that modulates the layers.
        cross_attention_dim: features of the text's words.
        shown: pictures beside each view.
        offset: features that say where each of them was taken.
        means, deviations: of each channel of the latents.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - the keys of config.json
        self,
        in_channels: int = 24,
        out_channels: int = 24,
        sample_size: int = 16,
        patch_size: int = 2,
        outer_width: int = 256,
        outer_layers: int = 2,
        width: int = 512,
        layers: int = 6,
        head: int = 64,
        told: int = 256,
        cross_attention_dim: int = 256,
        shown: int = 3,
        offset: int = 5,
        means: tuple[float, ...] | None = None,
        deviations: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch_size
        self.side = sample_size // patch_size
        entering = in_channels * patch_size**2
        self.register_buffer("mean", torch.tensor(means or [0.0] * in_channels).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(deviations or [1.0] * in_channels).view(-1, 1, 1))
        self.embed = nn.Linear(entering * (1 + shown) + RAY, outer_width)
        self.places = nn.Parameter(torch.randn(self.side**2, outer_width) * 0.02)
        self.embed_time = nn.Sequential(nn.Linear(TIME, told), nn.SiLU(), nn.Linear(told, told))
        self.embed_camera = nn.Sequential(
            nn.Linear(CAMERA + 3 + offset * shown, told), nn.SiLU(), nn.Linear(told, told)
        )
        self.embed_text = nn.Linear(cross_attention_dim, told)
        sizes = (outer_width, head, told)
        self.before = nn.ModuleList(Layer(*sizes) for _ in range(outer_layers // 2))
        self.narrow = nn.Linear(4 * outer_width, width)
        self.inner = nn.ModuleList(Layer(width, head, told, cross_attention_dim) for _ in range(layers))
        self.widen = nn.Linear(width, 4 * outer_width)
        self.after = nn.ModuleList(Layer(*sizes) for _ in range(outer_layers - outer_layers // 2))
        self.modulate = nn.Linear(told, 2 * outer_width)
        self.predict = nn.Linear(outer_width, entering)
        for zero in (self.predict, self.modulate):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        alpha_bar: Tensor,
        encoder_hidden_states: Tensor,
        cameras: Tensor,
        rays: Tensor,
        background: Tensor,
        shown: Tensor,
        offsets: Tensor,
        views: int = 1,
    ) -> Tensor:
        """Predict v [n, C, h, w].

        Args:
            sample: latents [n, C, h, w]; `views` consecutive ones belong to one scene.
            timestep: [n] in [0, 1000).
            alpha_bar: of the timesteps, [n].
            encoder_hidden_states: the scenes' words [n / views, L, T]; the last one summarizes the text.
            cameras: [n, 9] of `describe_cameras`.
            rays: [n, side^2, 9] of `patch_rays`.
            background: [n, 3] in [0, 1].
            shown: latents [n, k, C, h, w] of the pictures beside each view.
            offsets: [n, k, 5], where they were taken, as `album.offsets`; zeros where there is none.
            views: number of views of a scene.
        """
        a, b = (x.view(-1, 1, 1, 1).to(sample) for x in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        s, m = self.std.to(sample), self.mean.to(sample)
        spread = a**2 * s**2 + b**2  # the variance of each channel at this noise level
        centered = sample - a * m
        told = self.embed_time(waves(timestep, self.embed.weight.dtype))
        placed = torch.cat([cameras, 2 * background - 1, offsets.flatten(1)], 1)
        told = told + self.embed_camera(placed.to(told))
        text = encoder_hidden_states.to(told)
        told = told.unflatten(0, (-1, views)) + self.embed_text(text[:, -1:])
        told = F.silu(told)[:, :, None]  # [G, views, 1, E]
        there = offsets[:, :, :1, None, None].to(sample)  # 1 or 0
        seen = (shown.to(sample) - m) / s * there
        x = self._tokens(centered * spread.rsqrt(), seen.flatten(1, 2), rays, views)
        for layer in self.before:
            x = layer(x.flatten(0, 1)[:, None], told.flatten(0, 1)[:, None]).view_as(x)
        h = self.narrow(fold(x, self.side))
        for layer in self.inner:
            h = layer(h, told, text)
        x = x + unfold(self.widen(h), self.side)
        for layer in self.after:
            x = layer(x.flatten(0, 1)[:, None], told.flatten(0, 1)[:, None]).view_as(x)
        scale, shift = self.modulate(told).chunk(2, -1)
        x = torch.addcmul(shift, F.rms_norm(x, x.shape[-1:]), 1 + scale)
        out = self.predict(x).flatten(0, 1).mT.unflatten(2, (self.side, self.side))
        out = F.pixel_shuffle(out, self.patch).to(sample)
        return a * b * (1 - s**2) / spread * centered - b * m + s * spread.rsqrt() * out

    def _tokens(self, noisy: Tensor, seen: Tensor, rays: Tensor, views: int) -> Tensor:
        """Return tokens [G, views, side^2, D] of normalized latents and those of the pictures beside them."""
        patches, beside = (F.pixel_unshuffle(part, self.patch).flatten(2).mT for part in (noisy, seen))
        entering = torch.cat([patches, rays.to(patches), beside], -1).to(self.embed.weight.dtype)
        return (self.embed(entering) + self.places).unflatten(0, (-1, views))


def fold(x: Tensor, side: int) -> Tensor:
    """Join tokens [..., side^2, D] of a square, four neighbors to one: [..., side^2 / 4, 4 D]."""
    half = side // 2
    x = x.unflatten(-2, (half, 2, half, 2)).transpose(-4, -3)  # [..., half, half, 2, 2, D]
    return x.flatten(-3).flatten(-3, -2)


def unfold(x: Tensor, side: int) -> Tensor:
    """Invert `fold`."""
    half = side // 2
    x = x.unflatten(-2, (half, half)).unflatten(-1, (2, 2, -1))
    return x.transpose(-4, -3).flatten(-5, -2)


def waves(timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Fourier features [n, TIME] of timesteps [n]."""
    rates = torch.exp(-math.log(1e4) * torch.arange(TIME // 2, device=timestep.device) / (TIME // 2))
    angles = timestep.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1).to(dtype)


def describe_cameras(
    azimuth: Tensor, elevation: Tensor, distance: Tensor, fov: Tensor, relative: Tensor
) -> Tensor:
    """Return the network's camera inputs [n, 9]; angles in radians, all [n].

    `relative`: 1 where azimuths are relative to a picture's and the object's front is unknown.
    """
    a, e = azimuth, elevation
    told = [a.sin(), a.cos(), (2 * a).sin(), (2 * a).cos(), (4 * a).cos(), 2 * e, distance - 3]
    return torch.stack([*told, 4 * (fov - 0.73), relative.to(a)], 1)


def patch_rays(azimuth: Tensor, elevation: Tensor, distance: Tensor, fov: Tensor, side: int) -> Tensor:
    """Return rays [n, side^2, 9] through patch centers, row by row, of cameras looking at the origin."""
    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    zero = torch.zeros_like(ca)
    right = torch.stack([-sa, ca, zero], 1)  # [n, 3]
    down = torch.stack([se * ca, se * sa, -ce], 1)
    outward = torch.stack([ce * ca, ce * sa, se], 1)
    places = (torch.arange(side, device=ca.device) + 0.5) * (2 / side) - 1
    half = (fov / 2).tan()[:, None, None, None]
    across = places.view(1, 1, side, 1) * half * right[:, None, None]
    along = places.view(1, side, 1, 1) * half * down[:, None, None]
    directions = F.normalize(across + along - outward[:, None, None], dim=-1)
    origins = (distance[:, None] * outward)[:, None, None].expand_as(directions)
    return torch.cat([origins / 3, directions, torch.linalg.cross(origins, directions)], -1).flatten(1, 2)
