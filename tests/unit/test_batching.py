"""Requests are merged, cut, dropped and answered one by one, whoever else is in the batch."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from softkin.errors import CancelledError, DeviceError, ExpiredError, UnavailableError
from softkin.scores import Scores
from softkin.verdicts import GUARANTEES
from standin import StandIn
from ticket_cases import assert_same, rows, ticket

WAIT_SECONDS = 20.0


def busy(batcher, detector):
    """Occupy the only worker with one row; what is submitted now gathers."""
    first = ticket(detector, rows(1))
    batcher.submit(first)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    return first


def test_what_gathers_while_the_device_is_busy_runs_together(make, gate):
    """One run of ten rows, not four runs."""
    detector = StandIn(gate=gate)
    batcher = make()
    first = busy(batcher, detector)
    waiting = [ticket(detector, rows(n, n)) for n in (1, 2, 3, 4)]
    for t in waiting:
        batcher.submit(t)

    gate.set()

    for t in [first, *waiting]:
        assert_same(t.wait().own(), StandIn().score(t.x, alpha=0.05))
    assert detector.batches == [1, 10]


def test_every_request_keeps_its_own_rule_seed_and_neighbors(make, gate):
    """Guarantees, rates and seeds mixed in one batch give what each gives alone; neighbours run by themselves."""
    detector = StandIn(gate=gate)
    batcher = make()
    busy(batcher, detector)
    asked = [
        (n, {"guarantee": g, "alpha": alpha, "smoothing_seed": seed})
        for n, (g, alpha, seed) in enumerate(
            ((g, alpha, seed) for g in GUARANTEES for alpha in (0.1, 0.3) for seed in (None, 0, 7)), start=1
        )
    ]
    waiting = []
    for n, options in asked:
        seed = options["smoothing_seed"]
        waiting.append(ticket(detector, rows(n, n), guarantee=options["guarantee"], alpha=options["alpha"], seed=seed))
        batcher.submit(waiting[-1])
    nearest = ticket(detector, rows(5), num_neighbors=3)
    batcher.submit(nearest)

    gate.set()

    for (_, options), t in zip(asked, waiting, strict=True):
        assert_same(t.wait().own(), StandIn().score(t.x, **options))
    assert_same(nearest.wait().own(), StandIn().score(nearest.x, alpha=0.05, num_neighbors=3))
    assert sum(detector.batches) == 1 + 5 + sum(n for n, _ in asked)
    assert 5 in detector.batches


def test_a_large_request_goes_through_in_slices_and_lets_others_between(make, gate):
    """A request of ten rows with batches of four: the small one behind it runs after its first slice."""
    detector = StandIn(gate=gate)
    batcher = make(max_batch_rows=4)
    busy(batcher, detector)
    large, small = (ticket(detector, x, num_neighbors=2) for x in (rows(10), rows(1, 3)))
    batcher.submit(large)
    batcher.submit(small)

    gate.set()

    assert_same(small.wait().own(), StandIn().score(small.x, alpha=0.05, num_neighbors=2))
    answer = large.wait().own()
    assert_same(answer, StandIn().score(large.x, alpha=0.05, num_neighbors=2))
    assert detector.batches == [1, 4, 1, 4, 2]
    assert answer.stage_seconds["infer"] == 3 * 0.25


def test_a_large_request_has_waited_until_its_first_slice_runs(make, gate):
    """What the others take is no longer a wait in the queue: it would be counted twice."""
    detector = StandIn(gate=gate)
    batcher = make(max_batch_rows=4)
    large = ticket(detector, rows(8))
    begun = time.monotonic()
    batcher.submit(large)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    longest = time.monotonic() - begun

    gate.set()

    assert 0 < large.wait().own().stage_seconds["queue"] <= longest


def test_a_request_that_fits_into_a_batch_is_never_cut(make, gate):
    """Two of three rows make two batches of at most four."""
    detector = StandIn(gate=gate)
    batcher = make(max_batch_rows=4)
    busy(batcher, detector)
    waiting = [ticket(detector, rows(3, n)) for n in range(2)]
    for t in waiting:
        batcher.submit(t)

    gate.set()

    for t in waiting:
        t.wait()
    assert detector.batches == [1, 3, 3]


def test_detectors_do_not_share_batches(make, gate):
    """Each request is scored by its own."""
    a, b = StandIn("a", gate=gate), StandIn("b", gate=gate)
    batcher = make()
    busy(batcher, a)
    waiting = [ticket(d, rows(2)) for d in (a, b, a, b)]
    for t in waiting:
        batcher.submit(t)

    gate.set()

    assert [t.wait().scores.budget.detector for t in waiting] == ["a", "b", "a", "b"]
    assert (a.batches, b.batches) == ([1, 4], [4])


def test_a_cancelled_request_never_reaches_the_device(make, gate):
    """It ends at once, also while the device is stuck, and its mates are answered."""
    detector = StandIn(gate=gate)
    batcher = make()
    busy(batcher, detector)
    gone, kept = ticket(detector, rows(3)), ticket(detector, rows(2))
    batcher.submit(gone)
    batcher.submit(kept)

    batcher.cancel(gone)

    with pytest.raises(CancelledError):
        gone.wait()
    assert batcher.queued_rows == 2
    gate.set()
    kept.wait()
    assert detector.batches == [1, 2]


def test_a_running_batch_stops_when_its_last_request_is_cancelled_and_not_before(make, gate):
    """The device is free without anybody opening the gate."""
    detector = StandIn(gate=gate)
    batcher = make()
    first = busy(batcher, detector)
    mates = [ticket(detector, rows(1)) for _ in range(2)]
    for t in mates:
        batcher.submit(t)
    batcher.cancel(first)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)  # the mates run now

    batcher.cancel(mates[0])
    still = detector.entered.acquire(timeout=0.1)
    last = ticket(detector, rows(1))
    batcher.submit(last)
    batcher.cancel(mates[1])

    assert not still
    assert detector.entered.acquire(timeout=WAIT_SECONDS)  # the last one runs: the batch has stopped
    gate.set()
    assert_same(last.wait().own(), StandIn().score(last.x, alpha=0.05))
    assert detector.batches == [1]


def test_a_request_past_its_deadline_never_reaches_the_device(make, gate):
    """Nobody waits for it."""
    detector = StandIn(gate=gate)
    batcher = make()
    busy(batcher, detector)
    late, kept = ticket(detector, rows(3), deadline=time.monotonic() - 1), ticket(detector, rows(2))
    batcher.submit(late)
    batcher.submit(kept)

    gate.set()

    with pytest.raises(ExpiredError):
        late.wait()
    kept.wait()
    assert detector.batches == [1, 2]


class Poisoned(StandIn):
    """Its device fails on every batch with a row of sum 0."""

    def score_rows(self, x, *, num_neighbors=0, cancellation=None):
        """As the stand-in, but for that row."""
        if (x.reshape(len(x), -1).sum(axis=1) == 0).any():
            raise DeviceError("poison")
        return super().score_rows(x, num_neighbors=num_neighbors, cancellation=cancellation)


def test_only_the_request_on_which_the_device_fails_fails(make, gate):
    """Its mates run again without it."""
    detector = Poisoned(gate=gate)
    batcher = make()
    first = ticket(detector, rows(1, 5))
    batcher.submit(first)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    good = [ticket(detector, rows(2, n)) for n in (1, 2)]
    bad = ticket(detector, np.zeros((2, 2, 3), np.float32))
    for t in (good[0], bad, good[1]):
        batcher.submit(t)

    gate.set()

    with pytest.raises(DeviceError, match="poison"):
        bad.wait()
    for t in good:
        assert_same(t.wait().own(), StandIn().score(t.x, alpha=0.05))
    after = ticket(detector, rows(1, 9))
    batcher.submit(after)
    after.wait()


class Broken(StandIn):
    """Judging fails: a fault of ours."""

    def judge(self, found, rule, x, *, smoothing_seed=None):
        """Always fails."""
        raise ZeroDivisionError


def test_a_fault_of_ours_reaches_the_callers_and_leaves_the_batcher_at_work(make):
    """No request hangs, and the next one is answered."""
    batcher = make()
    faulty, fine = ticket(Broken(), rows(2)), ticket(StandIn(), rows(2))
    batcher.submit(faulty)
    batcher.submit(fine)

    with pytest.raises(ZeroDivisionError):
        faulty.wait()
    assert len(fine.wait()) == 2


def test_closing_answers_what_is_queued_and_refuses_the_rest(make, gate):
    """Drain: nothing accepted is lost."""
    detector = StandIn(gate=gate)
    batcher = make()
    waiting = [busy(batcher, detector), *(ticket(detector, rows(1)) for _ in range(3))]
    for t in waiting[1:]:
        batcher.submit(t)
    closing = threading.Thread(target=batcher.close)
    closing.start()

    gate.set()
    closing.join(WAIT_SECONDS)

    assert not closing.is_alive()
    assert [len(t.wait()) for t in waiting] == [1, 1, 1, 1]
    with pytest.raises(UnavailableError):
        batcher.submit(ticket(detector, rows(1)))


def test_a_batch_waits_for_company_only_when_told_to_and_never_longer_than_full(make):
    """With an hour's delay, the batch runs when it is full."""
    detector = StandIn()
    batcher = make(max_batch_rows=4, delay_seconds=3600)
    waiting = [ticket(detector, rows(2)) for _ in range(2)]
    for t in waiting:
        batcher.submit(t)

    for t in waiting:
        t.wait()

    assert detector.batches == [4]


