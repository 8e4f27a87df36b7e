"""What happens at the same time in two threads, at the moments where it matters."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref

import pytest

from softkin.errors import DeviceError, ExpiredError, UnavailableError
from standin import StandIn
from ticket_cases import assert_same, rows, ticket

WAIT_SECONDS = 20.0


@pytest.fixture
def threads_take_turns():
    """The interpreter changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def assert_ends(batcher):
    """Nothing runs any more that nobody waits for."""
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


def takes_more(batcher, detector):
    """Whether the batcher is open."""
    one = ticket(detector, rows(1))
    try:
        batcher.submit(one)
    except UnavailableError:
        return False
    batcher.cancel(one)
    return True


def closing_behind_a_caller(batcher, detector):
    """A ticket of two rows behind a caller who computes by himself, his thread, and one that is closing the batcher."""
    queued = ticket(detector, rows(2))
    calling = threading.Thread(target=batcher.score, args=(ticket(detector, rows(1)),))
    calling.start()
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    batcher.submit(queued)
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    while takes_more(batcher, detector):
        pass
    return queued, calling, closing


def test_closing_does_not_wait_for_what_is_cancelled_meanwhile(make, gate):
    """A worker waits for a free place, to run what is queued; then nothing is queued any more, and it must end."""
    detector = StandIn(gate=gate)
    batcher = make()
    queued, calling, closing = closing_behind_a_caller(batcher, detector)

    batcher.cancel(queued)
    gate.set()

    calling.join(WAIT_SECONDS)
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


def test_closing_answers_what_waits_for_a_caller_who_computes_by_itself(make, gate):
    """The worker has no place to run it in yet: it must not end before it has run what was accepted."""
    detector = StandIn(gate=gate)
    queued, calling, closing = closing_behind_a_caller(make(), detector)

    closing.join(0.05)
    early = not closing.is_alive()
    gate.set()
    calling.join(WAIT_SECONDS)
    answered = queued.latch.acquire(timeout=WAIT_SECONDS)

    assert not early
    assert answered
    assert detector.batches == [1, 2]


@pytest.mark.parametrize("what", ["submit", "score", "cancel", "expected_seconds"])
def test_one_thread_at_a_time_is_at_the_queue(make, what):
    """Two that looked at once would both take the last place, or one ticket for two batches."""
    batcher, detector = make(), StandIn()
    one = ticket(detector, rows(1))
    passing = threading.Thread(target=getattr(batcher, what), args=(one,), daemon=True)

    with batcher._changed:
        passing.start()
        passing.join(0.05)
        found = passing.is_alive(), batcher.queued_rows, detector.batches, one.done
    passing.join(WAIT_SECONDS)

    assert found == (True, 0, [], False)
    assert not passing.is_alive()


@pytest.mark.parametrize("failure", [None, DeviceError("out of memory")])
def test_a_request_ends_while_nobody_else_is_at_the_queue(make, gate, failure):
    """Cancelled at that moment it would end twice, and give its share of the gate back twice."""
    batcher, detector = make(), StandIn(gate=gate, failure=failure)
    one = ticket(detector, rows(1))
    batcher.submit(one)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)

    with batcher._changed:
        gate.set()
        time.sleep(0.05)
        early = one.done

    assert not early
    assert one.latch.acquire(timeout=WAIT_SECONDS)
    assert one.error is failure


def test_slices_that_are_ready_together_are_handed_in_one_after_the_other(make, gate):
    """Both would find the answer complete, and the second nothing left to make it of."""
    batcher, detector = make(workers=2, max_batch_rows=2), StandIn(gate=gate)
    cut = ticket(detector, rows(6))
    batcher.submit(cut)
    assert all(detector.entered.acquire(timeout=WAIT_SECONDS) for _ in range(2))

    with batcher._changed:
        gate.set()
        while len(detector.batches) < 2:
            time.sleep(0.001)
        time.sleep(0.05)
        handed_in = list(cut.parts)

    assert handed_in == []
    assert_same(cut.wait().own(), StandIn().score(cut.x, alpha=0.05))


def test_the_pace_is_read_while_it_is_measured(make, gate, threads_take_turns):
    """The first batch of its kind ends while another caller asks how long such a request would take."""
    batcher, busy, detector = make(workers=2), StandIn("busy", gate=gate), StandIn()
    batcher.submit(ticket(busy, rows(1)))
    assert busy.entered.acquire(timeout=WAIT_SECONDS)
    asked, faults, ended = [ticket(detector, rows(1))], [], threading.Event()

    def ask():
        while not ended.is_set():
            try:
                batcher.expected_seconds(asked[-1])
            except ArithmeticError as e:
                faults.append(e)

    asking = threading.Thread(target=ask)
    asking.start()
    for k in range(1000):  # every number of neighbours has a pace of its own
        asked.append(ticket(detector, rows(1), num_neighbors=k))
        batcher.submit(asked[-1])
        asked[-1].wait()
    ended.set()
    asking.join()

    assert not faults


