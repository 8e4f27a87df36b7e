"""A caller who finds the device idle computes by himself; callers who meet are merged."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from softkin.batching import Batcher
from softkin.errors import CancelledError, UnavailableError
from standin import StandIn
from ticket_cases import assert_same, rows, ticket

WAIT_SECONDS = 20.0


class Watched(StandIn):
    """Notes who computes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = []

    def score_rows(self, x, **options):
        """As the stand-in."""
        self.threads.append(threading.current_thread())
        return super().score_rows(x, **options)


def test_one_caller_alone_changes_no_thread(make):
    """The batch runs in the caller's own; the numbers are the same."""
    batcher, detector = make(max_batch_rows=8), Watched()
    answers = [batcher.score(ticket(detector, rows(n))) for n in (1, 8, 9)]

    for found, n in zip(answers, (1, 8, 9), strict=True):
        assert_same(found.own(), StandIn().score(rows(n), alpha=0.05))
    mine, others = detector.threads[:2], detector.threads[2:]
    assert {t is threading.current_thread() for t in mine} == {True}
    assert {t is threading.current_thread() for t in others} == {False}  # larger than a batch: in slices


def by_itself(batcher, detector):
    """Whether a caller now computes in its own thread."""
    batcher.score(ticket(detector, rows(1)))
    return detector.threads[-1] is threading.current_thread()


@pytest.mark.parametrize(("callers", "expected"), [(0, True), (1, True), (2, False)])
def test_a_caller_beside_whom_others_are_on_their_way_does_not_compute_by_itself(make, callers, expected):
    """They would each run alone, one after the other, where they could run together."""
    batcher, detector = make(), Watched()
    batcher.callers = lambda: callers

    assert by_itself(batcher, detector) is expected


def test_where_batches_wait_for_company_nobody_computes_by_itself(make):
    """The delay was asked for."""
    assert not by_itself(make(delay_seconds=1e-3), Watched())


def test_after_a_batch_of_several_nobody_computes_by_itself(make, gate):
    """More will come: streams do not show among the callers."""
    over, detector = threading.Semaphore(0), Watched(gate=gate)
    batcher = make(ran=lambda rows, seconds: over.release())
    busy = [ticket(detector, rows(1)) for _ in range(3)]
    batcher.submit(busy[0])
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    for t in busy[1:]:
        batcher.submit(t)
    gate.set()
    assert all(over.acquire(timeout=WAIT_SECONDS) for _ in range(2))

    assert not by_itself(batcher, detector)
    assert detector.batches == [1, 2, 1]


def test_beside_a_batch_that_runs_a_caller_computes_by_itself_while_a_worker_is_free(make, gate):
    """As many batches as there are workers, whoever runs them."""
    batcher, other, detector = make(workers=2), StandIn("other", gate=gate), Watched()
    batcher.submit(ticket(other, rows(1)))
    assert other.entered.acquire(timeout=WAIT_SECONDS)

    assert by_itself(batcher, detector)


def test_a_caller_joins_those_who_wait_already(make, monkeypatch):
    """A worker lets them gather: whoever comes meanwhile is in their batch."""
    gathering, go_on = threading.Event(), threading.Event()

    def gather(batcher):
        gathering.set()
        go_on.wait(WAIT_SECONDS)

    monkeypatch.setattr(Batcher, "_gather", gather)
    batcher, detector = make(), StandIn()
    first = ticket(detector, rows(2))
    batcher.submit(first)
    assert gathering.wait(WAIT_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(batcher.score, ticket(detector, rows(1)))
        deadline = time.monotonic() + WAIT_SECONDS
        while batcher.queued_rows == 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        queued = batcher.queued_rows
        go_on.set()

        assert queued == 3
        assert [len(first.wait()), len(second.result(timeout=WAIT_SECONDS))] == [2, 1]
    assert detector.batches == [3]


def test_a_caller_who_comes_after_the_end_is_told(make):
    """Nothing runs any more, in its own thread neither."""
    batcher, detector = make(), StandIn()
    batcher.close()

    with pytest.raises(UnavailableError, match="the server is stopping"):
        batcher.score(ticket(detector, rows(1)))

    assert detector.batches == []


def test_callers_who_meet_are_merged_and_none_is_forgotten(make, gate):
    """The first computes by itself; those who come meanwhile run together, as many batches as workers at a time."""
    detector = StandIn(gate=gate)
    batcher = make(workers=1)
    batcher.score(ticket(StandIn(), rows(1)))  # over: it leaves one place, its own
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(batcher.score, ticket(detector, rows(1)))
        assert detector.entered.acquire(timeout=WAIT_SECONDS)
        others = [pool.submit(batcher.score, ticket(detector, rows(2, n))) for n in range(4)]
        deadline = time.monotonic() + WAIT_SECONDS
        while batcher.queued_rows < 8 and time.monotonic() < deadline:
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
