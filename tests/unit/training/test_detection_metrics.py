"""Every detection metric against scikit-learn, SciPy or plain loops; on ties too."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest, ks_2samp, kstest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from softkin import conformal
from softkin_training.detection_metrics import (
    aupr_in,
    aupr_out,
    auroc,
    fpr95,
    fpr95_id,
    rate,
    roc,
    uniformity,
)
from softkin_training.flag_chance import chance_of_false_alarms

pytestmark = pytest.mark.training


def scores(kind):
    """Inlier and outlier scores: continuous, with many ties, all equal, apart."""
    rng = np.random.default_rng(7)
    return {
        "continuous": (rng.normal(size=83), rng.normal(1.0, 1.0, 57)),
        "ties": (rng.integers(0, 5, 83).astype(float), rng.integers(2, 7, 57).astype(float)),
        "equal": (np.zeros(20), np.zeros(30)),
        "apart": (rng.normal(size=20), 100 + rng.normal(size=30)),
        "one each": (np.array([1.0]), np.array([0.0])),
    }[kind]


KINDS = pytest.mark.parametrize("kind", ["continuous", "ties", "equal", "apart", "one each"])


def labelled(inliers, outliers):
    """Labels with outliers as positives, and scores."""
    return np.r_[np.zeros(len(inliers)), np.ones(len(outliers))], np.r_[inliers, outliers]


@KINDS
def test_areas_are_those_of_scikit_learn(kind):
    """Both AUPR name which kind of row is positive; inliers score low."""
    inliers, outliers = scores(kind)
    y, s = labelled(inliers, outliers)

    assert auroc(inliers, outliers) == pytest.approx(roc_auc_score(y, s))
    assert aupr_out(inliers, outliers) == pytest.approx(average_precision_score(y, s))
    assert aupr_in(inliers, outliers) == pytest.approx(average_precision_score(1 - y, -s))


@KINDS
def test_both_fpr95_are_read_off_scikit_learns_curve(kind):
    """The lowest false-positive rate at which at least 95 % of positives are found; no threshold between ties."""
    inliers, outliers = scores(kind)
    y, s = labelled(inliers, outliers)

    for found, truth, score in ((fpr95(inliers, outliers), y, s), (fpr95_id(inliers, outliers), 1 - y, -s)):
        false_positives, true_positives, _ = roc_curve(truth, score, drop_intermediate=False)
        assert found == pytest.approx(false_positives[true_positives >= 0.95 - 1e-12].min())


def test_the_two_fpr95_are_told_apart():
    """A few outliers below everything cost the one that must catch them, and hardly the other."""
    inliers, outliers = np.arange(100.0), np.r_[np.arange(50.0, 150.0), [-1.0] * 10]

    assert fpr95(inliers, outliers) == 1.0
    assert fpr95_id(inliers, outliers) == pytest.approx((45 + 10) / 110)


@pytest.mark.parametrize("n", [19, 20, 21, 40, 100])
def test_95_percent_means_at_least_that_many_rows(n):
    """19 of 20 are enough; of 19 rows all are needed."""
    outliers, inliers = np.arange(float(n)), np.arange(float(n)) - 0.5
    needed = next(k for k in range(n + 1) if k / n >= 0.95)

    assert fpr95(inliers, outliers) == (inliers >= np.sort(outliers)[n - needed]).mean()


@KINDS
def test_roc_is_the_best_reachable_point_at_each_rate(kind):
    """Against scikit-learn's curve, without interpolation."""
    inliers, outliers = scores(kind)
    y, s = labelled(inliers, outliers)
    rates = [0.0, 1e-4, 0.01, 0.05, 0.3, 0.5, 1.0]

    false_positives, true_positives, _ = roc_curve(y, s, drop_intermediate=False)
    expected = [true_positives[false_positives <= r + 1e-12].max() for r in rates]
    np.testing.assert_allclose(roc(inliers, outliers, rates), expected)


