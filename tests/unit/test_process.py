"""The process around a server: how it ends."""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from softkin.process import _drain, prepare
from softkin.settings import ServerSettings


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_while_it_stops_does_not_keep_the_process_waiting():
    """For a second signal, which an orchestrator sends only as SIGKILL."""

    def stop():
        raise RuntimeError("a fault")

    server = SimpleNamespace(stop=stop, pending_requests=0, abandoned_requests=0, changing=False)
    signals: SimpleQueue[int] = SimpleQueue()
    signals.put(signal.SIGTERM)
    ended = []
    draining = threading.Thread(target=lambda: ended.append(_drain(server, ServerSettings(), signals)), daemon=True)

    draining.start()
    draining.join(20)

    assert ended == [0]


def test_what_stops_it_needs_no_further_thread(monkeypatch):
    """Under `ulimit -u` there may be none by then, and whoever is not answered yet would be lost."""

    def get(timeout):
        if waited:
            return signals.get(timeout=timeout)
        waited.append(timeout)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        return signal.SIGTERM

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    stopped, waited = [], []
    signals: SimpleQueue[int] = SimpleQueue()
    server = SimpleNamespace(
        stop=lambda: stopped.append(True), pending_requests=0, abandoned_requests=0, changing=False
    )

    assert _drain(server, ServerSettings(), SimpleNamespace(get=get, put=signals.put)) == 0

    assert stopped == [True]


@pytest.mark.parametrize(
    ("abandoned", "pending", "changing", "ends"),
    [
        (0, 0, False, ("returns", 0)),
        (2, 0, False, ("returns", 1)),
        (0, 3, False, ("exits", 1)),
        (2, 3, False, ("exits", 1)),
        (0, 0, True, ("exits", 0)),
        (2, 0, True, ("exits", 1)),
    ],
)
def test_the_status_tells_whether_somebody_went_unanswered(monkeypatch, abandoned, pending, changing, ends):
    """And what still computes or loads, which nobody can stop, does not hold the process up."""

    class Exited(BaseException):
        pass

    def exit_now(status):
        raise Exited(status)

    monkeypatch.setattr("os._exit", exit_now)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    server = SimpleNamespace(
        stop=lambda: None, pending_requests=pending, abandoned_requests=abandoned, changing=changing
    )
    signals: SimpleQueue[int] = SimpleQueue()
    signals.put(signal.SIGTERM)

    try:
        found = "returns", _drain(server, ServerSettings(), signals)
    except Exited as e:
        found = "exits", e.args[0]

    assert found == ends


def test_a_sandbox_that_refuses_another_scheduling_keeps_no_server_from_starting(monkeypatch):
    """It is about speed alone."""
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.sched_setscheduler", refuse, raising=False)

    prepare()

    assert len(asked) == hasattr(os, "SCHED_BATCH")