def test_a_batch_waits_until_it_is_full_to_the_row(make):
    """Three of four rows are not enough; with the fourth it runs."""
    detector = StandIn()
    batcher = make(max_batch_rows=4, delay_seconds=3600)
    waiting = [ticket(detector, rows(n)) for n in (3, 1)]

    batcher.submit(waiting[0])
    early = detector.entered.acquire(timeout=0.05)
    batcher.submit(waiting[1])

    assert not early
    assert [len(t.wait()) for t in waiting] == [3, 1]
    assert detector.batches == [4]


def test_a_batch_that_does_not_get_full_runs_when_its_delay_is_over(make):
    """Not before: who comes meanwhile is in it."""
    batcher, alone = make(delay_seconds=0.1), ticket(StandIn(), rows(1))
    begun = time.monotonic()

    batcher.submit(alone)

    assert len(alone.wait()) == 1
    assert time.monotonic() - begun >= 0.1


def test_at_the_end_nobody_waits_for_company(make):
    """None will come: the batch runs as it is."""
    detector = StandIn()
    batcher = make(delay_seconds=3600)
    alone = ticket(detector, rows(2))
    batcher.submit(alone)
    closing = threading.Thread(target=batcher.close, daemon=True)

    closing.start()
    closing.join(WAIT_SECONDS)

    assert not closing.is_alive()
    assert len(alone.wait()) == 2


