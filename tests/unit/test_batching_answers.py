"""Who gets which answer, and who is told of it, when a request ends early or the device fails."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from softkin.errors import CancelledError, DeviceError
from standin import StandIn
from ticket_cases import ARRAYS, assert_same, rows, ticket

WAIT_SECONDS = 20.0


def together(batcher, *tickets):
    """Submit them so that one batch takes all: the only worker is busy meanwhile."""
    other = StandIn("other", gate=threading.Event())
    first = ticket(other, rows(1))
    batcher.submit(first)
    assert other.entered.acquire(timeout=WAIT_SECONDS)
    for t in tickets:
        batcher.submit(t)
    batcher.cancel(first)


def test_slices_are_joined_in_the_order_of_their_rows(make, gate):
    """Though the later one is computed first."""

    class SlowAtFirst(StandIn):
        """Holds the slice that has the first row."""

        def score_rows(self, x, **options):
            """As the stand-in."""
            if (x[0] == rows(1)[0]).all():
                assert gate.wait(WAIT_SECONDS)
            return super().score_rows(x, **options)

    ran = threading.Semaphore(0)
    batcher, detector = make(workers=2, max_batch_rows=4, ran=lambda rows, seconds: ran.release()), SlowAtFirst()
    cut = ticket(detector, rows(7))
    batcher.submit(cut)
    assert ran.acquire(timeout=WAIT_SECONDS)

    gate.set()

    assert_same(cut.wait().own(), StandIn().score(cut.x, alpha=0.05))
    assert detector.batches == [3, 4]


def test_each_request_is_told_its_own_wait(make):
    """Not that of the last one in its batch; the device's time is the batch's for all, and so is that of judging."""
    batcher, detector, begun = make(), StandIn(), time.monotonic()
    tickets = [ticket(detector, rows(1, n)) for n in range(3)]

    together(batcher, *tickets)
    stages = [t.wait().own().stage_seconds for t in tickets]

    waits = [s["queue"] for s in stages]
    assert waits == sorted(waits, reverse=True)
    assert len(set(waits)) == 3
    assert {s["infer"] for s in stages} == {0.25}
    [judging] = {s["calibrate"] for s in stages}
    assert 0 <= judging <= time.monotonic() - begun


def test_only_requests_with_scores_are_handed_on(make):
    """A candidate scores what callers got, and nothing for those who have gone."""
    answered, ran = [], threading.Semaphore(0)
    batcher, detector = make(answered=answered.append, ran=lambda rows, seconds: ran.release()), StandIn()
    tickets = [ticket(detector, rows(1, n)) for n in range(3)]
    late = ticket(detector, rows(1), deadline=time.monotonic() - 1)

    together(batcher, tickets[0], late, *tickets[1:])
    assert all(ran.acquire(timeout=WAIT_SECONDS) for _ in range(2))

    assert answered == tickets


def test_rows_whose_last_caller_leaves_while_they_are_judged_are_told_to_nobody(make):
    """They count neither in metrics nor for drift: no answer has them."""
    told, ran = [], threading.Semaphore(0)
    batcher = make(scored=told.append, answered=told.append, ran=lambda rows, seconds: ran.release())

    class LeftMeanwhile(StandIn):
        """Its caller goes before the verdicts are there."""

        def judge(self, *args, **options):
            """As the stand-in."""
            batcher.cancel(gone)
            return super().judge(*args, **options)

    gone = ticket(LeftMeanwhile(), rows(2))

    batcher.submit(gone)
    with pytest.raises(CancelledError):
        gone.wait()
    assert ran.acquire(timeout=WAIT_SECONDS)

    assert told == []


@pytest.mark.parametrize("mates", [1, 2])
def test_after_a_failure_those_are_run_again_who_still_wait(make, mates):
    """Each by itself, also where there is but one; not those who left meanwhile."""
    batcher, runs = make(), []

    class FailsTogether(StandIn):
        """Its device cannot do with several; somebody leaves then."""

        def score_rows(self, x, **options):
            """As the stand-in, but for those."""
            runs.append(len(x))
            if len(runs) == 1:
                batcher.cancel(gone)
                raise DeviceError("out of memory")
            return super().score_rows(x, **options)

    detector = FailsTogether()
    gone, *kept = (ticket(detector, rows(n, n), num_neighbors=2) for n in range(1, 2 + mates))

    together(batcher, gone, *kept)

    for t in kept:
        assert_same(t.wait().own(), StandIn().score(t.x, alpha=0.05, num_neighbors=2))
    with pytest.raises(CancelledError):
        gone.wait()
    assert runs == [1 + sum(len(t.x) for t in kept), *(len(t.x) for t in kept)]


def test_a_slice_that_is_run_again_is_a_part_of_its_request(make, gate):
    """Neither its answer nor its end: the slice before it is still being computed."""
    begun = threading.Event()

    class FailsOnTwo(StandIn):
        """Its device cannot do with two rows, and takes long for four."""

        def score_rows(self, x, **options):
            """As the stand-in, but for those."""
            if len(x) == 2:
                raise DeviceError("out of memory")
            if len(x) == 4:
                begun.set()
                assert gate.wait(WAIT_SECONDS)
            return super().score_rows(x, **options)

    batcher, detector, other = make(workers=2, max_batch_rows=4), FailsOnTwo(), StandIn("other", gate=gate)
    first, cut, mate = ticket(other, rows(1)), ticket(detector, rows(5)), ticket(detector, rows(1, 7))
    batcher.submit(first)
    assert other.entered.acquire(timeout=WAIT_SECONDS)
    batcher.submit(cut)
    assert begun.wait(WAIT_SECONDS)
    batcher.submit(mate)
    batcher.cancel(first)

    assert_same(mate.wait().own(), StandIn().score(mate.x, alpha=0.05))
    gate.set()

    assert_same(cut.wait().own(), StandIn().score(cut.x, alpha=0.05))
    assert detector.batches == [1, 1, 4]


def test_a_run_after_a_failure_stops_when_nobody_is_left(make, gate):
    """The device is free without anybody opening the gate."""

    class FailsTogether(StandIn):
        """Its device cannot do with several."""

        def score_rows(self, x, **options):
            """As the stand-in, but for those."""
            if len(x) > 1:
                raise DeviceError("out of memory")
            return super().score_rows(x, **options)

    ran, detector = threading.Semaphore(0), FailsTogether(gate=gate)
    batcher = make(ran=lambda rows, seconds: ran.release())
    mates = [ticket(detector, rows(1)) for _ in range(2)]
    together(batcher, *mates)
    assert ran.acquire(timeout=WAIT_SECONDS)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)

    for t in mates:
        batcher.cancel(t)

    assert ran.acquire(timeout=WAIT_SECONDS)
    assert detector.rows_scored == 0


def test_what_is_left_of_a_request_that_is_cancelled_is_all_that_was_queued(make, gate):
    """Counted otherwise, an idle queue would look too long or too short for ever."""
    batcher, detector = make(max_batch_rows=4), StandIn(gate=gate)
    cut = ticket(detector, rows(10))
    batcher.submit(cut)
    assert detector.entered.acquire(timeout=WAIT_SECONDS)
    before = batcher.queued_rows

    batcher.cancel(cut)

    assert (before, batcher.queued_rows) == (6, 0)


def test_false_discoveries_are_counted_in_each_request_by_itself(make):
    """Among the rows of others a row would be none that stands alone, and the other way round."""
    detector = StandIn()
    batcher = make()
    xs = [rows(1, 0.3), rows(9, -9)]
    tickets = [ticket(detector, x, guarantee="false_discovery_rate", alpha=0.3) for x in xs]

    together(batcher, *tickets)

    found = [t.wait().own() for t in tickets]
    for scores, x in zip(found, xs, strict=True):
        assert_same(scores, StandIn().score(x, guarantee="false_discovery_rate", alpha=0.3))
    assert [int(s.is_outlier.sum()) for s in found] == [1, 0]
    assert detector.batches == [10]


def held_bytes(found):
    """Of all arrays that an answer keeps alive, those behind views too."""
    arrays = [getattr(found, name) for name in ARRAYS]
    arrays += [getattr(found.neighbors, name) for name in ("ids", "labels", "distances", "shares")]
    owners = [a if a.base is None else a.base for a in (*arrays, found.parts.values)]
    return sum({id(o): o.nbytes for o in owners}.values())


@pytest.mark.parametrize("kind", [{}, {"guarantee": "false_discovery_rate"}, {"seed": 7}])
def test_what_may_wait_for_a_slow_reader_holds_the_rows_of_that_reader_alone(make, kind):
    """A request of one row would keep the scores of its whole batch, and every request of a reader another batch's."""
    batcher, detector, told = make(), StandIn(), threading.Semaphore(0)
    batcher._answered = lambda ticket: told.release()
    slow, company, again = (ticket(detector, rows(1, n), reader=n, num_neighbors=2, **kind) for n in (1, 2, 3))
    others = ticket(detector, rows(200), num_neighbors=2, **kind)

    together(batcher, slow, others, company, again)
    shares = [t.wait() for t in (slow, company, again, others)]

    assert detector.batches == [203]
    for share, offset in zip(shares, (1, 2, 3), strict=False):
        expected = StandIn().score(rows(1, offset), num_neighbors=2, alpha=0.05, **options(kind))
        assert_same(share.own(), expected)
        assert held_bytes(share.scores) <= 2 * held_bytes(expected)
    for _ in range(4):
        assert told.acquire(timeout=WAIT_SECONDS)
    batcher.close()
    assert not [t for t in (slow, company, again) if hasattr(t, "x")]
    assert others.x.nbytes


