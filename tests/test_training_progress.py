"""What a run tells, and the signals that stop it."""

import io
import os
import signal
import subprocess
import sys

import pytest

from splatdistill.training.progress import Lines, Steady, interruptible

METRICS = {"t": 500.0, "loss": 2.0, "gradient_norm": 1.0, "gaussians": 5.0, "skipped": 0.0}


def test_a_line_every_tenth_of_a_run():
    stream = io.StringIO()
    lines = Lines(20, 0, stream)
    for step in range(1, 21):
        lines.on_step(step, METRICS)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [
        f"{k}/20" for k in range(2, 21, 2)
    ]


def test_nobody_has_to_read_what_a_run_tells():
    ending, other = os.pipe()
    os.close(ending)
    with open(other, "w") as gone, open("/dev/full", "w") as full:
        for stream in (gone, full):
            lines = Lines(2, 0, stream)
            lines.on_step(1, METRICS)
            lines.on_step(2, METRICS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left can go
    closed = io.StringIO()
    closed.close()
    Steady(closed).write("x")


def test_a_signal_asks_a_run_to_stop(number):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_outlives_its_terminal():
    code = (
        "import os, signal\n"
        "from splatdistill.training.progress import interruptible\n"
        "with interruptible() as interrupted:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(interrupted())\n"
    )
    command = ["nohup", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
