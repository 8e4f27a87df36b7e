"""A worker lets arrive what is on its way, and waits for nobody who is not."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from softkin import batching
from softkin.errors import ExpiredError
from standin import StandIn
from ticket_cases import rows, ticket

WAIT_SECONDS = 20.0


class Clock:
    """Time that passes only while a worker gathers; `meanwhile` is what happens then."""

    def __init__(self):
        self.now, self.waits = 1000.0, 0
        self.meanwhile = lambda: None

    def sleep(self, seconds):
        """By a worker."""
        self.now += seconds
        self.waits += 1
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch):
    """That of the batcher; a batch gathers for four waits at most."""
    clock = Clock()
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    monkeypatch.setattr(batching, "GATHER_SECONDS", 0.25)
    monkeypatch.setattr(batching, "LONGEST_GATHER_SECONDS", 1.0)
    return clock


def followed_by(batcher, tickets):
    """Submits one of them every time it is called, while there are any."""
    left = list(tickets)
    return lambda: left and batcher.submit(left.pop(0))


@pytest.mark.parametrize(
    ("callers", "others", "waits", "batches"),
    [
        (0, 0, 0, [1]),
        (1, 0, 0, [1]),  # that one is here
        (3, 0, 1, [1]),  # nobody came while there was time
        (3, 2, 2, [3]),  # all are here
        (4, 2, 3, [3]),
        (99, 9, 4, [5]),  # and more would come: no longer than so
    ],
)
def test_it_waits_for_callers_who_are_here_while_they_come(make, clock, callers, others, waits, batches):
    """A batch begins when all have come, when no more come, or after the longest wait."""
    ran = threading.Semaphore(0)
    batcher, detector = make(ran=lambda rows, seconds: ran.release()), StandIn()
    batcher.callers = lambda: callers
    all_of_them = [ticket(detector, rows(1, n)) for n in range(1 + others)]
    clock.meanwhile = followed_by(batcher, all_of_them[1 : 1 + waits])

    batcher.submit(all_of_them[0])
    assert ran.acquire(timeout=WAIT_SECONDS)

    assert clock.waits == waits
    assert detector.batches == batches


def test_after_a_batch_of_several_it_waits_once_whoever_calls(make, clock, gate):
    """Streams do not show among the callers, and send one message after the other."""
    ran = threading.Semaphore(0)
    batcher, detector = make(ran=lambda rows, seconds: ran.release()), StandIn(gate=gate)
    tickets = [ticket(detector, rows(1, n)) for n in range(5)]
    batcher.submit(tickets[0])
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    for t in tickets[1:3]:
        batcher.submit(t)
    gate.set()
    assert all(ran.acquire(timeout=WAIT_SECONDS) for _ in range(2))
    before = clock.waits

    for t in tickets[3:]:
        batcher.submit(t)
        assert ran.acquire(timeout=WAIT_SECONDS)

    assert before == 0
    assert detector.batches == [1, 2, 1, 1]
    assert clock.waits == 1  # before the third batch, and not before the fourth


def test_a_full_batch_waits_for_nobody(make, clock):
    """Who comes later has no room in it."""
    batcher, detector = make(max_batch_rows=2), StandIn()
    batcher.callers = lambda: 9
    full = ticket(detector, rows(2))

    batcher.submit(full)
    full.wait()

    assert clock.waits == 0


def test_the_end_is_waited_for_by_nobody(make, clock):
    """Nothing comes any more."""
    batcher, detector = make(), StandIn()
    batcher.callers = lambda: 9
    first, second = (ticket(detector, rows(1, n)) for n in range(2))
    closing = threading.Thread(target=batcher.close)

    def meanwhile():
        if clock.waits == 1:
            batcher.submit(second)
            closing.start()
            while not batcher._closed:
                pass

    clock.meanwhile = meanwhile
    batcher.submit(first)
    answers = first.wait(), second.wait()
    closing.join(WAIT_SECONDS)

    assert [len(a) for a in answers] == [1, 1]
    assert clock.waits == 1
    assert detector.batches == [2]


def test_a_request_that_expires_while_others_gather_is_not_computed(make, clock):
    """Nobody waits for it any more; the other is computed without it."""
    batcher, detector = make(), StandIn()
    batcher.callers = lambda: 2
    late, fine = ticket(detector, rows(1), deadline=clock.now + 0.25), ticket(detector, rows(2))
    clock.meanwhile = followed_by(batcher, [fine])

    batcher.submit(late)

    with pytest.raises(ExpiredError):
        late.wait()
    assert len(fine.wait()) == 2
    assert detector.batches == [2]


def test_no_more_batches_run_than_there_are_workers_though_one_began_while_another_gathered(make, clock, gate):
    """What it gathered for has gone, a caller computes by itself, and what comes then waits for that."""
    batcher, busy, detector, begun = make(), StandIn("busy", gate=gate), StandIn(), threading.Event()
    batcher.callers = lambda: 2
    gone, alone, last = ticket(detector, rows(1)), ticket(busy, rows(2)), ticket(detector, rows(3))
    calling = threading.Thread(target=batcher.score, args=(alone,))

    def meanwhile():
        clock.meanwhile = lambda: None
        batcher.callers = lambda: 1
        batcher.cancel(gone)
        calling.start()
        assert busy.entered.acquire(timeout=WAIT_SECONDS)
        batcher.submit(last)
        begun.set()

    clock.meanwhile = meanwhile
    batcher.submit(gone)
    assert begun.wait(WAIT_SECONDS)
    second = detector.entered.acquire(timeout=0.05)
    gate.set()
    calling.join(WAIT_SECONDS)

    assert not second
    assert len(last.wait()) == 3
    assert (busy.batches, detector.batches) == ([2], [3])


def test_while_all_workers_places_are_taken_nobody_gathers(make, clock, gate):
    """A worker that asked again and again whether it may begin would take the time of the one that computes."""
    batcher, busy, waiting = make(), StandIn("busy", gate=gate), StandIn()
    batcher.callers = lambda: 1
    calling = threading.Thread(target=batcher.score, args=(ticket(busy, rows(1)),))
    calling.start()
    assert busy.entered.acquire(timeout=WAIT_SECONDS)
    batcher.callers = lambda: 9
    last = ticket(waiting, rows(1))
    batcher.submit(last)
    early = waiting.entered.acquire(timeout=0.05), clock.waits
    gate.set()
    calling.join(WAIT_SECONDS)

    assert early == (False, 0)
    assert len(last.wait()) == 1
