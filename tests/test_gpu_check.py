"""The check of a GPU, in its dry form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["machine", "renderer", "unet", "encoder"]
LONG = ["variants", "tests", "job", "waits", "speed", "sanitizers"]


@pytest.mark.parametrize("stages", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_every_stage_runs_dry_and_is_written_down(tmp_path, stages):
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry", "--out", str(tmp_path), "--only", *stages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {name: json.loads((tmp_path / f"gpu-{name}.json").read_text()) for name in stages}
    assert all(result["dry"] and "machine" in result for result in told.values())
    if "renderer" in told:
        assert max(told["renderer"]["relative_distance"].values()) == 0.0  # the same device twice
    if "unet" in told:
        forms = told["unet"]["forms"] | told["encoder"]["forms"]
        assert all("ms" in form and not form.get("wrong") for form in forms.values())
        assert set(told["unet"]["best"]) == {"attention", "fuse", "norm"}
    if "job" in told:
        assert told["job"]["splat"]
