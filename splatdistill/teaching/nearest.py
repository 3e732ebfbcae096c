"""The table of English words for which a teacher takes the nearest name that it knows.

Two judges vote: WordNet (Debian package wordnet-base), which says what is a kind of what, and a sentence
encoder, which says what is spoken of alike. Only words for things that can be seen are in the table.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

WORDNET = Path("/usr/share/wordnet")
VISIBLE = (
    "object",
    "substance",
    "food",
    "body of water",
    "living thing",
    "imaginary being",
)  # whose kinds can be seen
SENSES = 3  # of a word that count, the commonest first
STEPS = 8  # between two things' places in WordNet, at most
ALIKE = 0.35  # of the encoder's cosine counts as nothing
LEAST = 0.42  # of the vote for a word to be in the table
NOUN = 0.08  # added for a name that is a noun of the teacher rather than a broader class
# What the judges get wrong, by eye; names that a teacher does not have are passed over.
CORRECTED = {
    "rose": ("flower",), "roses": ("flower",), "excavator": ("tractor",), "backhoe": ("tractor",),
    "submarine": ("ship", "boat"), "motorcycle": ("scooter", "bicycle"), "motorbike": ("scooter", "bicycle"),
    "treehouse": ("playhouse", "house"), "mouse": ("rat",), "unicorn": ("horse",), "violin": ("guitar",),
    "cello": ("guitar",), "blanket": ("rug",), "camera": ("security camera",), "chariot": ("cart",),
    "queen": ("king",), "prince": ("king",), "princess": ("girl",), "lasagna": ("pie",), "pasta": ("ramen",),
    "spaghetti": ("ramen",), "noodle": ("ramen",), "egg": ("egg",), "kitten": ("cat",), "settee": ("sofa",),
}  # fmt: skip
NUMBERS = frozenset(
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "dozen", "hundred")
)


@dataclass(frozen=True)
class Synset:
    """One meaning: its words, and what it is a kind (or a case) of."""

    words: tuple[str, ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class WordNet:
    """The nouns of WordNet: meanings by their number in the file, and each word's, the commonest first."""

    synsets: Mapping[int, Synset]
    senses: Mapping[str, tuple[int, ...]]

    def visible_words(self) -> list[str]:
        """Words of one or two parts, no proper names, for what can be seen; sorted."""
        words = {w for number in self.visible for w in self.synsets[number].words}
        return sorted(w for w in words if w.islower() and w.count(" ") < 2)

    @classmethod
    def load(cls, folder: Path = WORDNET) -> WordNet:
        """Read data.noun and index.noun."""
        synsets, senses = {}, {}
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split(" | ")[0].split()
                count = int(fields[3], 16)
                words = tuple(w.replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
                rest = fields[5 + 2 * count :]
                pointers = zip(rest[0::4], rest[1::4], strict=False)
                synsets[int(fields[0])] = Synset(
                    words, tuple(int(n) for kind, n in pointers if kind in ("@", "@i"))
                )
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                senses[fields[0].replace("_", " ")] = tuple(int(n) for n in fields[-int(fields[2]) :])
        return cls(synsets, senses)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """What is a kind of each meaning."""
        found: dict[int, list[int]] = {}
        for number, synset in self.synsets.items():
            for kind in synset.kinds:
                found.setdefault(kind, []).append(number)
        return found

    @cached_property
    def visible(self) -> set[int]:
        """The meanings that can be seen."""
        waiting = deque(self.senses[word][0] for word in VISIBLE)
        found: set[int] = set()
        while waiting:
            number = waiting.popleft()
            if number not in found:
                found.add(number)
                waiting.extend(self.children.get(number, ()))
        return found

    @cached_property
    def depth(self) -> dict[int, int]:
        """Steps from the top to each meaning, along the longest way."""
        found: dict[int, int] = {}

        def of(number: int) -> int:
            if number not in found:
                found[number] = 0
                found[number] = 1 + max((of(kind) for kind in self.synsets[number].kinds), default=-1)
            return found[number]

        for number in self.synsets:
            of(number)
        return found

    def above(self, number: int) -> dict[int, int]:
        """What a meaning is a kind of, near or far, and in how many steps; itself in none."""
        found, waiting = {number: 0}, deque([number])
        while waiting:
            current = waiting.popleft()
            for kind in self.synsets[current].kinds:
                if kind not in found:
                    found[kind] = found[current] + 1
                    waiting.append(kind)
        return found


def likenesses(wordnet: WordNet, names: Iterable[str]) -> Callable[[str], dict[str, float]]:
    """A function from a word to how like some of the names are to it, by WordNet: 1 for another word for it.

    Likeness is that of Wu and Palmer (1994): twice the depth of what both are kinds of, to the sum of theirs.
    A word's second meaning counts somewhat less than its first, and what can't be seen for nothing.
    """
    places: dict[int, list[tuple[str, int, int, float]]] = {}  # from what is above to the names below it
    for name in names:
        for rank, sense in enumerate(wordnet.senses.get(name, ())[:SENSES]):
            if sense in wordnet.visible:
                for kind, steps in wordnet.above(sense).items():
                    if steps <= STEPS:
                        places.setdefault(kind, []).append((name, sense, steps, 1 - 0.15 * rank))

    def of(word: str) -> dict[str, float]:
        best: dict[str, float] = {}
        for rank, sense in enumerate(wordnet.senses.get(word, ())[:SENSES]):
            if sense not in wordnet.visible:
                continue
            for kind, steps in wordnet.above(sense).items():
                for name, other, more, weight in places.get(kind, ()):
                    if steps + more <= STEPS:
                        both = wordnet.depth[sense] + wordnet.depth[other]
                        value = 2 * wordnet.depth[kind] / max(both, 1) * weight * (1 - 0.15 * rank)
                        best[name] = max(best.get(name, 0.0), value)
        return best

    return of


def encode_words(words: list[str], folder: Path) -> np.ndarray:
    """Unit vectors [n, D] of words by a sentence encoder in transformers' layout: means of its tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    options = {"local_files_only": True}
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder, **options),
        AutoModel.from_pretrained(folder, **options),
    )
    vectors = []
    with torch.no_grad():
        for start in range(0, len(words), 512):
            tokens = tokenizer(words[start : start + 512], padding=True, return_tensors="pt")
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(vectors), dim=1).numpy()


def nearest_names(
    wordnet: WordNet, names: Mapping[str, str], common: Iterable[str], encoder: Path | None = None
) -> dict[str, str]:
    """For English words that are no names, the name that the two judges find nearest, if one is near.

    Args:
        wordnet: one judge.
        names: each name to its noun; the nouns themselves are preferred.
        common: words to map; those that WordNet does not know are judged by the encoder alone.
        encoder: folder of the other judge; without it, WordNet decides.
    """
    plain = {w for w in common if all(c.isalpha() or c == " " for c in w)}
    words = sorted(plain - names.keys() - NUMBERS)
    known = sorted(names)
    of = likenesses(wordnet, known)
    places = {name: i for i, name in enumerate(known)}
    noun = np.array([names[name] == name for name in known])
    table: dict[str, str] = {}
    cosines = None
    if encoder is not None:
        cosines = encode_words(words, encoder) @ encode_words(known, encoder).T
    for i, word in enumerate(words):
        scores = np.zeros(len(known))
        for name, likeness in of(word).items():
            scores[places[name]] = likeness
        if not scores.any():
            continue  # nothing that can be seen
        if cosines is not None:
            spoken = np.maximum(cosines[i] - ALIKE, 0) / (1 - ALIKE)
            scores = np.where(scores > 0, 0.5 * scores + 0.5 * spoken, 0.6 * spoken)
        scores += NOUN * noun
        best = int(scores.argmax())
        if scores[best] >= LEAST:
            table[word] = known[best]
    return table


def corrected(table: dict[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """A table with CORRECTED's first known name for each of its words, and without NUMBERS."""
    better = {w: next((n for n in ns if n in names), "") for w, ns in CORRECTED.items() if w not in names}
    whole = table | {word: name for word, name in better.items() if name}
    return {word: name for word, name in whole.items() if word not in NUMBERS}
