"""A caller who finds the device idle computes by himself; callers who meet are merged."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from softkin.errors import CancelledError
from standin import StandIn
from ticket_cases import assert_same, rows, ticket

WAIT_SECONDS = 20.0


def test_one_caller_alone_changes_no_thread(make):
    """The batch runs in the caller's own; the numbers are the same."""
    seen = []

    class Watched(StandIn):
        """Notes who computes."""

        def score_rows(self, x, *, num_neighbors=0, cancellation=None):
            """As the stand-in."""
            seen.append(threading.current_thread())
            return super().score_rows(x, num_neighbors=num_neighbors, cancellation=cancellation)

    batcher, detector = make(max_batch_rows=8), Watched()
    answers = [batcher.score(ticket(detector, rows(n))) for n in (1, 8, 9)]

    for found, n in zip(answers, (1, 8, 9), strict=True):
        assert_same(found.own(), StandIn().score(rows(n), alpha=0.05))
    mine, others = seen[:2], seen[2:]
    assert {t is threading.current_thread() for t in mine} == {True}
    assert {t is threading.current_thread() for t in others} == {False}  # larger than a batch: in slices


def test_callers_who_meet_are_merged_and_none_is_forgotten(make, gate):
    """The first computes by itself; those who come meanwhile run together, as many batches as workers at a time."""
    detector = StandIn(gate=gate)
    batcher = make(workers=1)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(batcher.score, ticket(detector, rows(1)))
        assert detector.entered.acquire(timeout=WAIT_SECONDS)
        others = [pool.submit(batcher.score, ticket(detector, rows(2, n))) for n in range(4)]
        while batcher.queued_rows < 8:
            time.sleep(0.001)
        second = detector.entered.acquire(timeout=0.1)

        gate.set()

        assert not second
        assert [len(f.result(timeout=WAIT_SECONDS)) for f in [first, *others]] == [1, 2, 2, 2, 2]
    assert detector.batches == [1, 8]


def test_a_caller_who_leaves_while_computing_alone_stops_the_device(make, gate):
    """Cancelled before it began, it does not begin."""
    detector = StandIn(gate=gate)
    batcher = make()
    gone = ticket(detector, rows(1))
    batcher.cancel(gone)
    with pytest.raises(CancelledError):
        batcher.score(gone)
    leaving = ticket(detector, rows(1))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(batcher.score, leaving)
        assert detector.entered.acquire(timeout=WAIT_SECONDS)
        batcher.cancel(leaving)
        with pytest.raises(CancelledError):
            call.result(timeout=WAIT_SECONDS)
    assert detector.batches == []