def options(kind):
    """As `score` calls them."""
    return {"smoothing_seed" if name == "seed" else name: value for name, value in kind.items()}


def test_answers_that_are_taken_at_once_are_no_copies(make):
    """Nor are those of requests of one reader from each other."""
    batcher, detector = make(), StandIn()
    first, second = ticket(detector, rows(2)), ticket(detector, rows(3, 2))
    third, fourth = ticket(detector, rows(1, 5), reader=1), ticket(detector, rows(2, 6), reader=1)

    together(batcher, first, second, third, fourth)
    a, b, c, d = (t.wait() for t in (first, second, third, fourth))

    assert a.scores is b.scores
    assert (c.scores is d.scores, len(c.scores)) == (True, 3)
    for share, (n, offset) in zip((a, b, c, d), ((2, 0), (3, 2), (1, 5), (2, 6)), strict=True):
        assert_same(share.own(), StandIn().score(rows(n, offset), alpha=0.05))


def test_a_request_in_slices_keeps_none_of_them_once_it_is_answered(make):
    """They hold a number for every class, and the batches that they were in."""
    cut = ticket(StandIn(), rows(7))
    make(max_batch_rows=4).submit(cut)

    assert len(cut.wait()) == 7
    assert not cut.parts


def test_an_answer_that_waits_for_its_reader_does_not_hold_the_detector(make):
    """A version that is served no longer could not give its memory back for the one that follows it."""
    batcher, detector = make(), StandIn()
    gone = weakref.ref(detector)
    whole, cut = ticket(detector, rows(1), reader=1), ticket(detector, rows(300), reader=1)
    batcher.submit(whole)
    batcher.submit(cut)
    shares = [whole.wait(), cut.wait()]
    batcher.close()

    del detector
    gc.collect()

    assert gone() is None
    assert [len(share) for share in shares] == [1, 300]
