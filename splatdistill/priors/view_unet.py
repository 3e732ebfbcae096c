"""The shipped image-conditioned denoiser: reads a picture and predicts other views of its object."""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn.functional import one_hot, pixel_unshuffle

from splatdistill.priors.multiview import orbit_matrices

POSE = 5  # numbers of a relative pose: polar angle, sine and cosine of azimuth, distance, elevation
TURNS = 36  # bins of azimuth


class ViewUNet(ModelMixin, ConfigMixin):
    """The multi-view teacher's UNet conditioned on a picture, with the inputs of Zero-1-to-3's UNet.

    A few transformer layers read the picture: their tokens replace the text's, and they estimate from which
    azimuth the object is seen. With that, the camera of the requested view is known in the object's own
    frame, in which the UNet was trained.
    """

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        sample_size: int,
        in_channels: int,
        out_channels: int,
        patch_size: int = 2,
        width: int = 160,
        heads: int = 5,
        layers: int = 3,
    ) -> None:
        """Create the network; `unet` configures a UNet2DConditionModel with cameras as classes."""
        super().__init__()
        self.denoiser: Any = UNet2DConditionModel.from_config(unet)
        self.patch_size = patch_size
        self.embed_picture = nn.Linear(out_channels * patch_size**2, width)
        self.embed_positions = nn.Parameter(torch.randn((sample_size // patch_size) ** 2, width) * 0.02)
        kind: dict[str, Any] = {"activation_fn": "gelu-approximate", "attention_bias": True}
        sizes = (width, heads, width // heads)
        self.reading = nn.ModuleList(BasicTransformerBlock(*sizes, **kind) for _ in range(layers))
        self.norm_read = nn.LayerNorm(width)
        self.azimuth = nn.Linear(width, TURNS)
        self.proj_tokens = nn.Linear(width, unet["cross_attention_dim"])
        self.embed_pose = nn.Linear(3, unet["cross_attention_dim"])
        for module in self.modules():
            if isinstance(module, Attention):  # on a CPU its backward is faster than the fused one's
                module.set_processor(AttnProcessor())

    def read(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures [n, C, h, w] as tokens [n, L, D], and return scores of their azimuths [n, 36]."""
        read = self.embed_picture(pixel_unshuffle(pictures, self.patch_size).flatten(2).mT)
        read = read + self.embed_positions
        for block in self.reading:
            read = block(read)
        read = self.norm_read(read)
        return self.proj_tokens(read), self.azimuth(read.mean(1))

    def draw(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, azimuth: Tensor, pose: Tensor) -> Tensor:
        """Return the output [n, C, h, w] for noisy latents of views at poses [n, 5] relative to the pictures.

        tokens [n, L, D] encode the pictures, taken from azimuths [n] in radians; a pose of zeros is the null
        condition.
        """
        polar, aside, ahead, further, start = pose.float().unbind(1)
        cameras = orbit_matrices(azimuth + torch.atan2(aside, ahead), start - polar)
        shown = pose.any(1, keepdim=True).to(noisy.dtype)
        told = tokens + self.embed_pose(torch.stack([further, start - polar, start], 1).to(tokens))[:, None]
        known = {"class_labels": shown * cameras.to(noisy), "encoder_hidden_states": shown[..., None] * told}
        return self.denoiser(noisy, timestep, **known, return_dict=False)[0]

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> tuple[Tensor]:
        """Return the output [n, C, h, w] for noisy latents and the pictures', sample [n, 2 C, h, w].

        timestep [n]; encoder_hidden_states [n, 1, 5] are the poses; return_dict is ignored: the result is a
        tuple, as in other denoisers.
        """
        noisy, pictures = sample.chunk(2, dim=1)
        tokens, scores = self.read(pictures)
        return (self.draw(noisy, timestep, tokens, likeliest(scores), encoder_hidden_states[:, 0]),)


def likeliest(scores: Tensor) -> Tensor:
    """Return azimuths [n] in radians from scores [n, 36]: the best bin refined by its two neighbors.

    A mean over all bins would be wrong for ambiguous objects, such as a table with two equal sides.
    """
    best = one_hot(scores.argmax(1), TURNS)
    near = best + best.roll(1, 1) + best.roll(-1, 1)
    angles = torch.arange(TURNS, device=scores.device) * (2 * math.pi / TURNS)
    weights = near * scores.float().softmax(1)
    return torch.atan2(weights @ angles.sin(), weights @ angles.cos())


def between(azimuth: Tensor) -> Tensor:
    """Return soft labels [n, 36] of azimuths [n] in radians, linear between the two nearest bins."""
    place = azimuth * (TURNS / (2 * math.pi))
    below = place.floor()
    lower = one_hot(below.long() % TURNS, TURNS)
    upper = (place - below)[:, None]
    return (1 - upper) * lower + upper * lower.roll(1, 1)