class FailsOnOneRow(StandIn):
    """Its device fails on batches of a single row, once it is told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.failing = threading.Event()

    def score_rows(self, x, **options):
        """As the stand-in, but for those."""
        if len(x) > 1:
            return super().score_rows(x, **options)
        assert self.failing.wait(WAIT_SECONDS)
        raise DeviceError("out of memory")


def test_rows_of_a_part_between_two_requests_are_told_once(make, gate):
    """Those around it are not judged together with it: its rows come with the rest of their own request."""
    seen = []
    detector, other = StandIn(gate=gate), StandIn("other", gate=threading.Event())
    batcher = make(max_batch_rows=8, scored=lambda scores: seen.append(len(scores)))
    first = ticket(other, rows(1))
    batcher.submit(first)
    assert other.entered.acquire(timeout=WAIT_SECONDS)
    large, before, behind = (ticket(detector, rows(n, n)) for n in (10, 1, 3))
    batcher.submit(large)
    batcher.submit(before)
    batcher.cancel(first)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    batcher.submit(behind)

    gate.set()
    for t in (large, before, behind):
        assert_same(t.wait().own(), StandIn().score(t.x, alpha=0.05))
    batcher.close()

    assert detector.batches == [8, 6]
    assert sorted(seen) == [1, 3, 10]


def test_what_else_runs_of_a_request_stops_when_a_part_of_it_fails(make, gate):
    """Two workers compute a slice each: nobody wants the one when the device has failed on the other."""
    detector = FailsOnOneRow(gate=gate)
    batcher = make(workers=2, max_batch_rows=4)
    cut = ticket(detector, rows(5))
    batcher.submit(cut)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)

    detector.failing.set()

    with pytest.raises(DeviceError):
        cut.wait()
    assert_ends(batcher)
    assert detector.rows_scored == 0


def test_what_runs_of_a_request_stops_at_its_deadline_whoever_notices_first(make, gate):
    """A worker drops what is queued of it before gRPC tells of the caller's end: the slice that runs must stop too."""
    detector, other = StandIn(gate=gate), StandIn("other", gate=threading.Event())
    batcher = make(workers=2, max_batch_rows=4)
    batcher.submit(ticket(other, rows(1)))
    assert other.entered.acquire(timeout=WAIT_SECONDS)
    cut = ticket(detector, rows(8))
    batcher.submit(cut)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    cut.deadline = 0.0

    other.gate.set()

    with pytest.raises(ExpiredError):
        cut.wait()
    batcher.cancel(cut)
    assert_ends(batcher)
    assert detector.rows_scored == 0


def test_a_failure_that_nobody_takes_keeps_nothing(make):
    """Neither the request nor its detector, also without the garbage collector: streams end before all is answered."""
    detector = FailsOnOneRow()
    detector.failing.set()
    batcher, gone = make(), ticket(detector, rows(1))
    batcher.submit(gone)
    while not gone.done:
        time.sleep(0.001)
    held = weakref.ref(detector)
    gc.disable()
    try:
        batcher.cancel(gone)
        del gone, detector
        batcher.close()

        assert held() is None
    finally:
        gc.enable()


def test_a_failure_that_was_handled_keeps_nothing(make):
    """The error's traceback holds the frame that waited, and so the request: neither may hold the error."""
    detector = FailsOnOneRow()
    detector.failing.set()
    batcher, failed = make(), ticket(detector, rows(1))
    held = weakref.ref(detector)
    gc.disable()
    try:
        batcher.submit(failed)
        with contextlib.suppress(Exception):
            failed.wait()
        batcher.close()
        assert failed.error is None
        del failed, detector

        assert held() is None
    finally:
        gc.enable()


def test_an_idle_worker_keeps_nothing_of_the_batch_before(make):
    """A version that is served no longer gives its memory back at once, not with the next request."""
    detector = StandIn()
    batcher, over = make(), ticket(detector, rows(1))
    held = weakref.ref(detector)
    gc.disable()
    try:
        batcher.submit(over)
        over.wait()
        del over, detector
        deadline = time.monotonic() + WAIT_SECONDS
        while held() is not None and time.monotonic() < deadline:
            time.sleep(0.001)

        assert held() is None
    finally:
        gc.enable()


def test_who_is_late_is_told_though_a_caller_computes_by_itself(make, gate):
    """An idle worker drops what nobody waits for; it is not kept until the device is free."""
    detector = StandIn(gate=gate)
    batcher = make()
    calling = threading.Thread(target=batcher.score, args=(ticket(detector, rows(1)),))
    calling.start()
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    late = ticket(detector, rows(1), deadline=time.monotonic() - 1)

    batcher.submit(late)
    told = late.latch.acquire(timeout=WAIT_SECONDS)
    gate.set()
    calling.join(WAIT_SECONDS)

    assert told
    assert isinstance(late.error, ExpiredError)
    assert detector.batches == [1]
