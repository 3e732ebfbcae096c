"""How well does the scorer read pictures? Held-out renders, whose descriptions are known.

`python benchmarks/scorer.py [--clip embedded] [--scenes N]` prints and writes benchmarks/results/scorer.json:
R-Precision among 153 distractors on single views, the same with the descriptions shuffled (chance is one in
154), names as `splatdistill.evaluate` gives them, of these and of two scenes for each of the compositions in
its suite, views followed, and two fronts seen where there is one.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from common import write_result

from splatdistill.measure.metrics import bootstrap_interval, wilson_interval
from splatdistill.measure.runs import (
    VIEWS,
    colorless,
    ranked_first,
    right_names,
    views_followed,
)
from splatdistill.measure.suites import compositions, distractors
from splatdistill.priors import words as grammar
from splatdistill.priors.clip import Scorer
from splatdistill.scene.cameras import EVALUATION_VIEW, turntable
from splatdistill.teaching import scenes
from splatdistill.teaching.solids import raycast

SEED = 66_000  # far from the teachers' and the scorer's


def scene(
    index: int, size: int, things: tuple[str, ...] | None = None
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Return a scene's text, with its colors, and its views [V, 3, S, S] in color and textureless."""
    rng = np.random.default_rng((SEED, index))
    batch = scenes.build(things or scenes.sample_structure(rng), 1, rng, 1.0)
    cameras = turntable(VIEWS, *EVALUATION_VIEW, size)
    pictures = []
    for plain in (False, True):
        table = np.repeat(batch.table, VIEWS, axis=0)
        if plain:
            table[..., 14:] = grammar.TEXTURELESS
        drawn = torch.from_numpy(raycast(table, cameras)).permute(0, 3, 1, 2) / 255
        pictures.append(drawn[:, :3] + 1.0 - drawn[:, 3:])
    return grammar.describe(batch.things, batch.colors[0]), pictures[0], pictures[1]


def main() -> None:
    """Score renders and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", default="embedded")
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args()
    scorer = Scorer.load(options.clip)
    others, plain_others = distractors(), [colorless(text) for text in distractors()]
    scenes = [scene(i, scorer.size) for i in range(options.scenes)]
    texts = [text for text, _, _ in scenes]
    seen: dict[str, list[float]] = {}
    fronts: list[bool] = []
    for i, (text, color, plain) in enumerate(scenes):
        features = scorer.images(color)
        named, colored = right_names(scorer, features, text)
        followed, janus = views_followed(scorer, features, text)
        figures: dict[str, Any] = {
            "r_precision": ranked_first(scorer, features, text, others),
            "r_precision_geometry": ranked_first(scorer, scorer.images(plain), colorless(text), plain_others),
            "r_precision_shuffled": ranked_first(scorer, features, texts[(i + 1) % len(texts)], others),
            "object": named,
            "color": colored,
            "view": followed,
        }
        for name, value in figures.items():
            if value is not None:
                seen.setdefault(name, []).append(float(value))
        if janus is not None:
            fronts.append(janus)
    for i, prompt in enumerate(compositions()):
        things, _ = grammar.parse(prompt) or ((), ())
        for k in range(2):
            text, color, _ = scene(2 * i + k, scorer.size, tuple(things))
            named, colored = right_names(scorer, scorer.images(color), text)
            seen.setdefault("object_of_compositions", []).append(float(bool(named)))
            seen.setdefault("color_of_compositions", []).append(float(bool(colored)))
    result: dict[str, Any] = {"scenes": len(scenes), "chance": 1 / 154}
    for name, values in seen.items():
        mean, (low, high) = float(np.mean(values)), bootstrap_interval(torch.tensor(values))
        result[name] = {"mean": mean, "interval": (low, high)}
        print(f"{name:24s} {mean:.3f}  [{low:.3f}, {high:.3f}]")
    result["false_janus"] = {
        "rate": sum(fronts) / len(fronts),
        "interval": wilson_interval(sum(fronts), len(fronts)),
        "scenes": len(fronts),
    }
    print("false janus", result["false_janus"])
    write_result("scorer", result)


if __name__ == "__main__":
    main()
