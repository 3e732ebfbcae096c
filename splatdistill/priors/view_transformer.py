"""The embedded image-conditioned denoiser: a transformer that reads a picture and draws it from elsewhere."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

FREQUENCIES = 256  # of the time embedding
POSE = 5  # numbers of a relative pose: polar angle, sine and cosine of azimuth, distance, elevation


class ViewTransformer(ModelMixin, ConfigMixin):
    """Takes the place of Zero-1-to-3's UNet: the same inputs and output, patches for tokens.

    A thing's patches move far from view to view, which attention learns much faster than convolutions. The
    picture's tokens attend to each other; the noisy ones to each other and to these, modulated by the time
    and the view together (PixArt's adaLN-single, 2310.00426). How a thing is turned is read from the picture
    by itself, and the view told as seen from the thing: left alone, the network draws all sides at once.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 16,
        out_channels: int = 8,
        patch_size: int = 2,
        width: int = 192,
        heads: int = 6,
        reading_layers: int = 4,
        drawing_layers: int = 4,
    ) -> None:
        super().__init__()
        if in_channels != 2 * out_channels or sample_size % patch_size:
            raise ValueError("expected in_channels = 2 out_channels, and whole patches")
        self.side, self.patch_size = sample_size // patch_size, patch_size
        tokens, patch = self.side**2, out_channels * patch_size**2
        self.embed_picture = nn.Linear(patch, width)
        self.embed_noisy = nn.Linear(patch, width)
        self.embed_positions = nn.Parameter(torch.randn(2, tokens, width) * 0.02)  # picture's, noisy ones'
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = TimestepEmbedding(FREQUENCIES, width)
        self.embed_pose = nn.Sequential(nn.Linear(POSE + 2, width), nn.SiLU(), nn.Linear(width, width))
        self.facing = nn.Linear(width, 2)
        self.modulation = nn.Linear(width, 6 * width)
        kind: dict[str, Any] = {"activation_fn": "gelu-approximate", "attention_bias": True}
        sizes = (width, heads, width // heads)
        self.reading = nn.ModuleList(BasicTransformerBlock(*sizes, **kind) for _ in range(reading_layers))
        kind |= {
            "cross_attention_dim": width,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
        }
        self.drawing = nn.ModuleList(BasicTransformerBlock(*sizes, **kind) for _ in range(drawing_layers))
        self.norm_read, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, patch)
        for module in self.modules():
            if isinstance(module, Attention):  # on a CPU its backward is faster than the fused one's
                module.set_processor(AttnProcessor())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
        views: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """The output [n, C, h, w] for noisy latents and the picture's, sample [n, 2 C, h, w].

        timestep [n]; encoder_hidden_states [n, 1, 5], the relative pose of the view, zeros where nothing is
        told; return_dict is for the look of other denoisers, the result is a tuple; views: so many samples
        in turn have one picture. Second comes what was read of the picture's azimuth, cosine and sine [n, 2].
        """
        halves = sample.chunk(2, dim=1)
        noisy, picture = (pixel_unshuffle(x, self.patch_size).flatten(2).mT for x in halves)
        read = self.embed_picture(picture[::views]) + self.embed_positions[0]
        for block in self.reading:
            read = block(read)
        read = self.norm_read(read).repeat_interleave(views, dim=0)

        time = self.embed_time(self.frequencies(timestep).to(sample.dtype))
        pose = encoder_hidden_states[:, 0]
        facing = self.facing(read.mean(1))
        (cos, sin), (ahead, aside) = facing.unbind(1), (pose[:, 2], pose[:, 1])
        turned = torch.stack([cos * ahead - sin * aside, sin * ahead + cos * aside], dim=1)
        told = self.modulation(silu(time + self.embed_pose(torch.cat([pose, turned], dim=1))))
        drawn = self.embed_noisy(noisy) + self.embed_positions[1]
        for block in self.drawing:
            drawn = block(drawn, encoder_hidden_states=read, timestep=told)
        patches = self.proj_out(self.norm_out(drawn)).mT
        return pixel_shuffle(patches.unflatten(2, (self.side, self.side)), self.patch_size), facing
