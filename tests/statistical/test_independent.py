"""The same statistics by other people's code: crepes and online-cp (scipy has its say in tests/unit)."""

from __future__ import annotations

import numpy as np
import pytest
from crepes.base import p_values_batch
from crepes.martingales import semi_online_p_values
from online_cp import CUSUMWrapper, SimpleJumper, VilleWrapper
from scipy.stats import ks_2samp, kstest

from softkin import drift
from softkin.conformal import ScoresByClass, class_conditional_p_values, p_values
from softkin.drift_bets import LOW_BETS, bets
from trials import mixed_stream, real_scores

N = 2000
LEVEL = 1e-4


@pytest.fixture(params=[False, True], ids=["density", "counts with 60 % ties"])
def scores(request):
    """Real calibration rows, rows to score, and their predicted classes."""
    pool = real_scores(tied=request.param)
    order = np.random.default_rng(0).permutation(len(pool.inliers))
    return pool.inliers[order], pool.predicted_classes[order]


def test_p_values_are_those_of_crepes(scores):
    """Deterministic, and smoothed with the same random numbers."""
    values, _ = scores
    calibration, tested = values[:N], values[N:]
    u = np.random.RandomState(7).rand(len(tested))  # what crepes draws for this seed

    assert p_values(tested, np.sort(calibration)).tolist() == pytest.approx(
        p_values_batch(calibration, tested, smoothing=False).tolist(), rel=1e-12
    )
    smoothed = p_values_batch(calibration, tested, smoothing=True, seed=7)
    assert p_values(tested, np.sort(calibration), u).tolist() == pytest.approx(smoothed.tolist(), rel=1e-12)


def test_class_conditional_p_values_are_those_of_crepes(scores):
    """Its Mondrian bins are our predicted classes."""
    values, classes = scores
    order = np.argsort(values[:N], kind="stable")

    ours = class_conditional_p_values(
        values[N:], classes[N:], ScoresByClass.of(values[:N][order], classes[:N][order], 10)
    )

    theirs = p_values_batch(values[:N], values[N:], classes[:N], classes[N:], smoothing=False)
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-12)


def test_sequential_p_values_have_the_law_of_crepes(scores):
    """Both uniform for inliers; with outliers mixed in, both of one law, though each draws its own numbers."""
    values, _ = scores
    calibration, inliers = values[:N], values[N : N + 4000]
    outliers = real_scores(tied=bool((values == values.min()).mean() > 0.5)).outliers["notMNIST"]
    mixed = mixed_stream(inliers, outliers, 0.3, np.random.default_rng(1))

    def ours(stream):
        watch = drift.DriftWatch(np.sort(calibration), rng=np.random.default_rng(2))
        slices = np.split(stream, range(drift.SLICE_ROWS, len(stream), drift.SLICE_ROWS))
        return np.concatenate([watch._sequential_p_values(s) for s in slices])

    def theirs(stream):
        return semi_online_p_values(np.concatenate([calibration, stream]), seed=3)[N:]

    assert kstest(ours(inliers), "uniform").pvalue > LEVEL
    assert kstest(theirs(inliers), "uniform").pvalue > LEVEL
    assert ks_2samp(ours(mixed), theirs(mixed)).pvalue > LEVEL
    assert kstest(ours(mixed), "uniform").pvalue < 1e-12


def test_a_martingale_of_online_cp_on_our_p_values_alarms_where_ours_does():
    """Simple Jumper under Ville's rule: silent on inliers, loud on a mixture; so is our own, and sooner."""
    pool = real_scores()
    order = np.random.default_rng(4).permutation(len(pool.inliers))
    calibration, inliers = np.sort(pool.inliers[order[:N]]), pool.inliers[order[N:]][:3000]
    mixed = mixed_stream(inliers, pool.outliers["notMNIST"], 0.3, np.random.default_rng(5))
    for stream, expected in ((inliers, False), (mixed, True)):
        watch = drift.DriftWatch(calibration, level=0.01, rng=np.random.default_rng(6))
        jumper = VilleWrapper(SimpleJumper(), threshold=100)
        for p in watch._sequential_p_values(stream[: drift.SLICE_ROWS]):
            jumper.update(float(p))
        fresh = drift.DriftWatch(calibration, level=0.01, rng=np.random.default_rng(6))
        fresh.observe(stream[: drift.SLICE_ROWS])
        assert bool(jumper.rejected) is expected
        assert fresh.report().alarm is expected


def test_the_cusum_is_that_of_online_cp():
    """Its wrapper takes any martingale; ours is Page's statistic of the mean bet, in logs and floored at 0."""

    class MeanBet(SimpleJumper):
        """The product of the mean bets on strange rows."""

        def update(self, p):
            bet = bets(np.array([p]))[:LOW_BETS].mean()
            self.logM += float(np.log(bet))
            self.log_martingale_values.append(self.logM)

    calibration = np.sort(np.random.default_rng(7).random(500))
    stream = np.random.default_rng(8).random(300) ** 0.5
    watch = drift.DriftWatch(calibration, rng=np.random.default_rng(9))
    theirs = CUSUMWrapper(MeanBet())
    for score in stream:
        watch.observe(np.array([score]))
        theirs.update(float(p_values(np.array([score]), calibration)[0]))
        assert watch.report().cusum == pytest.approx(max(0.0, theirs.log_gamma), abs=1e-9)
