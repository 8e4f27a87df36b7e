"""The pool whose last idle thread gets the next call."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from softkin.lifo_pool import LifoPool


@pytest.fixture
def pool():
    """Of four threads at most; none is there yet."""
    pool = LifoPool(4, "test")
    yield pool
    pool.shutdown()


def wait_until_idle(pool, threads):
    """Threads become idle a moment after their call has ended."""
    patience = threading.Event()
    for _ in range(2000):
        if len(pool._idle) == threads:
            return
        patience.wait(0.01)
    raise AssertionError(f"{len(pool._idle)} threads are idle, not {threads}")


def test_one_call_after_the_other_runs_in_one_thread(pool):
    """Of four that are idle."""
    pool.start(4)
    found = set()
    for _ in range(20):
        found.add(pool.submit(threading.get_ident).result(timeout=20))
        wait_until_idle(pool, 4)

    assert len(found) == 1


def test_the_thread_that_became_idle_last_is_the_next(pool):
    """Whichever it is."""
    pool.start(2)
    holds = [threading.Event(), threading.Event()]

    def held(hold):
        hold.wait(20)
        return threading.get_ident()

    calls = [pool.submit(held, hold) for hold in holds]
    for first, last in ((0, 1), (1, 0)):
        for n, i in enumerate((first, last)):
            holds[i].set()
            calls[i].result(timeout=20)
            wait_until_idle(pool, n + 1)
        assert pool.submit(threading.get_ident).result(timeout=20) == calls[last].result()
        wait_until_idle(pool, 2)
        holds = [threading.Event(), threading.Event()]
        calls = [pool.submit(held, hold) for hold in holds]
    for hold in holds:
        hold.set()


def test_threads_are_started_as_they_are_needed_and_further_calls_wait_in_order(pool):
    """Four run, two wait; a thread that is there is taken before one is started."""
    holds, order = [threading.Event() for _ in range(4)], []
    first = [pool.submit(hold.wait, 20) for hold in holds]
    later = [pool.submit(order.append, i) for i in range(2)]
    threads = len(pool._threads)
    holds[0].set()  # its thread does all that waits

    assert [call.result(timeout=20) for call in later] == [None] * 2
    assert (threads, order) == (4, [0, 1])
    for hold in holds:
        hold.set()
    assert [call.result(timeout=20) for call in first] == [True] * 4
    wait_until_idle(pool, 4)
    pool.submit(int).result(timeout=20)
    assert len(pool._threads) == 4


def test_every_thread_begins_before_start_returns(pool):
    """All of those that were asked for, in threads of their own."""
    begun = []

    pool.start(3, lambda: begun.append(threading.get_ident()))

    assert len(set(begun)) == 3
    assert threading.get_ident() not in begun


def test_a_start_that_fails_leaves_no_thread(pool, monkeypatch):
    """Those that were started first end, and the pool is as it was."""
    start_thread, started = threading.Thread.start, []

    def start(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start_thread(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.start(3)
    monkeypatch.undo()

    for thread in started:
        thread.join(20)
    assert not any(thread.is_alive() for thread in started)
    assert pool.submit(int, "5").result(timeout=20) == 5


def test_what_a_call_raises_is_in_its_future_and_the_thread_goes_on(pool):
    """Also what ends a program elsewhere."""
    pool.start(1)

    def leave():
        raise SystemExit("no")

    with pytest.raises(SystemExit, match="no"):
        pool.submit(leave).result(timeout=20)
    wait_until_idle(pool, 1)
    assert pool.submit(divmod, 7, 4).result(timeout=20) == (1, 3)


def test_an_idle_thread_holds_nothing_of_its_last_call(pool):
    """Requests are large."""

    class Request:
        pass

    request = Request()
    found = weakref.ref(request)
    pool.submit(id, request).result(timeout=20)
    wait_until_idle(pool, 1)
    del request
    gc.collect()

    assert found() is None


def test_shutdown_ends_what_was_submitted_and_takes_no_more():
    """Every thread is gone after it."""
    pool, hold = LifoPool(1, "test"), threading.Event()
    calls = [pool.submit(hold.wait, 20), pool.submit(int, "7")]
    ending = threading.Thread(target=pool.shutdown)
    ending.start()
    ending.join(0.1)
    waited = ending.is_alive()
    hold.set()
    ending.join(20)

    assert waited
    assert not ending.is_alive()
    assert [call.result(timeout=20) for call in calls] == [True, 7]
    assert not any(thread.is_alive() for thread in pool._threads)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_shutdown_may_cancel_what_waits():
    """What runs goes on."""
    pool, hold = LifoPool(1, "test"), threading.Event()
    running, waiting = pool.submit(hold.wait, 20), pool.submit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    hold.set()

    assert running.result(timeout=20)
    with pytest.raises(CancelledError):
        waiting.result(timeout=20)


def test_a_call_for_which_no_thread_can_be_started_is_refused(pool, monkeypatch):
    """Where there is none at all: it would wait for ever."""

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(int)

    monkeypatch.undo()
    assert pool.submit(int, "3").result(timeout=20) == 3
