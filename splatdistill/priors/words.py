"""The vocabulary of the shipped teacher, and the form of its captions.

A caption reads "a small red car on top of a blue cube, front view, gray background"; every part but the
object is optional. The only colors, sizes, views and backgrounds are those named below.
"""

import difflib
import re
from dataclasses import dataclass

from splatdistill.errors import UserError

OBJECTS: tuple[str, ...] = (
    "snowman", "mushroom", "pine tree", "rocket", "table", "chair", "house", "car", "robot", "duck",
    "dog", "teddy bear", "mug", "lamp", "cake", "castle", "cactus", "donut", "ice cream cone", "boat",
    "penguin", "umbrella", "lighthouse", "airplane",
)  # fmt: skip
PRIMITIVES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone", "ring")
THINGS: tuple[str, ...] = OBJECTS + PRIMITIVES

COLORS = {
    "red": (0.85, 0.09, 0.09), "orange": (0.97, 0.48, 0.05), "yellow": (0.97, 0.86, 0.12),
    "green": (0.12, 0.60, 0.18), "cyan": (0.12, 0.78, 0.82), "blue": (0.11, 0.25, 0.85),
    "purple": (0.50, 0.16, 0.70), "pink": (0.97, 0.50, 0.72), "brown": (0.45, 0.26, 0.12),
    "white": (0.94, 0.94, 0.94), "gray": (0.50, 0.50, 0.52), "black": (0.10, 0.10, 0.11),
}  # fmt: skip
USUAL_COLOR = {
    "snowman": "white", "mushroom": "red", "pine tree": "green", "rocket": "white", "table": "brown",
    "chair": "brown", "house": "yellow", "car": "red", "robot": "gray", "duck": "yellow", "dog": "brown",
    "teddy bear": "brown", "mug": "blue", "lamp": "yellow", "cake": "pink", "castle": "gray",
    "cactus": "green",
    "donut": "pink", "ice cream cone": "pink", "boat": "brown", "penguin": "black", "umbrella": "purple",
    "lighthouse": "red", "airplane": "white", "sphere": "red", "cube": "blue", "cylinder": "green",
    "cone": "orange", "ring": "yellow",
}  # fmt: skip
SYNONYMS = {
    "sphere": "ball", "cube": "box", "teddy bear": "teddy", "pine tree": "christmas tree", "mug": "cup",
    "airplane": "plane", "boat": "sailboat", "dog": "puppy", "donut": "doughnut",
}  # fmt: skip
SIZES = {"small": 0.52, "big": 0.92}
USUAL_SIZE = 0.78
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)}
TEXTURELESS = 0.8  # gray of things without colors
OPENINGS = ("", "", "", "", "", "", "a photo of ", "a 3d model of ", "a render of ", "a toy ")
FUNCTION_WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "top",
    "and",
    "with",
    "background",
    "view",
    "front",
    "side",
    "back",
    "overhead",
    "photo",
    "3d",
    "model",
    "render",
    "toy",
]
MAX_PROMPT_TOKENS = 16  # of 24 tokens: start and end, and six for ", overhead view, white background"
FACING = (  # objects whose front clearly differs from their back
    "snowman", "chair", "house", "car", "robot", "duck", "dog", "teddy bear", "castle", "penguin", "airplane",
)  # fmt: skip


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(things: tuple[str, ...], colors: tuple[str | None, ...], size: str = "") -> str:
    """Return the caption of a scene.

    ("car", "cube"), ("red", None), "small" gives "a small red car on top of a cube".
    """
    phrases = [" ".join(filter(None, (color, thing))) for color, thing in zip(colors, things, strict=True)]
    phrases[0] = " ".join(filter(None, (size, phrases[0])))
    return " on top of ".join(_article(phrase) for phrase in phrases)


def parse(text: str) -> tuple[tuple[str, ...], tuple[str | None, ...]] | None:
    """Return the objects and colors of a caption by `describe`; None for text of another form."""
    names = {name: name for name in THINGS} | {short: name for name, short in SYNONYMS.items()}
    things, colors = [], []
    for phrase in text.lower().split(",")[0].split(" on top of "):
        rest = [word for word in words(phrase) if word not in ("a", "an", "the", *SIZES)]
        color = rest.pop(0) if rest and rest[0] in COLORS else None
        if " ".join(rest) not in names:
            return None
        things.append(names[" ".join(rest)])
        colors.append(color)
    return tuple(things), tuple(colors)


def object_prompts() -> list[str]:
    """Return one prompt for every object of the shipped teacher, cycling through the colors."""
    names, colors = list(OBJECTS), list(COLORS)
    picked = [
        (names[i * 7 % len(names)], colors[(i * 5 + i // len(names)) % len(colors)])
        for i in range(len(names))
    ]
    return [describe((thing,), (color,)) for thing, color in picked]


def words(text: str) -> list[str]:
    """Split text into lower-case words, at spaces, commas and periods."""
    return re.findall(r"[^\s,.]+", text.lower())


def vocabulary() -> frozenset[str]:
    """Return every word that the teacher knows."""
    names = " ".join([*THINGS, *SYNONYMS.values(), *COLORS, *SIZES, *BACKGROUNDS])
    return frozenset([*names.split(), *FUNCTION_WORDS])


def word_list() -> str:
    """Return the vocabulary for display, one line for each kind."""
    lines = {
        "objects": [name + (f" ({SYNONYMS[name]})" if name in SYNONYMS else "") for name in OBJECTS],
        "shapes": [name + (f" ({SYNONYMS[name]})" if name in SYNONYMS else "") for name in PRIMITIVES],
        "colors": list(COLORS),
        "sizes": list(SIZES),
        "two things": ["X on top of Y"],
        "other words": sorted(FUNCTION_WORDS),
    }
    return "\n".join(f"{kind}: {', '.join(values)}" for kind, values in lines.items())


def check_prompt(text: str, allow_unknown: bool = False, taught: frozenset[str] = frozenset()) -> list[str]:
    """Check a prompt for words that the teacher never saw, and for more words than it reads.

    taught: further words that it knows, in lower case.

    Returns:
        One warning line if there are unknown words and they are allowed, else an empty list.

    Raises:
        UserError: unknown words, not allowed; or a prompt too long to leave room for view and background.
    """
    length = len(re.findall(r"[a-z]+|[^a-z\s]", text.lower()))
    if length > MAX_PROMPT_TOKENS:
        raise UserError(
            f"the prompt has {length} words and signs; the shipped teacher reads at most "
            f"{MAX_PROMPT_TOKENS}: shorten it, or use --prior sd21"
        )
    known = vocabulary() | taught
    unknown = sorted({word for word in words(text) if word not in known})
    if not unknown:
        return []
    hints = []
    for word in unknown:
        near = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
        hints.append(f'"{word}"' + (f" (nearest known: {', '.join(near)})" if near else ""))
    message = f"the shipped teacher does not know {', '.join(hints)}"
    if allow_unknown:
        return [message + "; the result will ignore or misread it"]
    raise UserError(
        message + "; use words that --list-words prints, --prior sd21 for open vocabulary, or --allow-unknown"
    )


@dataclass(frozen=True)
class Toys:
    """The words of the toys, and what a LoRA taught, as `reading.Words`: nothing is taken otherwise."""

    taught: frozenset[str] = frozenset()

    def understand(self, text: str, *, strict: bool = True, thing: bool = True) -> tuple[str, list[str]]:
        """Return the text as it is, with a warning where it may be; see `check_prompt`."""
        return text, check_prompt(text, not strict, self.taught)

    def listing(self) -> str:
        """Return the vocabulary for display."""
        return word_list()
