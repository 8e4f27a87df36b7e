"""A training run of the command line that is killed, as by a machine that goes down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_SECONDS = 120


def train_and_kill(out, overrides, *, after_epochs):
    """Train the digits with all processes, and SIGKILL them in the middle of an epoch.

    Args:
        out: folder of the run.
        overrides: `section.key=value`.
        after_epochs: how many have a line in history.jsonl, at least, when the signal comes.

    Returns:
        Epochs that the checkpoint may hold at most.
    """
    command = [Path(sys.executable).with_name("softkin-train"), "train", "digits", "--out", out, "--quiet"]
    for override in overrides:
        command += ["--set", override]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    history, deadline = out / "history.jsonl", time.monotonic() + DEADLINE_SECONDS
    try:
        while not (history.exists() and len(history.read_text().splitlines()) >= after_epochs):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the run ended early: {process.stderr.read().decode()}")
            time.sleep(0.005)
        time.sleep(0.05)  # into the epoch
        assert process.poll() is None, "the run was over before it could be killed: give it more epochs"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    return len(history.read_text().splitlines())
