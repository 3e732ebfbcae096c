"""Captions of scenes of real models: names, colors and sizes, in canonical words."""

from __future__ import annotations

from collections import Counter

import numpy as np

from splatdistill.priors.reading import BETWEEN, canonical
from splatdistill.teaching.assets import Entry

SIZES = {"small": 0.55, "big": 0.92}
# Nouns that are learned but not listed: by measure and by eye what the teacher draws of them says nothing.
LEFT_OUT = frozenset(("ashtray", "curtain", "freight wagon", "keypad", "question block", "ruler"))


def name(entry: Entry, color: str | None, size: str, rng: np.random.Generator) -> str:
    """Draw a name of a model: its phrase, its noun, or one of its other names and classes.

    A phrase contains the model's original colors, so a tinted one gets another name.
    """
    kind = rng.random()
    if color is None and entry.phrases and kind < 0.35:
        said = entry.phrases[int(rng.integers(len(entry.phrases)))]
    elif entry.also and kind > 0.85:
        said = entry.also[int(rng.integers(len(entry.also)))]
    else:
        said = entry.noun
    return canonical(" ".join(part for part in (size, color or "", said) if part))


def vocabulary(entries: list[Entry], colors: list[str]) -> list[str]:
    """Return every word in training captions, sorted."""
    texts = [text for e in entries for text in (e.noun, *e.also, *e.phrases)]
    words = " ".join(canonical(text) for text in [*texts, *colors, *SIZES, *BETWEEN]).split()
    return sorted(set(words))


def describe_vocabulary(entries: list[Entry]) -> dict[str, dict]:
    """Return what a teacher's folder stores of its objects: each noun's classes, and each name's noun.

    A name that several nouns bear is of the one most of whose models bear it. LEFT_OUT is not there.
    """
    things: dict[str, list[str]] = {}
    bearers: dict[str, Counter[str]] = {}
    for entry in (one for one in entries if one.noun not in LEFT_OUT):
        classes = things.setdefault(entry.noun, [])
        classes.extend(name for name in entry.also if name not in classes)
        for name in (entry.noun, *entry.also):
            bearers.setdefault(canonical(name), Counter())[entry.noun] += 1
    names = {name: nouns.most_common(1)[0][0] for name, nouns in bearers.items()}
    names.update({canonical(noun): noun for noun in things})
    return {"things": things, "names": names}
