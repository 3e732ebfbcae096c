"""The embedded image-conditioned denoiser: reads what a picture shows, from where, and draws other views."""

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
TURNS = 36  # azimuths between which is chosen


class ViewUNet(ModelMixin, ConfigMixin):
    """Takes the place of Zero-1-to-3's UNet, with its inputs: the multi-view teacher's, told by a picture.

    A few transformer layers read the picture: their tokens stand where the text's did, and they say from
    which azimuth the thing is seen. From there on the camera of the view that is asked for is known in the
    thing's own frame, in which the UNet has learned to draw.
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
        """`unet` is the configuration of a UNet2DConditionModel that takes cameras for classes."""
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
        """What pictures [n, C, h, w] show, tokens [n, L, D], and scores of their azimuths [n, 36]."""
        read = self.embed_picture(pixel_unshuffle(pictures, self.patch_size).flatten(2).mT)
        read = read + self.embed_positions
        for block in self.reading:
            read = block(read)
        read = self.norm_read(read)
        return self.proj_tokens(read), self.azimuth(read.mean(1))

    def draw(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, azimuth: Tensor, pose: Tensor) -> Tensor:
        """The output [n, C, h, w] for noisy latents of the views that lie at poses [n, 5] from pictures.

        tokens [n, L, D] are what the pictures show, from azimuths [n] in radians; a pose of zeros tells
        nothing.
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
        """The output [n, C, h, w] for noisy latents and the pictures', sample [n, 2 C, h, w].

        timestep [n]; encoder_hidden_states [n, 1, 5] are the poses; return_dict is for the look of other
        denoisers, the result is a tuple.
        """
        noisy, pictures = sample.chunk(2, dim=1)
        tokens, scores = self.read(pictures)
        return (self.draw(noisy, timestep, tokens, likeliest(scores), encoder_hidden_states[:, 0]),)


def likeliest(scores: Tensor) -> Tensor:
    """The azimuths [n] in radians of scores [n, 36]: the best and its neighbors by their probabilities.

    Not the mean of all: of a table that may be turned either way it would be neither.
    """
    best = one_hot(scores.argmax(1), TURNS)
    near = best + best.roll(1, 1) + best.roll(-1, 1)
    angles = torch.arange(TURNS, device=scores.device) * (2 * math.pi / TURNS)
    weights = near * scores.float().softmax(1)
    return torch.atan2(weights @ angles.sin(), weights @ angles.cos())


def between(azimuth: Tensor) -> Tensor:
    """The probabilities [n, 36] that say azimuths [n] in radians: those on either side share in each."""
    place = azimuth * (TURNS / (2 * math.pi))
    below = place.floor()
    lower = one_hot(below.long() % TURNS, TURNS)
    upper = (place - below)[:, None]
    return (1 - upper) * lower + upper * lower.roll(1, 1)
