"""The process around a server: how it ends."""

from __future__ import annotations

import gc
import os
import platform
import signal
import subprocess
import sys
import threading
import weakref
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from softkin.process import _drain, _signals, prepare, settle
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


def test_it_serves_until_it_is_told_to_stop_however_long_that_takes(monkeypatch):
    """Signals are polled, and most polls find none."""
    monkeypatch.setattr("softkin.process.SIGNAL_POLL_SECONDS", 0.001)
    server = SimpleNamespace(stop=lambda: None, pending_requests=0, abandoned_requests=0, changing=False)
    signals: SimpleQueue[int] = SimpleQueue()
    told = threading.Timer(0.1, signals.put, (signal.SIGTERM,))

    told.start()

    assert _drain(server, ServerSettings(), signals) == 0
    told.join()


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


def test_what_a_second_signal_abandons_is_counted_before_the_status_is_given():
    """The drain that it cuts short takes a moment to end, and says only then what it has lost."""
    cut_short, moment = threading.Event(), threading.Event()

    def stop():
        assert cut_short.wait(20)
        moment.wait(0.05)
        server.abandoned_requests = 2

    server = SimpleNamespace(
        stop=stop, stop_now=cut_short.set, pending_requests=0, abandoned_requests=0, changing=False
    )
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signals.put(number)

    assert _drain(server, ServerSettings(), signals) == 1


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


def test_signals_mean_afterwards_what_they_meant_before():
    """To whoever calls it in a program of their own. Meanwhile SIGHUP ends nothing, though there is no server yet."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    with _signals() as signals:
        for number in reversed(numbers):
            os.kill(os.getpid(), number)
        found = [signals.get(timeout=20) for _ in range(2)]

    assert found == [signal.SIGINT, signal.SIGTERM]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_sandbox_that_refuses_another_scheduling_keeps_no_server_from_starting(monkeypatch):
    """It is about speed alone."""
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.sched_setscheduler", refuse, raising=False)

    prepare()

    assert len(asked) == hasattr(os, "SCHED_BATCH")


def test_what_stays_is_out_of_the_collectors_sight_and_garbage_is_not_kept_with_it():
    """A full collection would look through all modules again and again, while callers wait."""

    class Cycle:
        pass

    garbage = Cycle()
    garbage.itself = garbage
    gone = weakref.ref(garbage)
    gc.disable()
    del garbage
    stays = [[] for _ in range(1000)]
    before = gc.get_freeze_count()
    try:
        settle()

        assert gone() is None
        assert gc.get_freeze_count() - before >= len(stays)
    finally:
        gc.enable()


ALLOCATING = """
import ctypes, threading
from softkin.process import prepare
prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(16)

def allocate():
    together.wait()
    libc.malloc(5000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(16)]
for t in threads:
    t.start()
for t in threads:
    t.join()
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have one heap anyway")
def test_many_threads_share_two_heaps():
    """With a heap each, a server of hundreds of threads fills memory with what none of them uses."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # whose threads would have heaps before

    found = subprocess.run([sys.executable, "-c", ALLOCATING], capture_output=True, text=True, check=True, env=env)

    assert found.stdout.count("<heap nr=") == 2
