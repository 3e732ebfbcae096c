"""A teacher's folder, as its JSON files describe it; light to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HEADER = 100_000_000  # bytes, the limit of safetensors


@dataclass(frozen=True)
class Folder:
    """A teacher's folder, as its JSON files describe it.

    name: what the user called it; root: the pipeline's folder; place: the subfolder of its denoiser; lora:
    files to merge into its networks, FILE or FILE:SCALE each; single: a file that holds all its weights;
    adapter: a file that makes it denoise several views together (MV-Adapter).
    """

    name: str
    root: Path
    place: str = "unet"
    lora: tuple[str, ...] = ()
    single: Path | None = None
    adapter: Path | None = None

    def json(self, path: str) -> dict[str, Any]:
        """Return the object in a JSON file of the pipeline; an empty one where there is none."""
        try:
            given = json.loads((self.root / path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return given if isinstance(given, dict) else {}

    @cached_property
    def denoiser(self) -> dict[str, Any]:
        """The configuration of the denoiser; empty where it cannot be read."""
        return self.json(f"{self.place}/config.json")


def header(path: Path) -> dict[str, Any] | None:
    """Return a safetensors file's header, its tensors by name and `__metadata__`; None for another file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            given = json.loads(file.read(length)) if length <= min(HEADER, path.stat().st_size) else None
    except (OSError, ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def one_line(error: BaseException, most: int = 200) -> str:
    """Return what an exception says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def number(config: Mapping[str, Any], key: str) -> int:
    """Return a whole number of a configuration, 0 where there is none."""
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
