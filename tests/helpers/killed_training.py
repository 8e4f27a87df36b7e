"""A training run of the command line that is killed, as by a machine that goes down."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from warm_processes import WarmProcess

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
    arguments = ["train", "digits", "--out", out, "--quiet"]
    for override in overrides:
        arguments += ["--set", override]
    history, deadline = out / "history.jsonl", time.monotonic() + DEADLINE_SECONDS
    with WarmProcess(arguments) as process:
        try:
            while not (history.exists() and len(history.read_text().splitlines()) >= after_epochs):
                assert process.status is None, f"the run ended early: {process.finish(60)}"
                assert time.monotonic() < deadline, "the run takes too long"
                time.sleep(0.005)
            time.sleep(0.05)  # into the epoch
            assert process.status is None, "the run was over before it could be killed: give it more epochs"
        finally:
            with suppress(ProcessLookupError):  # it has ended, which is told above
                os.killpg(process.pid, signal.SIGKILL)
            process.finish(60)
    assert process.status == -signal.SIGKILL
    return len(history.read_text().splitlines())
