"""The threads that calls run in."""

from __future__ import annotations

import threading

from softkin.interceptors import CountingPool


def test_where_no_further_thread_can_be_started_calls_wait_for_those_that_are_there(monkeypatch):
    """Raised in gRPC's own thread, the failure would end the thread that takes all calls."""
    pool = CountingPool(2, "test")
    pool.start_all()

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    held = threading.Event()
    calls = [pool.submit(held.wait, 30) for _ in range(20)]
    held.set()

    assert [call.result(timeout=30) for call in calls] == [None] * 20
    pool.shutdown()
