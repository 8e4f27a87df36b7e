"""Commands that are stopped, by Ctrl-C or by SIGTERM."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from softkin_training import cli
from softkin_training.interruption import terminable

pytestmark = pytest.mark.training

COMMANDS = {
    "train": (["digits", "--out", "x"], "run again with --resume to go on from the last checkpoint"),
    "build": (["digits", "--out", "x"], "run it again\n"),
    "ablate": (["digits", "--out", "x"], "run it again: what is done stays"),
    "evaluate": (["b", "--inliers", "i", "--outliers", "o=o", "--out", "x"], "run it again\n"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_command_cleans_up_and_says_how_to_go_on(name, number, capsys, monkeypatch):
    """Its finally blocks run, where half-written files are removed; --resume is named where there is one."""
    arguments, remedy = COMMANDS[name]
    cleaned = []

    def stopped(arguments: object) -> None:
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(10)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(cli, "evaluate_files" if name == "evaluate" else f"_{name}", stopped)
    before = signal.getsignal(signal.SIGTERM)

    assert cli.main([name, *arguments]) == 130
    assert cleaned == [True]
    assert capsys.readouterr().err.endswith(f"softkin-train: interrupted; {remedy.strip()}\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_whoever_runs_a_command_has_the_signal_back_afterwards():
    """A program that calls `main` may have a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler != before
    assert signal.getsignal(signal.SIGTERM) == before

    with pytest.raises(RuntimeError), terminable():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_and_a_process_of_torchrun_that_does_not_write_leave_the_signal_alone(monkeypatch):
    """A thread may set none, and the process is ended with the one that failed."""
    found = []

    def look():
        with terminable():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    monkeypatch.setenv("RANK", "1")
    look()

    assert found == [before, before]
