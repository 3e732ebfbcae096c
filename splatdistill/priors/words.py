"""The words of the suites of objects and compositions, and the form of their prompts.

A prompt reads "a small red car on top of a blue cube"; every part but the object is optional.
"""

import re

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
SIZES = {"small": 0.52, "big": 0.92}
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
    things, colors = [], []
    for phrase in text.lower().split(",")[0].split(" on top of "):
        rest = [word for word in words(phrase) if word not in ("a", "an", "the", *SIZES)]
        color = rest.pop(0) if rest and rest[0] in COLORS else None
        if (name := " ".join(rest)) not in THINGS:
            return None
        things.append(name)
        colors.append(color)
    return tuple(things), tuple(colors)


def object_prompts() -> list[str]:
    """Return one prompt for every object, cycling through the colors."""
    names, colors = list(OBJECTS), list(COLORS)
    picked = [
        (names[i * 7 % len(names)], colors[(i * 5 + i // len(names)) % len(colors)])
        for i in range(len(names))
    ]
    return [describe((thing,), (color,)) for thing, color in picked]


def words(text: str) -> list[str]:
    """Split text into lower-case words, at spaces, commas and periods."""
    return re.findall(r"[^\s,.]+", text.lower())
