"""The drift watch's three steps, each against plain loops: sequential ranks, bets, stakes for every start."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from scipy.stats import kstest

from softkin import conformal, drift_bets
from softkin.drift import COARSE_GAPS, FINE_GAPS, SLICE_ROWS, DriftWatch
from softkin.drift_bets import (
    BAND_SHARE,
    BAND_STARTS,
    BAND_WIDTH,
    HIGH_SHARES,
    HIGH_TAILS,
    LOW_SHARES,
    LOW_TAILS,
    RESERVE,
)

LEVEL = 1e-4
"""Chance that a correct implementation fails one of the statistical tests."""


def coarse(rng, n):
    """Scores of which about 60 % are equal, and many of the others in pairs."""
    return np.where(rng.random(n) < 0.6, 0.0, np.round(rng.normal(size=n), 2))


def slices(scores):
    """Cut as the watch cuts rows that come at once."""
    return [scores[i : i + SLICE_ROWS] for i in range(0, len(scores), SLICE_ROWS)]


def sequential(watch, scores):
    """The watch's own sequential p-values."""
    return np.concatenate([watch._sequential_p_values(s) for s in slices(scores)])


def urn(calibration, scores, rng, cuts):
    """Sequential p-values by a loop over one counter per gap, with the draws of the watch's generator.

    Rows are ordered by score, then by a random number; `cuts`: positions of the calibration rows between the gaps.
    """
    ordered = sorted(zip(calibration.tolist(), rng.random(len(calibration)).tolist(), strict=True))
    borders = [ordered[i] for i in cuts]
    counts = np.diff([-1, *cuts, len(ordered)]).tolist()
    found = []
    for part in slices(scores):
        for score, tie_break, inside in zip(part.tolist(), *rng.random((2, len(part))).tolist(), strict=True):
            gap = sum(border < (score, tie_break) for border in borders)
            found.append((sum(counts[gap + 1 :]) + (1 - inside) * counts[gap]) / sum(counts))
            counts[gap] += 1
    return found


def densities(p):
    """Every bet's density at p: low tails, high tails, then the bands between them."""
    low = [1 - share + (share / tail if p <= tail else 0) for tail in LOW_TAILS for share in LOW_SHARES]
    high = [1 - share + (share / tail if p > 1 - tail else 0) for tail in HIGH_TAILS for share in HIGH_SHARES]
    bands = [1 - BAND_SHARE + (BAND_SHARE / BAND_WIDTH if s < p <= s + BAND_WIDTH else 0) for s in BAND_STARTS]
    return low + high + bands


def kept(t):
    """Capital not yet staked after row t."""
    return RESERVE + (1 - RESERVE) / (1 + math.log(1 + t))


def martingales(p_values):
    """After every row: sum over starts s of prior(s) times the mean bet's winnings since s, plus what is kept."""
    winnings, path = [], []
    for t, p in enumerate(p_values, start=1):
        bets = densities(p)
        winnings.append([1.0] * len(bets))
        winnings = [[w * b for w, b in zip(row, bets, strict=True)] for row in winnings]
        started = sum((kept(s) - kept(s + 1)) * sum(row) / len(row) for s, row in enumerate(winnings))
        path.append(started + kept(t))
    return path


@pytest.mark.parametrize("make", [lambda rng, n: rng.normal(size=n), coarse], ids=["continuous", "heavy ties"])
@pytest.mark.parametrize("n", [1, 2, 40, 200])
def test_sequential_p_values_are_those_of_an_urn(n, make):
    """A counter per gap, ties in random order: the same draws give the same p-values, over slice borders too."""
    rng = np.random.default_rng(n)
    calibration = np.sort(make(rng, n))
    scores = np.concatenate([make(rng, 2 * SLICE_ROWS + 9), [np.inf, -np.inf, calibration[0], calibration[-1]]])

    found = sequential(DriftWatch(calibration, rng=np.random.default_rng(7)), scores)

    assert found.tolist() == urn(calibration, scores, np.random.default_rng(7), range(n))
    assert ((found > 0) & (found <= 1)).all()


@pytest.mark.parametrize("make", [lambda rng, n: rng.normal(size=n), coarse], ids=["continuous", "heavy ties"])
def test_merged_gaps_are_an_urn_too(make):
    """With more rows than counters: the strangest gaps keep one each, the others share evenly."""
    rng = np.random.default_rng(0)
    calibration, scores = np.sort(make(rng, 4000)), make(rng, 2 * SLICE_ROWS)
    watch = DriftWatch(calibration, rng=np.random.default_rng(7))
    counts = watch.state()["weights"]
    cuts = (np.cumsum(counts) - 1)[:-1].tolist()

    found = sequential(watch, scores)

    assert found.tolist() == urn(calibration, scores, np.random.default_rng(7), cuts)
    assert counts.sum() == 4001
    assert len(counts) <= FINE_GAPS + COARSE_GAPS + 1
    assert (counts[-FINE_GAPS:] == 1).all()
    assert counts.max() <= math.ceil(4000 / (COARSE_GAPS - 1))


