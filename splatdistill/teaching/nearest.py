"""The table that maps English words to the nearest name that a teacher knows.

Two measures are combined: WordNet (Debian package wordnet-base), with its hypernyms, and a sentence encoder,
with its similarities. Only words that first of all mean a visible thing are in the table, and none of those
that WordNet calls offensive.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

WORDNET = Path("/usr/share/wordnet")
VISIBLE = ("object", "food", "living thing", "imaginary being")  # whose kinds can be seen
# Fields of WordNet whose words can be drawn: 5 animals, 6 artifacts, 13 food, 17 natural objects, 18 persons,
# 20 plants. Others, such as places, substances and parts of bodies, have nothing near them.
PERSON = 18
FIELDS = frozenset((5, 6, 13, 17, PERSON, 20))
# A word may first mean what a thing is made of or named like: the meat of a lobster, the wood of a maple.
BEFORE = frozenset((13, 20, 27))
PEOPLE = frozenset(("person", "character", "worker", "soldier", "man", "woman", "runner", "adventurer"))
SOMEBODY, SURE = "man", 0.66  # whom a person is taken for whose nearest name has a smaller vote
RELATED = (frozenset((13, 20)), frozenset((6, 17)))  # fields whose words may stand for each other
OFFENSIVE = re.compile(r"\([^)]*(slur|offensive|disparag|derogat|vulgar|obscen)")  # in a gloss
SENSES = 3  # of a word that count, the commonest first
STEPS = 8  # between two things' places in WordNet, at most
ALIKE = 0.35  # of the encoder's cosine counts as nothing
LEAST = 0.46  # of the vote for a word to be in the table
SAME, KIND = 0.3, 0.16  # added for a synonym, and for the name of a kind that the word is of
NOUN = 0.08  # added for a name that is a noun of the teacher rather than a broader class
# What the judges get wrong, by eye; names that a teacher does not have are passed over.
CORRECTED = {
    word: tuple(names.split("|"))
    for names, words in {
        "flower": "rose roses daisy daffodil sunflower lavender", "tractor": "excavator backhoe bulldozer",
        "ship|boat": "submarine", "scooter|bicycle": "motorcycle motorbike", "helicopter": "chopper",
        "playhouse|house": "treehouse", "tent|hut": "wigwam tepee tipi yurt", "rat": "mouse hamster gerbil",
        "horse": "unicorn foal colt filly pony", "cow": "calf heifer", "sheep": "lamb ewe", "donkey": "mule",
        "bull|cow": "buffalo bison ox yak", "reindeer": "caribou", "elk|deer": "moose",
        "eagle": "hawk falcon", "cat": "kitten",
        "hen": "rooster", "whale": "orca", "crab": "lobster shrimp prawn crayfish octopus squid",
        "dog": "german shepherd|labrador|doberman|dachshund|beagle|terrier|rottweiler|dalmatian",
        "bear|bear head|panda": "cub|polar bear|grizzly bear|brown bear", "guitar": "violin cello fiddle",
        "rug": "blanket", "security camera": "camera", "cart": "chariot", "king": "queen prince",
        "girl": "princess", "pie": "lasagna quiche", "fried egg": "omelette omelet", "egg": "egg",
        "ramen": "pasta spaghetti noodle noodles macaroni", "lemon": "lime", "sofa": "settee",
        "orange": "tangerine clementine mandarin", "onion": "garlic|garlic clove|shallot",
        "eggplant": "zucchini courgette cucumber", "frying pan": "wok skillet", "pliers": "spanner wrench",
        "clothes": "trousers pants jeans",
        "house": "mansion|villa|restaurant|cafe|home|bungalow|room|parlor|lobby|dining room|living room",
        "kitchen island": "kitchen", "soldier": "captain colonel sergeant corporal general",
        "building": "hotel|office|block|university|college|theater|theatre", "warehouse": "factory",
        "cowboy|man": "cowboy", "cake": "brownie",
        "construction worker": "fireman firefighter", "boy": "child children toddler infant",
        "woman": "wife mother grandmother aunt sister maid ma mom mum nurse actress ballerina bride nun",
         "witch": "sorceress",
        "man": "author|writer|poet|novelist|actor|musician|dancer|person|human|human being|guest|judge",
        "van|suv": "minivan", "sled": "snowmobile", "cloud": "fog", "switch|lever": "button",
        "mug": "cup of tea|cup of cocoa", "cauldron": "vat", "table": "counter", "tv": "screen",
        "picture frame": "window|photograph|picture|painting|portrait", "cage|bird cage": "cage",
        "wall unit|brick block": "wall", "bridge": "viaduct|road", "balloon|ball": "balloon",
        "tree": "wood|woods|forest|maple", "spaceship": "rocket|space shuttle|spacecraft",
        "gate": "entrance|doorway", "ladder": "steps", "belt|pouch": "belt",
        "wooden church|temple": "church cathedral abbey", "temple": "mosque synagogue shrine",
        "orc|monster": "goblin ogre gremlin", "lawn mower": "lawnmower",
        "broom": "vacuum cleaner|vacuum|hoover",
        "xylophone": "drum|drums|drum kit|drumset", "elephant": "hippo hippopotamus",
        "worm": "snail slug", "frog": "turtle tortoise", "skateboard": "surfboard",
        "bowl": "ashtray receptacle spittoon", "keyboard": "keypad|input device|peripheral",
        "train wagon": "freight wagon|container wagon|boxcar|freight car|flatcar|stockcar",
        "tape measure": "ruler|foot rule|yard measure|meterstick", "crate": "question block|mystery block",
        "smoke detector": "smoke alarm|fire alarm",
    }.items()
    for word in (words.split("|") if "|" in words or " " not in words else words.split())
}  # fmt: skip
# Words whose nearest name is far-fetched: those who use them had better be told.
FAR = frozenset(
    (
        "string", "layer", "blade", "spectator", "anode", "cathode", "mound", "landing", "world", "surface",
        "system", "product", "floor", "art", "item", "thing", "corridor", "highway", "roadway", "addition",
        "mixture", "apparatus", "powder", "wire", "constituent", "faggot", "dyke", "retard",
    )
)  # fmt: skip
NUMBERS = frozenset(
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "dozen", "hundred")
)


@dataclass(frozen=True)
class Synset:
    """One meaning: its words, its hypernyms, the number of its field, and whether it is offensive."""

    words: tuple[str, ...]
    kinds: tuple[int, ...]
    field: int
    offensive: bool


@dataclass(frozen=True)
class WordNet:
    """The nouns of WordNet: meanings by file offset, and each word's, the most frequent first."""

    synsets: Mapping[int, Synset]
    senses: Mapping[str, tuple[int, ...]]

    def visible_words(self) -> list[str]:
        """Return words of one or two parts, no proper names, for visible things; sorted."""
        words = {w for number in self.visible for w in self.synsets[number].words}
        return sorted(w for w in words if w.islower() and w.count(" ") < 2 and self.meant(w))

    def meant(self, word: str) -> list[int]:
        """Return the meanings of a word that count, the commonest first; none if that cannot be drawn."""
        senses = list(self.senses.get(word, ())[:SENSES])
        if any(self.synsets[n].offensive for n in senses):
            return []
        senses = [n for n in senses if not self._proper(word, n)]
        shown = [n for n in senses if n in self.visible and self.synsets[n].field in FIELDS]
        before = senses[: senses.index(shown[0])] if shown else senses
        return shown if all(self.synsets[n].field in BEFORE for n in before) else []

    def _proper(self, word: str, number: int) -> bool:
        spelled = [w for w in self.synsets[number].words if w.lower() == word]
        return bool(spelled) and not any(w.islower() for w in spelled)

    def meanings(self, name: str, classes: Iterable[str]) -> list[int]:
        """Return what a teacher's name means: of the visible meanings, those of the kinds that it says.

        "speaker", of the class "electronics", is no person; only names of PEOPLE are.
        """
        person = name in PEOPLE or not PEOPLE.isdisjoint(classes)
        said = {sense for kind in classes for sense in self.senses.get(kind, ()) if kind != name}
        shown = [
            n
            for n in self.senses.get(name, ())
            if n in self.visible and not self._proper(name, n) and (person or self.synsets[n].field != PERSON)
        ]
        told = [n for n in shown if said & (self.above(n).keys() - {n})]
        return (told or shown)[:1]

    @classmethod
    def load(cls, folder: Path = WORDNET) -> WordNet:
        """Read data.noun and index.noun."""
        synsets, senses = {}, {}
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                told, _, gloss = line.partition(" | ")
                fields = told.split()
                count = int(fields[3], 16)
                words = tuple(w.replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
                rest = fields[5 + 2 * count :]
                pointers = zip(rest[0::4], rest[1::4], strict=False)
                kinds = tuple(int(n) for kind, n in pointers if kind in ("@", "@i"))
                offensive = OFFENSIVE.search(gloss) is not None
                synsets[int(fields[0])] = Synset(words, kinds, int(fields[1]), offensive)
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
        waiting = deque(n for word in VISIBLE for n in self.senses[word][: 2 if word == "food" else 1])
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


@dataclass(frozen=True)
class Below:
    """The names below one meaning: their numbers, how many steps below, and the depth and field of each."""

    name: np.ndarray
    steps: np.ndarray
    depth: np.ndarray
    field: np.ndarray


def likenesses(
    wordnet: WordNet, names: Mapping[str, str], classes: Mapping[str, Iterable[str]]
) -> Callable[[str], np.ndarray]:
    """Return a function from a word to its WordNet similarity to each of the names, sorted; 0 for none.

    The similarity is that of Wu and Palmer (1994): twice the depth of the common hypernym, over the sum of
    the depths; more for a synonym, and for a kind that the word is of. A word's second meaning counts
    somewhat less than its first. Things of different fields are not alike.

    Args:
        wordnet: the words.
        names: each name to its noun.
        classes: the broader classes of each noun, which tell its meaning.
    """
    rows: dict[int, list[tuple[int, int, int, int]]] = {}  # from what is above to the names below it
    for i, name in enumerate(sorted(names)):
        for sense in wordnet.meanings(name, classes.get(names[name], ())):
            for kind, steps in wordnet.above(sense).items():
                if steps <= STEPS:
                    own = (i, steps, wordnet.depth[sense], wordnet.synsets[sense].field)
                    rows.setdefault(kind, []).append(own)
    places = {kind: Below(*np.array(found).T) for kind, found in rows.items()}

    def of(word: str) -> np.ndarray:
        best = np.zeros(len(names))
        for rank, sense in enumerate(wordnet.meant(word)):
            own = wordnet.synsets[sense].field
            near = [own, *(field for both in RELATED if own in both for field in both)]
            for kind, steps in wordnet.above(sense).items():
                if kind not in places:
                    continue
                there = places[kind]
                value = 2.0 * wordnet.depth[kind] / np.maximum(wordnet.depth[sense] + there.depth, 1)
                of_kind = KIND * 0.8 ** (steps - 1) if steps else SAME
                value = value + np.where(there.steps == 0, of_kind, 0.0)
                value = value * ((steps + there.steps <= STEPS) & np.isin(there.field, near))
                np.maximum.at(best, there.name, value * (1 - 0.15 * rank))
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
    wordnet: WordNet,
    names: Mapping[str, str],
    common: Iterable[str],
    encode: Callable[[list[str]], np.ndarray] | None = None,
    classes: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:
    """Return the nearest name of English words that are no names themselves, if one is near.

    Args:
        wordnet: the first measure.
        names: each name to its noun; the nouns themselves are preferred.
        common: words to map.
        encode: the second measure, unit vectors of words; without it, WordNet decides.
        classes: the broader classes of each noun.
    """
    plain = {w for w in common if all(c.isalpha() or c == " " for c in w)}
    words = sorted(plain - names.keys() - NUMBERS)
    known = sorted(names)
    of = likenesses(wordnet, names, classes or {})
    noun = np.array([names[name] == name for name in known])
    table: dict[str, str] = {}
    cosines = None
    if encode is not None:
        cosines = encode(words) @ encode(known).T
    for i, word in enumerate(words):
        scores = of(word)
        if not scores.any():
            continue  # nothing that can be seen
        if cosines is not None:
            spoken = np.maximum(cosines[i] - ALIKE, 0) / (1 - ALIKE)
            scores = np.where(scores > 0, 0.5 * scores + 0.5 * spoken, 0.0)
        scores += NOUN * (noun & (scores > 0))
        best = int(scores.argmax())
        person = all(wordnet.synsets[n].field == PERSON for n in wordnet.meant(word))
        if person and scores[best] < SURE and SOMEBODY in names:
            table[word] = SOMEBODY
        elif scores[best] >= LEAST:
            table[word] = known[best]
    return table


def corrected(table: dict[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return a table with CORRECTED's first known name for its words, and no FAR, NUMBERS or other names."""
    better = {w: next((n for n in ns if n in names), "") for w, ns in CORRECTED.items() if w not in names}
    whole = table | {word: name for word, name in better.items() if name}
    return {word: name for word, name in whole.items() if word not in NUMBERS | FAR and name in names}
