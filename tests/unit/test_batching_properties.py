"""Whatever is thrown at the batcher, everybody gets the own answer."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from softkin.batching import Batcher
from softkin.errors import CancelledError
from standin import StandIn
from ticket_cases import assert_same, rows, ticket


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    max_batch_rows=st.integers(1, 16),
    workers=st.integers(1, 3),
)
def test_whatever_the_sizes_everybody_gets_the_own_rows_back(sizes, max_batch_rows, workers):
    """No batch is over its limit, no row is scored twice, every answer is the one the request gets alone."""
    detector = StandIn()
    batcher = Batcher(workers=workers, max_batch_rows=max_batch_rows)
    try:
        waiting = [ticket(detector, rows(n, i)) for i, n in enumerate(sizes)]
        for t in waiting:
            batcher.submit(t)

        for t in waiting:
            assert_same(t.wait().own(), StandIn().score(t.x, alpha=0.05))
    finally:
        batcher.close()
    assert max(detector.batches) <= max_batch_rows
    assert detector.rows_scored == sum(sizes)


def test_callers_that_come_and_go_at_random_leave_nothing_behind():
    """Sixteen threads, a third of the requests cancelled at any moment: right answers, and every end told once."""
    detector, ends = StandIn(), []
    batcher = Batcher(workers=2, max_batch_rows=8)

    def caller(seed):
        chance = random.Random(seed)
        for i in range(150):
            t = ticket(detector, rows(chance.randint(1, 20), i), ended=lambda: ends.append(1))
            batcher.submit(t)
            if chance.random() < 1 / 3:
                batcher.cancel(t)
            try:
                found = t.wait().own()
            except CancelledError:
                continue
            assert_same(found, StandIn().score(t.x, alpha=0.05))

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(caller, seed) for seed in range(16)]:
            done.result(timeout=120)

    assert len(ends) == 16 * 150
    assert batcher.queued_rows == 0
    batcher.close()
