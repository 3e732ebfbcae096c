"""What all benchmarks share: results with the machine and the versions that gave them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.measure.machine import machine
from splatdistill.priors import load_prior
from splatdistill.priors.base import Prior
from splatdistill.training.run import changed

if TYPE_CHECKING:
    from torch.nn import ParameterDict

    from splatdistill.config.schema import Config

TEACHERS: dict[str, Prior] = {}  # by name, each loaded once
RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write <name>.json in benchmarks/results: the command, the machine, and what was measured.

    Of folders elsewhere on the machine the command has the last name alone.
    """
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *words])
    content = {"command": command, "machine": machine(), **result}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def made(config: Config) -> ParameterDict:
    """Return what a run writes as splat.ply, without its pictures."""
    if config.prior.name not in TEACHERS:
        TEACHERS[config.prior.name] = load_prior(config.prior.name)
    with tempfile.TemporaryDirectory() as folder:
        scene = changed(config, Path(folder) / "run", teacher=TEACHERS[config.prior.name])
    assert scene is not None
    return scene