def test_everybody_is_told_once_that_a_request_has_ended(make, gate):
    """Answered, cancelled twice, late, failed: the admission gate gets its share back exactly once."""
    detector, ended = StandIn(gate=gate), []
    batcher = make()
    cases = {
        "answered": ticket(detector, rows(1), ended=lambda: ended.append("answered")),
        "cancelled": ticket(detector, rows(1), ended=lambda: ended.append("cancelled")),
        "late": ticket(detector, rows(1), ended=lambda: ended.append("late"), deadline=0.0),
        "failed": ticket(Broken(), rows(1), ended=lambda: ended.append("failed")),
    }
    busy(batcher, detector)
    for t in cases.values():
        batcher.submit(t)
    batcher.cancel(cases["cancelled"])
    batcher.cancel(cases["cancelled"])
    gate.set()
    cases["answered"].wait()
    for name in ("cancelled", "late", "failed"):
        with pytest.raises(Exception):  # noqa: B017, PT011  # each its own, tested above
            cases[name].wait()

    batcher.cancel(cases["answered"])

    assert sorted(ended) == sorted(cases)


def test_rows_are_reported_once_in_batches(make, gate):
    """What metrics and drift see is every row once, together."""
    seen: list[Scores] = []
    runs: list[tuple[int, float]] = []
    detector = StandIn(gate=gate)
    batcher = make(scored=seen.append, ran=lambda n, seconds: runs.append((n, seconds)))
    waiting = [busy(batcher, detector), *(ticket(detector, rows(n, n)) for n in (3, 4))]
    for t in waiting[1:]:
        batcher.submit(t)

    gate.set()
    for t in waiting:
        t.wait()
    batcher.close()

    assert [len(s) for s in seen] == [1, 7]
    found = np.concatenate([s.outlier_score for s in seen])
    expected = np.concatenate([StandIn().score(t.x, alpha=0.05).outlier_score for t in waiting])
    assert found.tolist() == expected.tolist()
    assert [n for n, _ in runs] == [1, 7]


def test_nothing_pending_means_no_guess_and_work_ahead_is_added_up(make, gate):
    """An idle server refuses nobody; with rows ahead, the guess grows with them."""
    detector = StandIn()
    batcher = make(max_batch_rows=4)
    for _ in range(3):
        t = ticket(detector, rows(4))
        batcher.submit(t)
        t.wait()
    idle = batcher.expected_seconds(ticket(detector, rows(1)))
    detector.gate = gate
    while detector.entered.acquire(blocking=False):
        pass
    busy(batcher, detector)
    few = batcher.expected_seconds(ticket(detector, rows(1)))
    for n in range(20):
        batcher.submit(ticket(detector, rows(4, n)))

    many = batcher.expected_seconds(ticket(detector, rows(1)))

    assert idle == 0.0
    assert 0 < few < many
