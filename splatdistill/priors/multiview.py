"""Multi-view latent priors: the four views of a group are denoised together (MVDream, 2308.16512).

The UNet is diffusers' own with two changes of use: its class embedding is a projection of the camera, added
to the time embedding, and its self-attention runs over the tokens of all views of a group.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from splatdistill.ops import upload
from splatdistill.priors.base import Conditioning
from splatdistill.priors.folders import Folder, number
from splatdistill.priors.latent import LatentPrior, reads_text_alone
from splatdistill.priors.networks import STEM, weights_file
from splatdistill.scene.cameras import Cameras

VIEWS = 4  # of a group, 90 degrees apart
CAMERA = 16  # features of a camera
MVDREAM = "MultiViewUNetModel"  # the class of its published UNet, whose code is never run


class MultiViewPrior(LatentPrior):
    """MVDream and its kin: four views of a thing at once, told of their cameras; see `LatentPrior.load`.

    Reads UNet2DConditionModel folders with a projected camera embedding, and MVDream's UNet in LDM's names.
    """

    group = VIEWS
    needs_cameras = True

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is a UNet conditioned on text and camera."""
        config = folder.denoiser
        if config.get("_class_name") == MVDREAM:
            return number(config, "camera_dim") == CAMERA and not number(config, "ip_dim")
        projected = (config.get("class_embed_type"), config.get("projection_class_embeddings_input_dim"))
        return reads_text_alone(config) and projected == ("projection", CAMERA)

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        if folder.denoiser["_class_name"] == MVDREAM:
            unet = _load_mvdream(folder.root / folder.place, folder.denoiser, dtype)
        else:
            unet = super()._load_unet(folder, dtype)
        join_views(unet, VIEWS)
        return unet

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with the matrices of the cameras [B], the same in all branches."""
        (matrices,) = upload([camera_matrices(cameras)], self.device)
        return replace(cond, extra=matrices.expand(len(cond.embeddings), -1, -1))

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return the outputs as in `LatentPrior`; n is a multiple of four, with cameras extra[0] [n,16]."""
        z_t, hidden, cameras = (x.to(self.dtype) for x in (z_t, embeddings, extra[0]))
        known = {"encoder_hidden_states": hidden, "class_labels": cameras, "return_dict": False}
        return self.unet(z_t, t, **known)[0].float()


def camera_matrices(cameras: Cameras) -> Tensor:
    """Return the network's camera inputs [V, 16]: camera-to-world, OpenGL axes, at distance one.

    In MVDream's world the front of an object faces -Y, in ours +X: a quarter turn about the vertical.
    """
    poses = cameras.camtoworlds.clone()
    poses[:, :3, 1:3] *= -1.0  # OpenGL: y up, z backward
    poses[:, :3, 3] /= poses[:, :3, 3].norm(dim=-1, keepdim=True)
    quarter = torch.tensor(
        [[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    return (quarter.to(poses) @ poses).flatten(1)


class JoinedViews:
    """An attention processor that joins the tokens of a group's views into one sequence."""

    def __init__(self, views: int, inner: Any) -> None:
        self.views, self.inner = views, inner

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map hidden_states [n, L, D], n a multiple of the views, to the same shape."""
        count, length, width = hidden_states.shape
        joined = hidden_states.reshape(count // self.views, self.views * length, width)
        return self.inner(attn, joined, *args, **kwargs).reshape(count, length, width)


def join_views(unet: Any, views: int) -> None:
    """Make every self-attention of the UNet run over `views` consecutive samples, in place."""
    unet.set_attn_processor(
        {
            name: JoinedViews(views, processor) if name.endswith("attn1.processor") else processor
            for name, processor in unet.attn_processors.items()
        }
    )


def _load_mvdream(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load MVDream's published UNet as diffusers' class."""
    unet: Any = UNet2DConditionModel.from_config(diffusers_config(config))
    unet.load_state_dict(published_state(folder, config)[0])
    return unet.to(dtype)


def published_state(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a published UNet under diffusers' names, and those that have none there."""
    names, known, rest = dict(ldm_names(config)), {}, {}
    for old, tensor in load_file(weights_file(folder, STEM)).items():
        new = rename(old, names)
        (known if new else rest)[new or old] = tensor
    return known, rest


def diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of UNet2DConditionModel for that of an LDM UNet with a camera."""
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    attends = [2**level in config["attention_resolutions"] for level in range(len(widths))]
    return {
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": [width // config["num_head_channels"] for width in widths],  # how many heads
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": config["camera_dim"],
    }


RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def ldm_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return pairs of prefixes (LDM's, diffusers') that name the same part of the UNet."""
    yield from {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "camera_embed.0": "class_embedding.linear_1",
        "camera_embed.2": "class_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
    }.items()
    for index, name in ((0, "mid_block.resnets.0"), (2, "mid_block.resnets.1")):
        yield from ((f"middle_block.{index}.{old}", f"{name}.{new}") for old, new in RESNET.items())
    levels, layers = len(config["channel_mult"]), config["num_res_blocks"]
    down = up = 0
    for level in range(levels):
        for layer in range(layers):
            down += 1
            block = f"down_blocks.{level}"
            for old, new in RESNET.items():
                yield f"input_blocks.{down}.0.{old}", f"{block}.resnets.{layer}.{new}"
            yield f"input_blocks.{down}.1", f"{block}.attentions.{layer}"
        if level < levels - 1:
            down += 1
            yield f"input_blocks.{down}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
    for step in range(levels):
        attends = 2 ** (levels - 1 - step) in config["attention_resolutions"]
        for layer in range(layers + 1):
            block = f"up_blocks.{step}"
            for old, new in RESNET.items():
                yield f"output_blocks.{up}.0.{old}", f"{block}.resnets.{layer}.{new}"
            if layer == layers and step < levels - 1:
                yield f"output_blocks.{up}.{2 if attends else 1}.conv", f"{block}.upsamplers.0.conv"
            if attends:
                yield f"output_blocks.{up}.1", f"{block}.attentions.{layer}"
            up += 1


def rename(key: str, names: Mapping[str, str]) -> str:
    """Return the key with its longest known prefix replaced; empty if none is known."""
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in names:
            return ".".join([names[prefix], *parts[count:]])
    return ""
