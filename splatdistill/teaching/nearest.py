"""The table that maps English words to the nearest name that a teacher knows.

Two measures are combined: WordNet (Debian package wordnet-base), with its hypernyms, and a sentence encoder,
with its similarities. Only words for visible things are in the table.
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
    """One meaning: its words, and its hypernyms."""

    words: tuple[str, ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class WordNet:
    """The nouns of WordNet: meanings by file offset, and each word's, the most frequent first."""

    synsets: Mapping[int, Synset]
    senses: Mapping[str, tuple[int, ...]]

    def visible_words(self) -> list[str]:
        """Return words of one or two parts, no proper names, for visible things; sorted."""
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
        """The hyponyms of each meaning."""
        found: dict[int, list[int]] = {}
        for number, synset in self.synsets.items():
            for kind in synset.kinds:
                found.setdefault(kind, []).append(number)
        return found

    @cached_property
    def visible(self) -> set[int]:
        """The meanings of visible things."""
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
        """The steps from the root to each meaning, along the longest path."""
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
        """Return all hypernyms of a meaning with their number of steps; itself with none."""
        found, waiting = {number: 0}, deque([number])
        while waiting:
            current = waiting.popleft()
            for kind in self.synsets[current].kinds:
                if kind not in found:
                    found[kind] = found[current] + 1
                    waiting.append(kind)
        return found


def likenesses(wordnet: WordNet, names: Iterable[str]) -> Callable[[str], dict[str, float]]:
    """Return a function from a word to its WordNet similarities to some of the names: 1 for a synonym.

    The similarity is that of Wu and Palmer (1994): twice the depth of the common hypernym, over the sum of
    the depths. A word's second meaning counts somewhat less than its first; invisible meanings do not count.
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
    """Return unit vectors [n, D] of words: mean tokens of a sentence encoder in transformers' layout."""
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
    """Return the nearest name of English words that are no names themselves, if one is near.

    Args:
        wordnet: the first measure.
        names: each name to its noun; the nouns themselves are preferred.
        common: words to map; those that WordNet lacks are compared by the encoder alone.
        encoder: folder of the second measure; without it, WordNet decides.
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
    """Return a table with CORRECTED's first known name for each of its words, and without NUMBERS."""
    better = {w: next((n for n in ns if n in names), "") for w, ns in CORRECTED.items() if w not in names}
    whole = table | {word: name for word, name in better.items() if name}
    return {word: name for word, name in whole.items() if word not in NUMBERS}
