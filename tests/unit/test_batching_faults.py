"""Faults of ours, and memory that runs out, wherever the batcher is: nobody waits for ever, and it goes on."""

from __future__ import annotations

import threading
import time

import pytest

from softkin import batching
from softkin.batch_times import BatchTimes
from softkin.errors import DeviceError, ExpiredError
from standin import StandIn
from ticket_cases import assert_same, rows, ticket

WAIT_SECONDS = 20.0


def assert_ends(batcher):
    """Nothing runs any more that nobody waits for."""
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


class FailsOnce:
    """A function that finds no memory when it is called first."""

    def __init__(self, function):
        self.function, self.failed = function, False

    def __call__(self, *arguments):
        """As the function."""
        if not self.failed:
            self.failed = True
            raise MemoryError("none left")
        return self.function(*arguments)


def assert_goes_on(batcher, caplog):
    """Who comes later is answered, and the log says what it was."""
    for _ in range(2):
        later = ticket(StandIn(), rows(2))
        batcher.submit(later)
        assert later.latch.acquire(timeout=WAIT_SECONDS)
    assert_ends(batcher)
    [record] = caplog.records
    assert record.getMessage() == "event=batch_failed"
    assert "MemoryError: none left" in caplog.text


@pytest.mark.parametrize("where", ["ran", "pace"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_fault_as_a_batch_ends_takes_no_worker_and_no_answer(make, monkeypatch, caplog, where, alone):
    """All that is queued would wait for a worker for ever, and health would say that the server serves."""
    ran = FailsOnce(lambda rows, seconds: None)
    if where == "pace":
        monkeypatch.setattr(batching, "BatchTimes", FailsOnce(BatchTimes))
    batcher = make(**({"ran": ran} if where == "ran" else {}))
    one = ticket(StandIn(), rows(2))

    if alone:
        share = batcher.score(one)
    else:
        batcher.submit(one)
        share = one.wait()

    assert len(share) == 2
    assert_goes_on(batcher, caplog)


def test_a_fault_while_a_failure_is_handled_takes_no_worker_and_no_place(make, monkeypatch, caplog):
    """And those in the batch are told, who would wait for ever, too."""

    class Failing(StandIn):
        def score_rows(self, x, **options):
            monkeypatch.setattr(batching, "Batch", FailsOnce(batching.Batch))
            raise DeviceError("fails")

    batcher, detector = make(max_batch_rows=2, delay_seconds=1.0), Failing()
    both = [ticket(detector, rows(1)) for _ in range(2)]

    for one in both:
        batcher.submit(one)

    for one in both:
        assert one.latch.acquire(timeout=WAIT_SECONDS)
        assert isinstance(one.error, MemoryError)
    assert_goes_on(batcher, caplog)


def test_a_fault_as_a_batch_is_taken_takes_no_worker_and_no_request(make, monkeypatch, caplog, gate):
    """Nothing has been taken yet: it is all there for the next try."""
    monkeypatch.setattr(batching, "AFTER_FAULT_SECONDS", 0.0)
    batcher, busy, detector = make(max_batch_rows=4), StandIn("busy", gate=gate), StandIn()
    batcher.submit(ticket(busy, rows(1)))
    assert busy.entered.acquire(timeout=WAIT_SECONDS)
    waiting = [ticket(detector, rows(n, n)) for n in (1, 7, 2)]
    for one in waiting:
        batcher.submit(one)

    monkeypatch.setattr(batching, "Batch", FailsOnce(batching.Batch))
    gate.set()

    for one in waiting:
        assert one.latch.acquire(timeout=WAIT_SECONDS)
        assert_same(one.share.own(), StandIn().score(one.x, alpha=0.05))
    assert batcher.queued_rows == 0
    assert_goes_on(batcher, caplog)


@pytest.mark.parametrize("failures", [1, 9])
def test_a_fault_while_a_request_in_slices_is_judged_leaves_nobody_waiting(make, gate, failures):
    """Its last slice shares a batch, and is run again alone: with the others it is all there still."""

    class Failing(StandIn):
        failed = 0

        def judge(self, found, rule, x, **options):
            if len(x) == 7 and self.failed < failures:
                self.failed += 1
                raise MemoryError("none left")
            return super().judge(found, rule, x, **options)

    batcher, busy, detector = make(max_batch_rows=4), StandIn("busy", gate=gate), Failing()
    batcher.submit(ticket(busy, rows(1)))
    assert busy.entered.acquire(timeout=WAIT_SECONDS)
    cut, other = ticket(detector, rows(7)), ticket(detector, rows(1, 9))
    batcher.submit(cut)
    batcher.submit(other)
    gate.set()

    for one in (cut, other):
        assert one.latch.acquire(timeout=WAIT_SECONDS)
    assert_same(other.share.own(), StandIn().score(other.x, alpha=0.05))
    if failures == 1:
        assert_same(cut.share.own(), StandIn().score(cut.x, alpha=0.05))
    else:
        assert isinstance(cut.error, MemoryError)


@pytest.mark.parametrize("late", [False, True])
def test_a_fault_as_a_request_leaves_keeps_no_answer_from_anybody(make, monkeypatch, gate, late):
    """Those that were answered before it in the same batch have not been woken yet."""
    monkeypatch.setattr(batching, "AFTER_FAULT_SECONDS", 0.0)
    batcher, busy, detector = make(), StandIn("busy", gate=gate), StandIn()
    batcher.submit(ticket(busy, rows(1)))
    assert busy.entered.acquire(timeout=WAIT_SECONDS)
    failing = ticket(
        detector, rows(1, 5), ended=FailsOnce(lambda: None), **({"deadline": time.monotonic()} if late else {})
    )
    others = [ticket(detector, rows(1, n)) for n in range(2)]
    for one in (others[0], failing, others[1]):
        batcher.submit(one)
    gate.set()

    for one in (*others, failing):
        assert one.latch.acquire(timeout=WAIT_SECONDS)
    for one in others:
        assert_same(one.share.own(), StandIn().score(one.x, alpha=0.05))
    if late:
        assert isinstance(failing.error, ExpiredError)
    else:
        assert len(failing.share) == 1