@pytest.mark.parametrize("n", [30, 300, 5000])
@pytest.mark.parametrize("make", [lambda rng, n: rng.normal(size=n), coarse], ids=["continuous", "heavy ties"])
def test_sequential_p_values_of_inliers_are_uniform_and_independent(n, make):
    """Exactly, however long the stream and however few calibration rows: each, and the sum of neighbours modulo 1."""
    rng = np.random.default_rng(1)

    p = sequential(DriftWatch(np.sort(make(rng, n)), rng=rng), make(rng, 20_000))

    assert kstest(p, "uniform").pvalue > LEVEL
    assert kstest((p[::2] + p[1::2]) % 1, "uniform").pvalue > LEVEL


def test_the_test_would_notice_p_values_against_the_calibration_rows_alone():
    """They have the calibration set's own error for ever, which a martingale takes for drift."""
    rng = np.random.default_rng(1)
    calibration = np.sort(rng.normal(size=300))

    p = conformal.p_values(rng.normal(size=20_000), calibration, rng.random(20_000))

    assert kstest(p, "uniform").pvalue < LEVEL


def test_every_bet_is_a_density():
    """Its mean over (0, 1] is 1, so a fair p-value wins nothing; tails include p = tail, and p = 1."""
    grid = (np.arange(1000) + 0.5) / 1000  # every edge is a multiple of 1/1000
    np.testing.assert_allclose(drift_bets.bets(grid).mean(axis=1), 1.0, rtol=1e-12)

    for p in (1e-12, 0.002, 0.0021, 0.01, 0.3, 0.31, 0.7, 0.71, 0.97, 0.98, 1.0):
        np.testing.assert_allclose(drift_bets.bets(np.array([p]))[:, 0], densities(p), rtol=1e-12, err_msg=str(p))


def test_a_saved_state_speaks_of_the_same_bets_in_every_version():
    """It holds a stake for each, by place, and no more: whoever changes one must have older states refused."""
    assert (LOW_TAILS, LOW_SHARES) == ((0.002, 0.01, 0.03, 0.1, 0.3), (0.03, 0.1, 0.3))
    assert (HIGH_TAILS, HIGH_SHARES) == ((0.03, 0.1, 0.3), (0.1, 0.3))
    assert (BAND_STARTS, BAND_WIDTH, BAND_SHARE) == ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 0.1, 0.3)
    assert RESERVE == 0.5


def test_the_capital_is_staked_once():
    """What has been staked up to row t and what is kept make 1, without cancellation after a million rows."""
    t = np.arange(1, 1_000_001)
    staked = drift_bets.staked(t)

    assert (staked > 0).all()
    np.testing.assert_allclose(np.cumsum(staked) + drift_bets.kept(t), 1.0, rtol=1e-12)
    for row in (1, 2, 17, 1000):
        assert drift_bets.staked(np.array([row]))[0] == pytest.approx(kept(row - 1) - kept(row), rel=1e-9)


def drifting(rng, n=60):
    """Calibration rows, and a stream that begins to drift after 150 rows and ends after 260."""
    stream = rng.normal(size=350)
    stream[150:260] += 2.0
    return np.sort(rng.normal(size=n)), stream


@pytest.mark.parametrize("seed", [0, 1])
def test_the_martingale_is_the_sum_over_starts_and_bets_after_every_row(seed):
    """Row by row: now, the largest so far, and the row of the alarm, to 1e-9."""
    calibration, stream = drifting(np.random.default_rng(seed))
    watch, twin = (DriftWatch(calibration, level=0.05, rng=np.random.default_rng(7)) for _ in range(2))
    expected = martingales([twin._sequential_p_values(stream[i : i + 1])[0] for i in range(len(stream))])
    largest = list(accumulate(expected, max, initial=1.0))[1:]
    reached = [m >= 1 / 0.05 for m in expected]
    assert any(reached)

    for t, score in enumerate(stream, start=1):
        watch.observe(np.array([score]))
        report = watch.report()

        assert report.rows == t
        assert report.log10_martingale == pytest.approx(math.log10(expected[t - 1]), abs=1e-9)
        assert report.max_log10_martingale == pytest.approx(math.log10(largest[t - 1]), abs=1e-9)
        assert report.alarm_row == (reached.index(True) + 1 if any(reached[:t]) else 0)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_alarm_comes_with_evidence_of_exactly_one_over_the_level(at_once):
    """And not with a thousandth less."""
    calibration, stream = drifting(np.random.default_rng(4))

    def watched(level):
        watch = DriftWatch(calibration, level=level, rng=np.random.default_rng(7))
        for part in slices(stream) if at_once else stream.reshape(-1, 1):
            watch.observe(part)
            watch.report()
        return watch.report()

    reached = 10 ** -watched(0.5).max_log10_martingale

    assert reached < 0.5
    assert watched(reached * 1.001).alarm_row > 0
    assert watched(reached / 1.001).alarm_row == 0


