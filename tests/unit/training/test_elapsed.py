"""Commands that may take minutes say so to whoever watches, and to nobody else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from softkin_training.cli import main

pytestmark = pytest.mark.training


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A bundle of vectors, and more of them."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", x_train=rng.normal(size=(200, 4)))
    np.savez("new.npz", x_test=rng.normal(size=(50, 4)))
    assert main(["fit", "--embeddings", "v.npz", "--out", "."]) == 0
    return tmp_path


def read_all(terminal):
    """What is written to a terminal, until nobody has it open."""
    with suppress(OSError):  # how Linux says so
        while some := os.read(terminal, 1 << 16):
            yield some


COMMANDS = {
    "fitting": ["fit", "--embeddings", "v.npz", "--out", "out"],
    "recalibrating": ["recalibrate", "bundle", "--data", "new.npz", "--out", "out"],
    "evaluating": ["evaluate", "bundle", "--inliers", "new.npz", "--outliers", "o=new.npz", "--out", "out"],
}


@pytest.mark.parametrize(("what", "command"), COMMANDS.items(), ids=COMMANDS)
def test_a_terminal_shows_what_is_done_and_for_how_long(folder, what, command):
    """On standard error; what the command prints goes where it always goes."""
    terminal, errors = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "softkin_training", *command],
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "TERM": "xterm"},
    ) as running:
        os.close(errors)
        shown = b"".join(read_all(terminal))  # while it runs: a terminal takes no more than it can hold
        printed, _ = running.communicate(timeout=60)
    os.close(terminal)

    assert running.returncode == 0
    assert what.encode() in shown
    assert b"0:00:0" in shown
    assert printed
    assert what.encode() not in printed


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_log_does_not(folder, capfd, command):
    """Nor an empty line in its place."""
    assert main(command) == 0

    assert capfd.readouterr().err == ""
