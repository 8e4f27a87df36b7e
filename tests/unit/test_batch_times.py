from __future__ import annotations

import pytest

from softkin.batch_times import BatchTimes


def test_batch_times_are_the_line_through_what_was_seen():
    """Exact on a line; proportional in excess of the only size seen; follows a change."""
    times = BatchTimes()
    assert times.predict(10) == 0.0
    times.add(8, 0.016)
    assert times.predict(4) == pytest.approx(0.016)
    assert times.predict(16) == pytest.approx(0.032)
    for n in (1, 64, 256, 32, 7):
        times.add(n, 0.001 + n * 0.002)
    times.add(8, 0.017)
    for n in range(300):
        times.add(1 + n % 50, 0.5 + (1 + n % 50) * 0.01)
    assert times.predict(20) == pytest.approx(0.7, rel=0.01)


def test_one_batch_of_many_weighs_a_fiftieth():
    """A second lost once, in a batch of middling size, moves the guess by a fiftieth of it."""
    times = BatchTimes()
    for n in range(400):
        times.add(10 + n % 2, 0.1)
    times.add(10, 1.1)
    times.add(11, 1.1)

    assert times.predict(10) == pytest.approx(0.1 + 2 * 0.02, rel=0.05)


def test_sizes_that_hardly_differ_make_a_line_and_equal_ones_none():
    """100 and 101 rows are enough to extrapolate from; one size in noisy times says nothing about the slope."""
    close, equal = BatchTimes(), BatchTimes()
    for n in range(100):
        close.add(100 + n % 2, 0.5 + (100 + n % 2) * 0.001)
    for n in range(10):
        equal.add(255, 0.1 + 0.01 * (n % 3))  # their variance comes out a little above zero

    assert close.predict(200) == pytest.approx(0.7, rel=1e-6)
    assert equal.predict(25_500) == pytest.approx(100 * equal.predict(255))


def test_no_batch_takes_less_than_no_time_and_more_rows_never_less_than_fewer():
    """Whatever line fits best: one that falls, or one that passes below zero on its way to few rows."""
    falling, steep = BatchTimes(), BatchTimes()
    for n in range(1, 9):
        falling.add(n, 1.0 / n)
    steep.add(100, 1.0)
    steep.add(200, 10.0)

    assert falling.predict(10_000) >= falling.predict(1) > 0.0
    assert steep.predict(1) == 0.0
    assert steep.predict(200) == pytest.approx(10.0)
