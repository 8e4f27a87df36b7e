from __future__ import annotations

import pytest

from softkin.batch_times import BatchTimes


def test_batch_times_are_the_line_through_what_was_seen():
    """Exact on a line; proportional in excess of the only size seen; never negative; follows a change."""
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
    for n in range(1, 9):
        times.add(n, 1.0 / n)  # falls with the rows: no line of a device
    assert times.predict(10_000) >= 0.0
