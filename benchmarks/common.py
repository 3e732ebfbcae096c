"""What all benchmarks share: results with the machine and the versions that gave them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from splatdistill.measure.machine import machine

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write <name>.json in benchmarks/results: the command, the machine, and what was measured."""
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    content = {"command": command, "machine": machine(), **result}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
