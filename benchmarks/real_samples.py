"""Measure samples of the teacher of real things: `python benchmarks/real_samples.py draw|measure --work DIR`.

`draw` samples the teacher, 50 DDIM steps, views of the evaluation turntable on white: every noun with two
seeds of four views each, twenty things in each of the twelve colors, and sixty pairs. DIR/nouns.npz and so
on keep the views. `measure` reads them: names by the judge in the teacher's folder; colors by the
true rendering of that thing, in any color, that is most like it (with --assets); views by the turn at which
the true models of the noun agree best. Writes benchmarks/results/real_samples.json of the nouns, and
real_samples-colors.json and -pairs.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from color_reader import ColorReader, histogram
from common import write_result
from torch import Tensor

from splatdistill.guidance.core import sample
from splatdistill.measure.claims.base import share
from splatdistill.measure.jury import Jury
from splatdistill.priors import load_prior
from splatdistill.priors.album import FILE, Album
from splatdistill.priors.base import cfg
from splatdistill.priors.judge import SIDE
from splatdistill.priors.loading import locate, words_of
from splatdistill.priors.reading import Vocabulary
from splatdistill.priors.words import COLORS
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.scene.likeness import Look, color_distance, coverage, framed, pieces
from splatdistill.scene.pictures import to_uint8
from splatdistill.teaching.judge_views import read_views, write_views

PRIOR, STEPS, GUIDANCE, VIEWS, SEEDS = "real", 50, 4.0, 4, (0, 1)
SCENES = 32  # that are sampled at once
TINTED = (
    "chair", "table", "sofa", "crate", "armchair", "bench", "house", "shield", "spaceship", "sword", "barrel",
    "lantern", "bed", "bookcase", "refrigerator", "bottle", "car", "vase", "mug", "castle",
)  # fmt: skip
SIZE = 128
PAIRS, SEED = 60, 20260
KINDS = ("colors", "pairs", "nouns")  # few first, should the time run out
ASKED = "prompts.json"  # what the samples in a folder were drawn for


def vocabulary() -> Vocabulary:
    """Return the words of the teacher."""
    words = words_of(PRIOR)
    assert isinstance(words, Vocabulary)
    return words


def everything() -> list[str]:
    """Return all nouns in the teacher's album, those too that its vocabulary leaves out; sorted."""
    return sorted(set(Album.load(locate(PRIOR).root / FILE).nouns))


