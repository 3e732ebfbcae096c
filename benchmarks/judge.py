"""An independent judge of pictures: a small classifier of things, colors and sides, trained on own renders.

Of one thing on top of another it names both. It shares no weights, seeds or latents with the teacher.
`python benchmarks/judge.py` trains it (up to half an hour, one thread) and prints its accuracy on held-out
renders; others do so on first use. The weights stay in build/ and are not part of the product.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splatdistill.priors import words as grammar
from splatdistill.scene.views import view_word
from splatdistill.teaching import scenes

THINGS = list(grammar.THINGS)
COLORS = list(grammar.COLORS)
SIDES = ["front view", "side view", "back view"]  # learned for things with a front that stand alone
NOTHING = len(THINGS)  # what is below a thing that stands alone
SIZE = 64
SEED = 77_000  # far from the teacher's
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "judge.pt"


class Judge(nn.Module):
    """A classifier of images [B, 3, 64, 64] in [0, 1].

    Its logits are those of things [B, 29], colors [B, 12] and sides [B, 3], and of the things below [B, 30]
    and their colors [B, 12].
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 192, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(192 * 16, 256), nn.ReLU()
        )
        sizes = (len(THINGS), len(COLORS), len(SIDES), len(THINGS) + 1, len(COLORS))
        self.heads = nn.ModuleList(nn.Linear(256, size) for size in sizes)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.features(images * 2 - 1)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def name(self, images: Tensor) -> list[Tensor]:
        """Return the probabilities of what `forward` gives logits of, means over four pixel shifts."""
        shifted = [images, images.roll(2, -1), images.roll(-2, -1), images.roll(2, -2)]
        said = [self(image) for image in shifted]
        return [torch.stack(logits).softmax(-1).mean(0) for logits in zip(*said, strict=True)]


def pictures(seed: int, count: int, pairs: bool = False) -> tuple[Tensor, Tensor]:
    """Render single things and pairs: uint8 [n, 3, 64, 64], with labels [n, 5], -1 for none.

    The upper things of pairs are all equally frequent.
    """
    images, truth = [], []
    for i in range(-(-count // scenes.GROUP)):
        rng, things = np.random.default_rng((SEED, seed, pairs, i)), [THINGS[i % len(THINGS)]]
        if pairs:
            common = rng.random() < 0.6
            things.append(str(rng.choice(("cube", "cylinder", "sphere") if common else scenes.SUPPORTS)))
        group = scenes.group(rng, SIZE, tuple(things))
        images.append(group.images)
        angles = zip(group.cameras.azimuth_deg.tolist(), group.cameras.elevation_deg.tolist(), strict=True)
        for colors, angle in zip(group.colors, angles, strict=True):
            side = view_word(*angle)
            known = not pairs and things[0] in grammar.FACING and side in SIDES
            below = (THINGS.index(things[1]), COLORS.index(colors[1])) if pairs else (NOTHING, -1)
            upper = (THINGS.index(things[0]), COLORS.index(colors[0]), SIDES.index(side) if known else -1)
            truth.append((*upper, *below))
    stacked = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.tensor(truth)


def _spoil(images: Tensor, rng: torch.Generator) -> Tensor:
    """Blur, shift, tint and noise, so that the judge can also read teacher samples and splats."""
    images = images.roll(torch.randint(-5, 6, (2,), generator=rng).tolist(), (-2, -1))
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(len(images), 1, 1, 1, generator=rng)
    gain = 1 + 0.2 * (torch.rand(len(images), 1, 1, 1, generator=rng) - 0.5)
    noise = 0.04 * torch.rand(len(images), 1, 1, 1, generator=rng) * torch.randn(images.shape, generator=rng)
    return ((images + amount * (blurred - images)) * gain + noise).clamp(0, 1)


def train_judge(count: int = 60_000, epochs: int = 5, batch: int = 128) -> Judge:
    """Train on `count` renders of things and as many of pairs, and return the judge, in eval mode."""
    torch.manual_seed(SEED)
    judge, rng = Judge(), torch.Generator().manual_seed(SEED)
    images, truth = (torch.cat(both) for both in zip(pictures(0, count), pictures(0, count, True)))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-2)
    total = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=total)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        for k in range(len(images) // batch):
            chosen = order[k * batch : (k + 1) * batch]
            said = judge(_spoil(images[chosen].float() / 255, rng))
            answers = zip(said, truth[chosen].T, strict=True)
            loss = sum(F.cross_entropy(logits, right, ignore_index=-1) for logits, right in answers)
            assert isinstance(loss, Tensor)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def load_judge() -> Judge:
    """Return the judge, trained once and kept in build/."""
    if not WEIGHTS.exists():
        WEIGHTS.parent.mkdir(exist_ok=True)
        torch.save(train_judge().state_dict(), WEIGHTS)
    judge = Judge()
    judge.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return judge.eval()


def main() -> None:
    """Train if needed; print the accuracy on held-out renders."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    judge = load_judge()
    for pairs, heading in enumerate(("things", "pairs")):
        images, truth = pictures(1, 10_000, bool(pairs))
        named = [
            torch.stack([p.argmax(-1) for p in judge.name(part.float() / 255)], 1)
            for part in images.split(500)
        ]
        right = (torch.cat(named) == truth).double()
        right[truth < 0] = float("nan")
        print(heading)
        for i, name in [(None, "all"), *enumerate(THINGS)]:
            shares = right[slice(None) if i is None else truth[:, 0] == i].nanmean(0).tolist()
            said = zip(("thing", "color", "side", "below", "its color"), shares)
            print(f"{name:16s}", "  ".join(f"{word} {share:.1%}" for word, share in said))


if __name__ == "__main__":
    main()
