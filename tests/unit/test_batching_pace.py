"""How long a request would take, guessed from what batches took: the gate refuses those that cannot make it."""

from __future__ import annotations

import threading
import time

import pytest

from softkin import batching
from standin import StandIn
from ticket_cases import rows, ticket

WAIT_SECONDS = 20.0


class Pace:
    """A batch takes 100 seconds, and one more for each row."""

    def add(self, rows, seconds):
        """Nothing is learnt."""

    def predict(self, rows):
        """Seconds of a batch."""
        return 100.0 + rows


@pytest.mark.parametrize(
    ("workers", "own", "expected"),
    [
        (1, 2, 104 + 101),  # behind three rows: a full batch, and one row
        (1, 1, 104),  # exactly a full batch, and no empty one behind it
        (1, 6, 2 * 104 + 101),
        (2, 1, 104 / 2),
    ],
)
def test_a_guess_is_for_all_rows_ahead_and_the_requests_own_in_full_batches(
    make, gate, monkeypatch, workers, own, expected
):
    """Those that run, those that wait, and its own, shared by the workers."""
    monkeypatch.setattr(batching, "BatchTimes", Pace)
    detector, noted = StandIn(), threading.Semaphore(0)
    batcher = make(workers=workers, max_batch_rows=4, ran=lambda rows, seconds: noted.release())
    batcher.submit(ticket(detector, rows(1)))
    assert noted.acquire(timeout=WAIT_SECONDS)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    detector.gate = gate
    for n in (2, 1):
        batcher.submit(ticket(detector, rows(n)))
        if workers == 2 or n == 2:  # with one worker the second waits
            assert detector.entered.acquire(timeout=WAIT_SECONDS)

    assert batcher.expected_seconds(ticket(detector, rows(own))) == expected
    assert batcher.expected_seconds(ticket(detector, rows(own), num_neighbors=1)) == 0  # of those nothing is known


def test_every_number_of_neighbours_has_a_pace_of_its_own(make, gate, monkeypatch):
    """And a batch that was stopped says nothing about it."""
    learnt, noted = [], threading.Semaphore(0)
    monkeypatch.setattr(Pace, "add", lambda pace, rows, seconds: learnt.append(rows))
    monkeypatch.setattr(batching, "BatchTimes", Pace)
    detector = StandIn()
    batcher = make(ran=lambda rows, seconds: noted.release())
    batcher.submit(ticket(detector, rows(2), num_neighbors=1))
    assert noted.acquire(timeout=WAIT_SECONDS)
    detector.gate = gate
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    stopped = ticket(detector, rows(3))
    batcher.submit(stopped)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)

    found = [batcher.expected_seconds(ticket(detector, rows(1), num_neighbors=k)) for k in (0, 1)]
    batcher.cancel(stopped)
    assert noted.acquire(timeout=WAIT_SECONDS)

    assert found == [0, 104]
    assert learnt == [2]


def test_the_seconds_of_a_batch_are_those_between_its_start_and_its_end(make, gate, monkeypatch):
    """What the metric shows, and what guesses learn from: at least as long as the device held it, and no longer."""
    learnt, shown = [], []
    monkeypatch.setattr(Pace, "add", lambda pace, rows, seconds: learnt.append(seconds))
    monkeypatch.setattr(batching, "BatchTimes", Pace)
    detector = StandIn(gate=gate)
    batcher = make(ran=lambda rows, seconds: shown.append(seconds))
    begun = time.monotonic()
    batcher.submit(ticket(detector, rows(1)))
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    entered = time.monotonic()

    held = time.monotonic() - entered
    gate.set()
    batcher.close()

    assert learnt == shown
    assert len(shown) == 1
    assert held <= shown[0] <= time.monotonic() - begun


def test_a_request_that_ended_before_it_came_is_not_computed(make):
    """Its caller left while its rows were read."""
    detector = StandIn()
    batcher = make()
    gone = ticket(detector, rows(2))
    batcher.cancel(gone)

    batcher.submit(gone)
    queued = batcher.queued_rows
    batcher.close()

    assert queued == 0
    assert detector.batches == []