@pytest.mark.parametrize("rows", [1, SLICE_ROWS - 1, SLICE_ROWS, SLICE_ROWS + 1, 350])
def test_slices_carry_the_martingale_on(rows):
    """Rows that come at once are ranked in slices; inside and across them it is the same sum."""
    calibration, stream = drifting(np.random.default_rng(3))
    watch, twin = (DriftWatch(calibration, level=0.05, rng=np.random.default_rng(7)) for _ in range(2))
    expected = martingales(sequential(twin, stream[:rows]))

    watch.observe(stream[:rows])
    report = watch.report()

    assert report.log10_martingale == pytest.approx(math.log10(expected[-1]), abs=1e-9)
    assert report.max_log10_martingale == pytest.approx(math.log10(max(1.0, *expected)), abs=1e-9)
    assert report.alarm_row == next((t for t, m in enumerate(expected, start=1) if m >= 1 / 0.05), 0)


@pytest.mark.parametrize("batch", [1, 7, 128, 400])
def test_the_cusum_is_pages_loop(batch):
    """S = max(0, S + log of the mean bet on strange rows), on p-values against the calibration rows alone.

    Of 99 rows, so that many p-values are just the width of a tail.
    """
    calibration, stream = drifting(np.random.default_rng(4), 99)
    p = conformal.p_values(stream, calibration)
    watch, expected = DriftWatch(calibration), 0.0

    for i in range(0, len(stream), batch):
        watch.observe(stream[i : i + batch])
        for value in p[i : i + batch]:
            low = densities(value)[: len(LOW_TAILS) * len(LOW_SHARES)]
            expected = max(0.0, expected + math.log(sum(low) / len(low)))

        assert watch.report().cusum == pytest.approx(expected, abs=1e-9)
    assert max(p) > 0.5


def test_an_alarm_stays_and_the_largest_evidence_never_falls():
    """Though the martingale itself falls when the stream is well again."""
    rng = np.random.default_rng(5)
    watch = DriftWatch(np.sort(rng.normal(size=200)), rng=rng)
    reports = [watch.report()]
    for mean, rows in ((0, 500), (4, 60), (0, 5000), (4, 60)):
        for _ in range(0, rows, 20):
            watch.observe(rng.normal(mean, size=20))
            reports.append(watch.report())

    largest = [r.max_log10_martingale for r in reports]
    first = next(i for i, r in enumerate(reports) if r.alarm)
    assert (np.diff(largest) >= 0).all()
    assert all(r.max_log10_martingale >= r.log10_martingale for r in reports)
    assert not any(r.alarm for r in reports[:first])
    assert {r.alarm_row for r in reports[first:]} == {reports[first].alarm_row}
    assert 500 <= reports[first - 1].rows < reports[first].alarm_row <= reports[first].rows
    assert reports[first - 1].max_log10_martingale < 2 <= reports[first].max_log10_martingale
    assert min(r.log10_martingale for r in reports[first:]) < 2


@pytest.mark.parametrize("n", [3, 1000, 100_000])
@pytest.mark.parametrize("strange", [np.inf, -np.inf, 0.0], ids=["strangest", "most familiar", "always equal"])
def test_extreme_evidence_stays_a_number(n, strange):
    """100,000 rows that cannot be inliers, then 10,000 inliers: no overflow, no NaN, no warning."""
    rng = np.random.default_rng(6)
    watch = DriftWatch(np.sort(rng.normal(size=n)), rng=rng)

    watch.observe(np.full(100_000, strange))
    peak, wealth = watch.report(), watch.state()["log_wealth"]
    watch.observe(rng.normal(size=10_000))
    after = watch.report()

    for r in (peak, after):
        assert np.isfinite((r.log10_martingale, r.max_log10_martingale, r.cusum, r.flag_rate)).all()
    for array in (wealth, *watch.state().values()):
        assert not np.isnan(array).any()
        assert not np.isposinf(array).any()
    assert (peak.rows, after.rows) == (100_000, 110_000)
    assert after.max_log10_martingale >= peak.max_log10_martingale
    if n > 3 and strange:
        assert peak.max_log10_martingale > 200
        assert (after.alarm, after.alarm_row) == (True, peak.alarm_row)
    if n == 100_000 and strange:
        assert peak.max_log10_martingale > 4000  # far past the largest float64
