"""Parsing of prompts for the teacher of real objects: plain words, known names, nearest known names.

A text is reduced to canonical words before it is tokenized, in training and in use alike: lower case, without
articles, punctuation, and phrases that say that it is a picture, or name the view.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

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
SPELLINGS = {"grey": "gray", "colour": "color", "coloured": "colored", "aeroplane": "airplane"}
IRREGULAR = {
    "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth", "children": "child",
    "people": "person", "oxen": "ox", "loaves": "loaf", "wolves": "wolf",
}  # fmt: skip
JOINING = frozenset(("of", "with", "in", "on", "at", "and", "to", "from", "for", "by"))  # say nothing alone
BETWEEN = tuple(dict.fromkeys(RELATIONS.values()))
MARK = "_"
MEMBERS, OTHER = 8, "other things"  # nouns of a class from which on it is listed as a category
TAILS = ("with", "in", "holding", "wearing", "covered", "made", "from", "that", "which", "at", "under")


def canonical(text: str) -> str:
    """Return the words of a text that are read: "A photo of a Jack-o'-lantern." gives "jack o lantern"."""
    text = re.sub(r"['\u2019]s\b", " ", text.lower()).replace("'", " ").replace("-", " ")
    text = PICTURE.sub("", " ".join(re.findall(r"[a-z0-9]+", text)))
    words = (SPELLINGS.get(word, word) for word in VIEW.sub("", text).split())
    return " ".join(word for word in words if word not in ARTICLES)


def singulars(word: str) -> list[str]:
    """Return the word, and the words that it may be the plural of."""
    ends = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("men", "man"))
    found = [word, IRREGULAR[word]] if word in IRREGULAR else [word]
    return found + [word[: -len(e)] + new for e, new in ends if word.endswith(e) and len(word) > len(e) + 1]


class Words(Protocol):
    """What a teacher's folder says of the words that it reads."""

    def understand(self, text: str, *, strict: bool = True, thing: bool = True) -> tuple[str, list[str]]:
        """Return a text as the teacher reads it, with a line on what was taken for what, if anything was.

        Args:
            text: a prompt.
            strict: whether what means nothing is an error rather than a line.
            thing: whether it has to name a thing, as a prompt does and a negative one does not.

        Raises:
            UserError: strict, and the text means nothing to the teacher.
        """
        ...

    def listing(self) -> str:
        """Return all words for display."""
        ...


