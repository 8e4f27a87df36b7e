"""The demo, interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_demo_ends_without_a_traceback(tmp_path, number):
    """To be told to end is no fault; the status is that of an interrupted `softkin`."""
    command = [sys.executable, "-u", "-m", "softkin_training.demo", "--out", str(tmp_path)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "Train, export, build" in demo.stdout.readline()
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()

    assert (demo.returncode, errors) == (130, "")
