"""What is said of scenes of real things: canonical texts, names, colors and sizes.

A text is reduced to plain words before it is tokenized, in training and in use alike: lower case, no
articles, no punctuation, none of the ways to say that it is a picture.
"""

from __future__ import annotations

import re

import numpy as np

from splatdistill.teaching.assets import Entry

ARTICLES = frozenset(("a", "an", "the"))
PICTURE = re.compile(
    r"^(?:an? |the )?(?:(?:dslr|hd|4k|high|quality|realistic|detailed|close|up|zoomed|out|3d|"
    r"beautiful|single) )*"
    r"(?:photo|photograph|picture|image|model|render|rendering|view)s? of "
)
BETWEEN = ("on top of", "next to", "and")
SIZES = {"small": 0.55, "big": 0.92}
USUAL_SIZE = 0.78
MAX_WORDS = 20  # of a text that are read; the last place stays empty


def canonical(text: str) -> str:
    """The words of a text that are read: "A photo of a Jack-o'-lantern." gives "jack o lantern"."""
    text = text.lower().replace("'s ", " ").replace("'", " ").replace("-", " ")
    text = PICTURE.sub("", " ".join(re.findall(r"[a-z0-9]+", text)))
    return " ".join(word for word in text.split() if word not in ARTICLES)


def name(entry: Entry, color: str | None, size: str, rng: np.random.Generator) -> str:
    """One way to name a model: by its phrase, its noun, or one of its other names and classes.

    A phrase tells the colors that the model came with, so a tinted one is called by the others.
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
    """Every word that training can say, sorted."""
    texts = [text for e in entries for text in (e.noun, *e.also, *e.phrases)]
    words = " ".join(canonical(text) for text in [*texts, *colors, *SIZES, *BETWEEN]).split()
    return sorted(set(words))


def read_words(text: str, known: dict[str, int]) -> list[int]:
    """The numbers of a canonical text's words, MAX_WORDS of them: 0 for none, 1 for an unknown one."""
    numbers = [known.get(word, 1) for word in text.split()][: MAX_WORDS - 1]
    return numbers + [0] * (MAX_WORDS - len(numbers))