@dataclass(frozen=True)
class Asked:
    """A thing in a prompt: its noun, the name that was said, and all nouns that are right for it."""

    noun: str
    name: str
    right: frozenset[str]


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary in a teacher's folder.

    things: each noun's broader classes; names: each name to its noun; words: all trained words, in the order
    of their indices; nearest: names for other English words; pairs: the relations that were learned, each
    with the nouns that were the second thing, none for any; taught: the phrases of `with_taught`, each with
    a mark in place of spaces and before it, which makes it one word that is no noun.
    """

    things: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    words: tuple[str, ...]
    nearest: Mapping[str, str]
    pairs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(BETWEEN, ()))
    colors: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read vocabulary.json and, where it is there, nearest.tsv."""
        told = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        path, nearest = folder / "nearest.tsv", {}
        if path.is_file():
            nearest = dict(line.split("\t") for line in path.read_text("utf-8").splitlines())
        things = {noun: tuple(classes) for noun, classes in told["things"].items()}
        pairs = {kind: tuple(below) for kind, below in told.get("pairs", dict.fromkeys(BETWEEN, ())).items()}
        colors, sizes = tuple(told.get("colors", ())), tuple(told.get("sizes", ()))
        return cls(things, told["names"], tuple(told["words"]), nearest, pairs, colors, sizes)

    def with_taught(self, phrases: Iterable[str]) -> Vocabulary:
        """Return a vocabulary in which these phrases name new things, whatever their words mean otherwise."""
        said = filter(None, map(canonical, phrases))
        taught = tuple(dict.fromkeys(MARK + phrase.replace(" ", MARK) for phrase in said))
        things, names = dict.fromkeys(taught, ()), {name: name for name in taught}
        return replace(self, things={**self.things, **things}, names={**self.names, **names}, taught=taught)

    @cached_property
    def known(self) -> dict[str, int]:
        """The index of each word; 0 is for none and 1 for an unknown one."""
        return {word: i + 2 for i, word in enumerate(self.words)}

    def numbers(self, text: str) -> list[int]:
        """Return the indices of a canonical text's words, MAX_WORDS of them."""
        return word_numbers(text, self.known)

    def understand(self, text: str, *, strict: bool = True, thing: bool = True) -> tuple[str, list[str]]:
        """Return a prompt as canonical text of known words; see `Words`."""
        said, change, found = canonical(text), Change(), False
        taken: list[str] = []
        for part in self._parted(said):
            if part in BETWEEN:
                taken.append(part)
                change.unlearned += [part] * (part not in self.pairs)
                continue
            words, named = self._thing(part.split(), change)
            taken += words
            found = found or named
        if thing and not found and strict:
            raise UserError(
                f"the prompt '{text}' names nothing that the shipped teacher knows; --list-words prints what "
                "it knows, --prior sd21 takes any prompt"
            )
        read = " ".join(" ".join(taken).replace(MARK, " ").split()[: MAX_WORDS - 1])
        if thing and not found:
            return read, [f"'{text}' names nothing that this teacher knows: the result is anything"]
        if said and not read:
            return read, [f"'{text}' means nothing to this teacher: left out"]
        return read, change.lines()

    def asked(self, text: str) -> list[Asked]:
        """Return the things that a prompt asks for; UserError where it names none."""
        things = []
        for part in self._parted(self.understand(text)[0]):
            if part not in BETWEEN and (found := self._find(part.split())):
                noun = self.names[found[2]]
                things.append(Asked(noun, found[2], self._right(noun, found[2])))
        return things

    def scene(self, text: str) -> tuple[list[tuple[str, list[str]]], str]:
        """Return the first two things of a canonical text, each its noun and words, and what is between."""
        parts = self._parted(text)
        found = [(part.split(), self._find(part.split())) for part in parts if part not in BETWEEN]
        things = [(self.names[name[2]], words) for words, name in found if name]
        return things[:2], parts[1] if len(parts) > 1 else ""

    def _right(self, noun: str, name: str) -> frozenset[str]:
        """Return the nouns that are right for a name: its own, those that bear it, and its noun's classes."""
        bears = {other for other, said in self.things.items() if name in map(canonical, said)}
        broader = {other for other in self.things[noun] if other in self.things}
        return frozenset({noun} | bears | broader)

    def category(self, noun: str) -> str:
        """Return the class of a noun that most nouns have; "other things" where none has several."""
        best = max(reversed(self.things[noun]), key=lambda name: self._members[name], default=OTHER)
        return best if self._members[best] >= MEMBERS else OTHER

    @cached_property
    def _members(self) -> Counter[str]:
        return Counter(name for classes in self.things.values() for name in classes)

    def listing(self) -> str:
        """Return the nouns by category, one line each, then colors, sizes and pairs."""
        groups: dict[str, list[str]] = {}
        for noun in sorted(self.things):
            groups.setdefault(self.category(noun), []).append(noun)
        order = sorted(groups, key=lambda name: (name == OTHER, -len(groups[name]), name))
        lines = [f"{name} ({len(groups[name])}): {', '.join(groups[name])}" for name in order]
        told: list[tuple[str, Sequence[str]]] = [("colors", self.colors), ("sizes", self.sizes)]
        lines += [f"{name}: {', '.join(words)}" for name, words in told if words]
        for relation, below in self.pairs.items():
            second = f"Y one of {', '.join(below)}" if below else "any two of the things"
            lines.append(f"pairs: X {relation} Y ({second})")
        lines.append(
            f"{len(self.things)} things; {len(self.names) - len(self.things)} other names of them and "
            f"{len(self.nearest)} other English words are taken for the nearest"
        )
        return "\n".join(lines)

    def _parted(self, said: str) -> list[str]:
        """Split a text at RELATIONS: texts of one object each, with a relation between every two.

        What was taught is one word of them.
        """
        for name in sorted(self.taught, key=len, reverse=True):
            said = re.sub(rf"\b{name[1:].replace(MARK, ' ')}s?\b", name, said)
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
        """Return start, end and name of the longest name, of several the last, before any tail.

        What was taught comes before all, wherever it is.
        """
        for name in self.taught:
            if name in words:
                return words.index(name), words.index(name) + 1, name
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

    def _thing(self, words: list[str], change: Change) -> tuple[list[str], bool]:
        """Return the known words for one thing, and whether there is one."""
        known = self._find(words)
        found = known or self._near(words)
        if found is None:
            return self._kept(words, change), False
        start, end, name = found
        before = self._kept(words[:start], change)
        said = " ".join(words[start:end])
        if known is None:
            change.taken.append((said, name))
        return [*before, *name.split(), *self._kept(words[end:], change)], True

    def _kept(self, words: list[str], change: Change) -> list[str]:
        """Return those words beside a thing's name that were trained, or whose singulars were."""
        known = self.known.keys() | set(self.taught)
        kept = [next((s for s in singulars(word) if s in known), "") for word in words]
        change.left_out += [word for word, taken in zip(words, kept, strict=True) if not taken]
        said = [word for word in kept if word]
        while said and said[-1] in JOINING:  # a tail whose words were left out
            said.pop()
        return said


@dataclass
class Change:
    """What became of a prompt: words taken for others, words left out, relations that were not learned."""

    taken: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unlearned: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return one line, or none where nothing changed."""
        parts = []
        if self.taken:
            said, known = (" and ".join(f"'{pair[i]}'" for pair in self.taken) for i in (0, 1))
            are = "are not words" if len(self.taken) > 1 else "is not a word"
            parts.append(f"{said} {are} of this teacher: taking {known}")
        if self.left_out:
            kept = ", ".join(f"'{word}'" for word in dict.fromkeys(self.left_out))
            parts.append(f"left out, as not known: {kept}")
        parts += [f"this teacher learned no pairs with '{relation}'" for relation in self.unlearned]
        return ["; ".join(parts)] if parts else []


def word_numbers(text: str, known: Mapping[str, int]) -> list[int]:
    """Return the indices of a canonical text's words, MAX_WORDS of them: 0 for none, 1 for unknown."""
    numbers = [known.get(word, 1) for word in text.split()][: MAX_WORDS - 1]
    return numbers + [0] * (MAX_WORDS - len(numbers))
