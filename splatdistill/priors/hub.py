"""Teachers of the Hugging Face hub at a commit: which files of a repository are fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
SMALL = (".json", ".txt", ".model", ".jinja")  # configurations, tokenizers, chat templates
UNUSED = ("safety_checker", "watermarker", "feature_extractor")  # parts that no teacher needs


def chosen_files(files: Sequence[str]) -> tuple[str, ...]:
    """Return the files of a pipeline that a teacher is loaded from: no pickles, one precision of each part.

    files: paths in a repository. In each folder the half-precision safetensors are taken, if there are any.
    Weights beside the index are single files for other programs, and left out.
    """
    files = [path for path in files if path.partition("/")[0] not in UNUSED]
    picked = [path for path in files if path == "README.md" or (path.endswith(SMALL) and path.count("/") < 2)]
    weights = [path for path in files if path.endswith(".safetensors") and path.count("/") == 1]
    for folder in {path.partition("/")[0] for path in weights}:
        inside = [path for path in weights if path.startswith(f"{folder}/") and "non_ema" not in path]
        picked += [path for path in inside if ".fp16" in path] or inside
    return tuple(sorted(picked))


def whole(snapshot: Path) -> bool:
    """Return whether every part that the index of a pipeline names is in a snapshot."""
    index = snapshot / "model_index.json"
    if not index.is_file():
        return False
    told = json.loads(index.read_text("utf-8"))
    parts = {part: value for part, value in told.items() if isinstance(value, list) and part not in UNUSED}
    return all((snapshot / part).is_dir() for part, value in parts.items() if value[0])
