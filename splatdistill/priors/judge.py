"""The judge of what a thing is: an image classifier over the nouns of a teacher, apart from the teacher.

The network is EfficientNet-Lite0 (1905.11946), with batch normalization folded into its convolutions. It was
trained on photographs and then on renderings of the models; one more class, the last, is none of the nouns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from splatdistill.priors.loading import user_errors
from splatdistill.scene.likeness import boxed, coverage

FOLDER = "judge"  # in a teacher's folder
WEIGHTS, TOLD, TRUTH = "model.safetensors", "judge.json", "truth.npz"  # the last: looks of the true models
SIDE = 96  # pixels of the pictures that it reads
STAGES = (  # blocks, kernel, stride, expansion, channels of each
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280
FEW = 5  # names that count for "among the first"


def convolution(channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Return a convolution padded as TensorFlow does: at the right and below first where it strides."""
    before = (kernel - stride) // 2
    after = kernel - stride - before
    pad: list[nn.Module] = [nn.ZeroPad2d((before, after, before, after))] if kernel > 1 else []
    return nn.Sequential(*pad, nn.Conv2d(channels, out, kernel, stride, groups=groups))


class Block(nn.Module):
    """An inverted residual (1801.04381): widen, convolve each channel, narrow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = convolution(channels, wide, 1, 1) if expansion > 1 else None
        self.depthwise = convolution(wide, wide, kernel, stride, wide)
        self.project = convolution(wide, out, 1, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, h, w] to [n, out, h / stride, w / stride]."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        narrow = self.project(F.relu6(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


class Classifier(nn.Module):
    """The network: pictures [n, 3, SIDE, SIDE] in [0, 1] to logits [n, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = convolution(3, STEM, 3, 2)
        blocks, channels = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = convolution(channels, HEAD, 1, 1)
        self.name = nn.Linear(HEAD, classes)

    def features(self, pictures: Tensor, frozen: int = 0) -> Tensor:
        """Return features [n, HEAD]; the stem and the first `frozen` blocks without gradients."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = F.relu6(self.stem((255 * pictures - 127) / 128))
            for block in self.blocks[:frozen]:
                x = block(x)
        for block in self.blocks[frozen:]:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        return self.name(self.features(pictures))


@dataclass(frozen=True)
class Verdict:
    """What a thing is: the likeliest nouns with their probabilities, or none of them."""

    nouns: tuple[str, ...]
    probabilities: tuple[float, ...]
    none: bool

    def place(self, names: frozenset[str] | set[str]) -> int | None:
        """Return the place of the first of some nouns, from 0; None where it is not among the first."""
        return next((i for i, noun in enumerate(self.nouns) if noun in names), None)


class Judge:
    """A trained classifier with its nouns and its temperature."""

    size = 128  # pixels of the pictures that `images` is given

    def __init__(self, network: Classifier, told: dict[str, Any]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.nouns: list[str] = told["nouns"]
        self.temperature: float = told.get("temperature", 1.0)
        self.told = told

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Load a judge's folder; UserError where it is broken."""
        with user_errors("the judge", folder):
            told = json.loads((folder / TOLD).read_text("utf-8"))
            network = Classifier(len(told["nouns"]) + 1)
            weights = load_file(folder / WEIGHTS)
            network.load_state_dict({name: value.float() for name, value in weights.items()})
            return cls(network, told)

    @torch.no_grad()
    def probabilities(self, views: Tensor) -> Tensor:
        """Return the probability of each noun, and last of none of them, of framed views [V, 3, S, S]."""
        return self.together(self.logs(views))

    @staticmethod
    def framed(rgb: Tensor) -> Tensor:
        """Frame pictures [n, 3, S, S] in [0, 1] on white, each by itself: [n, 3, SIDE, SIDE]."""
        return boxed(rgb, coverage(rgb), SIDE)

    @torch.no_grad()
    def images(self, rgb: Tensor) -> Tensor:
        """Return unit features [n, HEAD] of pictures [n, 3, S, S] in [0, 1] on white."""
        parts = self.framed(rgb).split(64)
        return F.normalize(torch.cat([self.network.features(part) for part in parts]), dim=1)

    @torch.no_grad()
    def logs(self, views: Tensor) -> Tensor:
        """Return the log probabilities [V, nouns + 1] of each framed view by itself, uncalibrated."""
        return torch.cat([F.log_softmax(self.network(part), 1) for part in views.split(64)])

    def together(self, logs: Tensor) -> Tensor:
        """Return the probability of each noun, and last of none, from the `logs` of views of one thing."""
        return (logs.mean(0) / self.temperature).softmax(0)

    def verdict(self, views: Tensor, few: int = FEW) -> Verdict:
        """Return what framed views of one thing show."""
        return self.said(self.probabilities(views), few)

    def said(self, found: Tensor, few: int = FEW) -> Verdict:
        """Return the verdict that probabilities [nouns + 1] are."""
        best = found[:-1].topk(min(few, len(self.nouns)))
        nouns = tuple(self.nouns[i] for i in best.indices.tolist())
        none = bool(found[-1] > found[:-1].max())
        return Verdict(nouns, tuple(best.values.tolist()), none)
