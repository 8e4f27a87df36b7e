"""The drift watch: silent while nothing drifts, however long, and quick when something does."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom

from softkin.conformal import p_values
from softkin.drift import DriftWatch
from softkin.drift_bets import bets, kept, staked
from trials import mixed_stream, real_scores, watch

STREAMS, STEPS = 200, 20_000
LEVELS = (0.05, 0.01)


def alarms(n: int, streams: int, steps: int) -> dict[float, int]:
    """How many null streams ever reach 1 / level. Only ranks count: uniform scores stand for any continuous ones."""
    highest = []
    for stream in range(streams):
        rng = np.random.default_rng([stream, n])
        drift = DriftWatch(np.sort(rng.random(n)), rng=rng)
        for _ in range(steps // 4000):
            drift.observe(rng.random(4000))
        highest.append(drift.report().max_log10_martingale)
    return {level: int((np.array(highest) >= -np.log10(level)).sum()) for level in LEVELS}


@pytest.mark.slow
@pytest.mark.parametrize("n", [1000, 10_000])
def test_at_most_the_nominal_share_of_null_streams_ever_alarms(n):
    """Ville's inequality, with a finite calibration set, over 20,000 steps."""
    found = alarms(n, STREAMS, STEPS)

    for level, count in found.items():
        assert count <= level * STREAMS


def test_null_streams_of_tied_scores_do_not_alarm_more():
    """60 % of the scores equal, on a small calibration set."""
    highest = []
    for stream in range(STREAMS):
        rng = np.random.default_rng(stream)
        calibration, scores = (np.maximum(rng.integers(0, 100, size), 60.0) for size in (300, 2000))
        highest.append(watch(calibration, scores, rng).max_log10_martingale)

    assert (np.array(highest) >= -np.log10(0.05)).sum() <= binom.ppf(1 - 1e-4, STREAMS, 0.05)


def test_the_test_would_notice_p_values_against_a_fixed_calibration_set():
    """The same bets on p-values of the 200 calibration rows alone, as peers make them: many null streams alarm."""
    streams = map(np.random.default_rng, range(100))
    p = np.stack([p_values(r.random(STEPS), np.sort(r.random(200)), 1.0 - r.random(STEPS)) for r in streams], axis=1)
    wealth, t = np.zeros(bets(p[0]).shape), np.arange(1, STEPS + 1)
    alarmed = np.zeros(100, bool)
    for p_of_streams, stake, rest in zip(p, staked(t), kept(t), strict=True):
        wealth = (wealth + stake) * bets(p_of_streams)
        alarmed |= wealth.mean(axis=0) + rest >= 20
        wealth[:, alarmed] = 0.0  # it has been counted, and would grow without bounds

    assert alarmed.sum() > binom.ppf(1 - 1e-4, 100, 0.05)


@pytest.mark.parametrize("n", [1000, 6000])
def test_five_per_cent_of_foreign_images_alarm_within_a_thousand_rows(n):
    """notMNIST among Fashion-MNIST, from the first row or after 5,000 clean ones: the median of 50 streams."""
    pool = real_scores()
    for clean in (0, 5000):
        delays = []
        for stream in range(50):
            rng = np.random.default_rng([stream, n, clean])
            order = rng.permutation(len(pool.inliers))
            calibration, before = pool.inliers[order[:n]], pool.inliers[order[n : n + clean]]
            after = mixed_stream(pool.inliers[order[n + clean :]], pool.outliers["notMNIST"], 0.05, rng)[:1000]
            report = watch(calibration, np.concatenate([before, after]), rng)
            delays.append(report.alarm_row - clean if report.alarm_row > clean else np.inf)
        assert np.median(delays) <= 1000


def test_rows_need_no_memory_once_they_are_ranked():
    """Arrays of fixed size, and nothing kept beside them: not a byte for each of 270,000 rows."""
    rng = np.random.default_rng(0)
    drift = DriftWatch(np.sort(rng.random(10_000)), rng=rng)
    sizes = {name: array.nbytes for name, array in drift.state().items()}
    tracemalloc.start()
    try:
        held = []
        for _ in range(10):
            for _ in range(3):
                drift.observe(rng.random(10_000))
            assert drift.report().window_rows == 10_000
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    assert drift.report().rows == 300_000
    assert {name: array.nbytes for name, array in drift.state().items()} == sizes
    assert held[-1] - held[0] < 1e5


@pytest.mark.parametrize("quantile", [0.05, 0.37, 0.5, 0.85])
def test_a_source_that_repeats_one_row_for_ever_alarms(quantile):
    """A stuck sensor, whose row is no outlier: after 1,000 clean rows, within 200."""
    rng = np.random.default_rng(0)
    calibration, clean = rng.normal(size=2000), rng.normal(size=1000)
    stuck = np.full(200, np.quantile(calibration, quantile))

    report = watch(calibration, np.concatenate([clean, stuck]), rng)

    assert 1000 < report.alarm_row <= 1200