def test_a_rate_of_so_many_inliers_allows_so_many():
    """Though 0.29 of 100 rows comes out below 29: each more lets one more outlier through."""
    rates = [k / 100 for k in range(101)]

    assert roc(np.arange(100.0), np.arange(100.0) - 0.5, rates) == rates


def test_infinite_scores_are_scores():
    """+inf stands for rows on which the network overflows: above everything else, and tied among each other."""
    inliers, outliers = np.array([0.0, 1.0, np.inf]), np.array([0.5, np.inf, np.inf])

    pairs = [(o > i) + (o == i) / 2 for o in outliers for i in inliers]
    assert auroc(inliers, outliers) == pytest.approx(np.mean(pairs))
    assert fpr95(inliers, outliers) == pytest.approx(2 / 3)
    assert aupr_out(inliers, outliers) == aupr_out(np.array([0.0, 1.0, 9.0]), np.array([0.5, 9.0, 9.0]))


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (0, 250), (1, 1), (5, 100), (459, 10_000), (250, 250)])
def test_rates_carry_exact_binomial_intervals(count, rows):
    """Clopper-Pearson as SciPy has it."""
    found = rate(np.arange(rows) < count)

    expected = binomtest(count, rows).proportion_ci(0.95, "exact")
    assert (found.value, found.count, found.rows) == (count / rows, count, rows)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_uniformity_is_scipys_for_the_p_values_and_for_both_samples():
    """One sample against the uniform distribution, two samples where calibration scores are at hand."""
    rng = np.random.default_rng(1)
    calibration, inliers = np.sort(rng.normal(size=150)), rng.normal(size=90)
    p = conformal.p_values(inliers, calibration)

    found = uniformity(p, inliers, calibration)
    assert found.statistic == pytest.approx(kstest(p, "uniform").statistic)
    assert found.p_value_known == pytest.approx(kstest(p, "uniform", method="asymp").pvalue)
    assert found.p_value == pytest.approx(ks_2samp(inliers, calibration, method="asymp").pvalue)
    assert uniformity(p, inliers, None).p_value is None


def test_the_two_sample_test_keeps_its_level_where_the_other_does_not():
    """60 calibration rows and 600 inliers of one law, 400 times. Level 5 %; exact bounds at 1e-4."""
    rng = np.random.default_rng(2)
    rejected = np.zeros(2)
    for _ in range(400):
        calibration, inliers = np.sort(rng.normal(size=60)), rng.normal(size=600)
        found = uniformity(conformal.p_values(inliers, calibration), inliers, calibration)
        rejected += np.array([found.p_value, found.p_value_known]) < 0.05

    assert rejected[0] <= 39  # binom.ppf(1 - 1e-4, 400, .05)
    assert rejected[1] > 150


def test_chance_of_false_alarms_is_the_beta_binomial_tail():
    """Against SciPy, and against drawing calibration and inliers together."""
    assert chance_of_false_alarms(9, 50, 5, 99) == pytest.approx(betabinom.sf(8, 50, 5, 95))
    assert chance_of_false_alarms(0, 50, 5, 99) == 1.0
    assert chance_of_false_alarms(3, 5, 99, 99) == pytest.approx(betabinom.sf(2, 5, 99, 1)) != 1.0
    assert chance_of_false_alarms(3, 50, 100, 99) == 1.0
    assert chance_of_false_alarms(1, 50, 0, 99) == 0.0
    assert chance_of_false_alarms(0, 50, 0, 99) == 1.0
    assert chance_of_false_alarms(2, 2, 5, 9) == pytest.approx(betabinom.pmf(2, 2, 5, 5))
    assert chance_of_false_alarms(1, 250, 95, 99) <= 1.0  # what is added up comes out above

    rng = np.random.default_rng(3)
    drawn = rng.random((20_000, 99 + 50))
    p_at_most_5 = (drawn[:, 99:] > np.sort(drawn[:, :99], axis=1)[:, -5:][:, :1]).sum(axis=1)
    share = (p_at_most_5 >= 9).mean()
    assert share == pytest.approx(chance_of_false_alarms(9, 50, 5, 99), abs=4 * np.sqrt(0.25 / 20_000))
