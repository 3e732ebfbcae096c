"""The campaigns on files in short: verbs that are killed, or that find the disk full, lose nothing.

The campaigns run in a process of their own, since they put themselves before the C library.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from file_faults import preloaded

ROOT = Path(__file__).resolve().parents[1]
RUNS = ["default, new"]
EXPORTS = ["export, .ply"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)


def campaign(name: str, *words: str) -> subprocess.CompletedProcess:
    """Run a campaign of benchmarks/; its output has a line a job."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--dry", *words]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | preloaded() | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_kill_at_an_operation_on_files_loses_nothing(teacher):
    ended = campaign("kills", "--prior", teacher, "--every", "97", "--jobs", *RUNS, *EXPORTS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("lost 0, different 0") == 2 and "faults 0" not in ended.stdout


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_loses_nothing(teacher):
    ended = campaign("disk_full", "--prior", teacher, "--every", "53", "--jobs", *RUNS, *EXPORTS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("untold 0") == 2 and "faults 0" not in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault, job", [("torn", "export, .ply"), ("forgetful", "fixed, new")])
def test_the_campaign_finds_a_planted_fault(teacher, fault, job):
    ended = campaign("kills", "--prior", teacher, "--plant", fault, "--every", "23", "--jobs", job)
    assert ended.returncode == 1 and "killed" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kills", "disk_full"])
def test_nothing_is_lost_at_any_operation_on_files(teacher, name):
    ended = campaign(name, "--prior", teacher)
    assert ended.returncode == 0, ended.stdout + ended.stderr