def pairs(words: Vocabulary, count: int = PAIRS) -> list[str]:
    """Return prompts of two things, drawn from all in the album: half stacked, half side by side."""
    rng, things, below = random.Random(SEED), everything(), list(words.pairs["on top of"])
    stacked = [f"a {rng.choice(things)} on top of a {rng.choice(below)}" for _ in range(count // 2)]
    return stacked + ["a {} next to a {}".format(*rng.sample(things, 2)) for _ in range(count - len(stacked))]


def prompts(words: Vocabulary) -> dict[str, list[str]]:
    """Return the prompts of each kind."""
    colored = [f"a {color} {thing}" for thing, color in product(TINTED, COLORS)]
    nouns = [f"a {noun}" for noun in sorted(words.things)]
    return {"colors": colored, "pairs": pairs(words), "nouns": nouns}


@torch.no_grad()
def drawn(prior: Any, texts: Sequence[str], seed: int) -> Tensor:
    """Return samples [n, VIEWS, 3, S, S] of texts, each a scene of its own."""
    count = len(texts) * VIEWS
    of_run = prior.for_run(seed, 1)
    cameras = turntable(VIEWS, *EVALUATION_VIEW, prior.image_size)[torch.arange(VIEWS).repeat(len(texts))]
    said = [text for text in texts for _ in range(VIEWS)]
    cond = cfg(of_run.embed([""] * count), of_run.embed(said), GUIDANCE)
    cond = of_run.with_cameras(cond, cameras, torch.ones(count, 3))
    noises = [torch.Generator().manual_seed(SEED + 1000 * seed + i) for i in range(len(texts))]
    noise = torch.cat([torch.randn(VIEWS, *prior.latent_shape, generator=rng) for rng in noises])
    pictures = of_run.decode(sample(of_run, cond, noise.to(of_run.device), steps=STEPS))
    return to_uint8(pictures.float().cpu()).unflatten(0, (-1, VIEWS))


def draw(options: argparse.Namespace) -> None:
    """Draw what is not there."""
    prior = load_prior(PRIOR, options.device)
    asked = prompts(vocabulary())
    (options.work / ASKED).write_text(json.dumps(asked), "utf-8")
    for kind, texts in ((kind, asked[kind]) for kind in options.kinds):
        path = options.work / f"{kind}.npz"
        if path.exists():
            continue
        scenes, labels = [], []
        for seed in SEEDS if kind == "nouns" else SEEDS[:1]:
            for first in range(0, len(texts), SCENES):
                part = texts[first : first + SCENES]
                scenes += list(drawn(prior, part, seed).numpy())
                labels += [[first + i, seed] for i in range(len(part))]
                print(f"{kind}: seed {seed}, {first + len(part)} of {len(texts)}", flush=True)
        write_views(path, scenes, labels)


def seen(path: Path) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each scene's prompt, views [VIEWS, 3, S, S] in [0, 1], and their coverage [VIEWS, 1, S, S]."""
    views = read_views(path)
    for pictures, (number, _) in zip(views.pictures, views.labels.tolist(), strict=True):
        rgb = pictures.float() / 255
        yield number, rgb, coverage(rgb)


def names(jury: Jury, texts: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the shares of views, and of scenes of four, of which the judge names what was asked for."""
    hits: dict[str, list[bool]] = {"scene": [], "scene_first_five": [], "view": [], "view_first_five": []}
    by_noun: dict[str, list[bool]] = {}
    for number, rgb, alpha in seen(path):
        if texts[number].removeprefix("a ") not in jury.vocabulary.things:
            continue  # it was left out since
        (asked,) = jury.vocabulary.asked(texts[number])
        logs = jury.judge.logs(framed(rgb, alpha, SIDE))
        for name, group in (("scene", [logs]), ("view", list(logs.split(1)))):
            for part in group:
                said = jury.judge.said(jury.judge.together(part))
                place = None if said.none else said.place(asked.right)
                hits[name].append(place == 0)
                hits[f"{name}_first_five"].append(place is not None)
                if name == "view":
                    by_noun.setdefault(asked.noun, []).append(place == 0)
    bad = sorted(noun for noun, found in by_noun.items() if sum(found) < len(found) / 2)
    told: dict[str, Any] = {name: share(found) for name, found in hits.items()}
    return told | {"nouns_that_hold": len(by_noun) - len(bad), "others": bad}


def pair_names(jury: Jury, texts: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the shares of pairs of which the judge names both things, each in a part; and of wrong pairs.

    The wrong pair is that of another prompt of the same kind: what is found of it is chance.
    """
    found: dict[str, list[bool]] = {}
    for number, rgb, alpha in seen(path):
        half = len(texts) // 2
        stacked, other = number < half, (number + 7) % half + (0 if number < half else half)
        told = [jury.judge.verdict(views) for views in pieces(rgb, alpha, stacked, SIDE)]
        for kind, text in (("asked", texts[number]), ("wrong", texts[other])):
            places = [
                [place for said in told if (place := said.place(thing.right)) is not None]
                for thing in jury.vocabulary.asked(text)
            ]
            found.setdefault(f"{kind}_both", []).append(all(0 in those for those in places))
            found.setdefault(f"{kind}_both_first_five", []).append(all(places))
            found.setdefault(f"{kind}_things", []).extend(0 in those for those in places)
    return {name: share(hits) for name, hits in found.items()}


def sides(jury: Jury, texts: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the share of scenes whose four views agree best with a true model as it stands, not turned.

    Counted are things of which a quarter turn can be seen: the true model itself agrees less with itself.
    """
    assert jury.truth is not None
    right = []
    for number, rgb, alpha in seen(path):
        noun = jury.vocabulary.asked(texts[number])[0].noun
        look = Look.of(rgb, alpha)
        models = [model for model, name in zip(jury.truth.looks, jury.truth.nouns) if name == noun]
        scores = [agreements(look, model) for model in models]
        if not scores:
            continue
        best = max(range(len(scores)), key=lambda i: scores[i].max())
        itself = agreements(every(models[best]), models[best])
        if float(itself[1:].max()) > 0.93:
            continue
        right.append(bool(scores[best][0] >= scores[best].max() - 0.01))
    return {"as_asked": share(right), "scenes": len(right)}


def every(model: Look) -> Look:
    """Return the views of a model of twelve that a scene of four has."""
    step = len(model.shapes) // VIEWS
    return Look(model.shapes[::step], model.colors[::step])


def agreements(look: Look, model: Look) -> Tensor:
    """Return IoU less color distance of a look of four views and a model at each quarter turn [VIEWS]."""
    found, model = [], every(model)
    for turn in range(VIEWS):
        shapes, colors = model.shapes.roll(turn, 0), model.colors.roll(turn, 0)
        both, either = (look.shapes & shapes).sum((1, 2)), (look.shapes | shapes).sum((1, 2))
        iou = (both / either.clamp(min=1)).mean()
        found.append(iou - color_distance(look.colors, colors).mean())
    return torch.stack(found)


def colors(reader: ColorReader, texts: Sequence[str], path: Path) -> dict[str, Any]:
    """Return the shares of views, and of scenes of four, of the asked color; and the reader's own shares."""
    hits: dict[str, list[bool]] = {"view": [], "scene": []}
    for number, rgb, _ in seen(path):
        (thing,) = (name for name in TINTED if texts[number].endswith(f" {name}"))
        wanted = next(word for word in texts[number].split() if word in COLORS)
        views = np.stack([histogram(view) for view in to_uint8(rgb.permute(0, 2, 3, 1)).numpy()])
        hits["view"] += [reader.read(thing, view[None]) == wanted for view in views]
        hits["scene"].append(reader.read(thing, views) == wanted)
    return {name: share(found) for name, found in hits.items()} | {"reader_on_true_views": reader.own}


def measure(options: argparse.Namespace) -> None:
    """Measure what was drawn."""
    jury, asked = Jury.of(PRIOR), json.loads((options.work / ASKED).read_text("utf-8"))
    assert jury is not None
    for kind in options.kinds:
        texts, path = asked[kind], options.work / f"{kind}.npz"
        result: dict[str, Any] = {"prior": PRIOR, "steps": STEPS, "guidance": GUIDANCE}
        if kind == "nouns":
            result["nouns"] = names(jury, texts, path)
            result["judge"] = jury.judge.told["measured"]
            result["views"] = sides(jury, texts, path)
        elif kind == "pairs":
            result["pairs"] = pair_names(jury, texts, path)
        else:
            reader = ColorReader(options.assets, options.work / "meshes", TINTED, SIZE, VIEWS)
            result["colors"] = colors(reader, texts, path)
        write_result("real_samples" if kind == "nouns" else f"real_samples-{kind}", result)


def main() -> None:
    """Draw or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=("draw", "measure"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--assets", type=Path, help="the bundle of models, whose renderings tell colors")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what of it; default: all")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (draw if options.stage == "draw" else measure)(options)


if __name__ == "__main__":
    main()
