"""Parsing of prompts for the teacher of real objects: plain words, known names, nearest known names.

A text is reduced to canonical words before it is tokenized, in training and in use alike: lower case, without
articles, punctuation, and phrases that say that it is a picture, or name the view.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from splatdistill.errors import UserError

MAX_WORDS = 20  # of a text that are read; the last place stays empty
ARTICLES = frozenset(
    ("a", "an", "the", "my", "our", "your", "his", "her", "its", "their", "this", "that", "some")
)
PICTURE = re.compile(
    r"^(?:(?:a|an|the|one) )*(?:(?:dslr|hd|4k|8k|high|quality|resolution|realistic|detailed|highly|close|up|"
    r"zoomed|out|wide|angle|3d|beautiful|single|professional|studio) )*"
    r"(?:photo|photograph|picture|image|model|render|rendering|view|shot|asset|closeup)s? of "
)
VIEW = re.compile(r"\b(?:(?:front|side|back|overhead) view|(?:white|gray|black) background)\b")
RELATIONS = {  # relation in a prompt: the trained words for it
    "on top of": "on top of", "standing on": "on top of", "sitting on": "on top of", "lying on": "on top of",
    "placed on": "on top of", "atop": "on top of", "upon": "on top of", "on": "on top of",
    "next to": "next to", "beside": "next to", "near": "next to", "and": "and",
}  # fmt: skip
RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")
IRREGULAR = {
    "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth", "children": "child",
    "people": "person", "oxen": "ox", "loaves": "loaf", "wolves": "wolf",
}  # fmt: skip
JOINING = frozenset(("of", "with", "in", "on", "at", "and", "to", "from", "for", "by"))  # say nothing alone
BETWEEN = frozenset(RELATIONS.values())
TAILS = ("with", "in", "holding", "wearing", "covered", "made", "from", "that", "which", "at", "under")


def canonical(text: str) -> str:
    """Return the words of a text that are read: "A photo of a Jack-o'-lantern." gives "jack o lantern"."""
    text = re.sub(r"['\u2019]s\b", " ", text.lower()).replace("'", " ").replace("-", " ")
    text = PICTURE.sub("", " ".join(re.findall(r"[a-z0-9]+", text)))
    return " ".join(word for word in VIEW.sub("", text).split() if word not in ARTICLES)


def singulars(word: str) -> list[str]:
    """Return the word, and the words that it may be the plural of."""
    ends = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("men", "man"))
    found = [word, IRREGULAR[word]] if word in IRREGULAR else [word]
    return found + [word[: -len(e)] + new for e, new in ends if word.endswith(e) and len(word) > len(e) + 1]


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary in a teacher's folder.

    things: each noun's broader classes; names: each name to its noun; words: all trained words, in the order
    of their indices; nearest: names for other English words.
    """

    things: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    words: tuple[str, ...]
    nearest: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read vocabulary.json and, where it is there, nearest.tsv."""
        told = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        path, nearest = folder / "nearest.tsv", {}
        if path.is_file():
            nearest = dict(line.split("\t") for line in path.read_text("utf-8").splitlines())
        things = {noun: tuple(classes) for noun, classes in told["things"].items()}
        return cls(things, told["names"], tuple(told["words"]), nearest)

    def numbers(self, text: str) -> list[int]:
        """Return the indices of a canonical text's words, MAX_WORDS of them: 0 for none, 1 for unknown."""
        known = {word: i + 2 for i, word in enumerate(self.words)}
        return word_numbers(text, known)

    def understand(self, text: str) -> tuple[str, list[str]]:
        """Return a prompt as canonical text of known words, and a line for each change.

        Raises UserError where it names no object that the teacher knows, nor anything near one.
        """
        notes: list[str] = []
        parts = self._parted(canonical(text))
        taken = [
            part if part in BETWEEN else " ".join(self._thing(part.split(), text, notes)) for part in parts
        ]
        return " ".join(" ".join(taken).split()[: MAX_WORDS - 1]), notes

    def _parted(self, said: str) -> list[str]:
        """Split a text at RELATIONS: texts of one object each, with a relation between every two."""
        for found in RELATION.finditer(said):
            before, after = said[: found.start()], said[found.end() :]
            if found[1] == "and":  # may join colors, or parts of one thing
                apart = not any(tail in before.split() for tail in TAILS)
                apart = apart and all(self._find(side.split()) for side in (before, after))
            else:
                apart = all(self._find(side.split()) or self._near(side.split()) for side in (before, after))
            if apart and said not in self.names:
                return [before, RELATIONS[found[1]], *self._parted(after)]
        return [said]

    def _find(self, words: list[str]) -> tuple[int, int, str] | None:
        """Return start, end and name of the longest name, of several the last, before any tail."""
        end = next((i for i, word in enumerate(words) if word in TAILS and i), len(words))
        for size in range(end, 0, -1):
            for start in range(end - size, -1, -1):
                *first, last = words[start : start + size]
                for singular in singulars(last):
                    if (name := " ".join([*first, singular])) in self.names:
                        return start, start + size, name
        return None

    def _near(self, words: list[str]) -> tuple[int, int, str] | None:
        """Return start, end and name of one or two words that are near a name; as `_find`."""
        end = next((i for i, word in enumerate(words) if word in TAILS and i), len(words))
        for place in (*range(end - 1, -1, -1), *range(end, len(words))):
            for start in (place - 1, place) if place else (place,):
                *first, last = words[start : place + 1]
                for singular in singulars(last):
                    if name := self.nearest.get(" ".join([*first, singular])):
                        return start, place + 1, name
        return None

    def _thing(self, words: list[str], text: str, notes: list[str]) -> list[str]:
        """Return the known words for one object."""
        if found := self._find(words):
            start, end, name = found
            return [*self._kept(words[:start], notes), *name.split(), *self._kept(words[end:], notes)]
        if near := self._near(words):
            start, end, name = near
            said = " ".join(words[start:end])
            notes.append(f"'{said}' is not a word of this teacher: taking '{name}'")
            return [*self._kept(words[:start], notes), *name.split(), *self._kept(words[end:], notes)]
        raise UserError(
            f"the prompt '{text}' names nothing that the shipped teacher knows; --list-words prints what it "
            "knows, --prior sd21 takes any prompt"
        )

    def _kept(self, words: list[str], notes: list[str]) -> list[str]:
        """Return those words beside an object's name that were trained, or whose singulars were."""
        known = set(self.words)
        kept = [next((s for s in singulars(word) if s in known), "") for word in words]
        notes.extend(
            f"'{word}' is not a word of this teacher: left out"
            for word, taken in zip(words, kept, strict=True)
            if not taken
        )
        said = [word for word in kept if word]
        while said and said[-1] in JOINING:  # a tail whose words were left out
            said.pop()
        return said


def word_numbers(text: str, known: Mapping[str, int]) -> list[int]:
    """Return the indices of a canonical text's words, MAX_WORDS of them: 0 for none, 1 for unknown."""
    numbers = [known.get(word, 1) for word in text.split()][: MAX_WORDS - 1]
    return numbers + [0] * (MAX_WORDS - len(numbers))
