"""The figures of a report, each from the sets it is of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, ks_2samp, kstest

from softkin import conformal
from softkin_training import detection_metrics
from softkin_training.measure import (
    INLIERS,
    P_VALUE_BINS,
    ROC_RATES,
    SCORE_BINS,
    histogram,
    key,
    p_value_report,
    score_report,
)

pytestmark = pytest.mark.training

ALPHA = 0.1


@pytest.fixture
def sets():
    """Calibration scores, and scores of inliers, of rows that are far out and of a set called as the inliers are.

    One row of each set is as strange as the ninth strangest calibration row, so its p-value is just alpha.
    """
    rng = np.random.default_rng(0)
    calibration = np.sort(rng.normal(size=99))
    laws = {INLIERS: (0, 119), key("far"): (2, 69), key(INLIERS): (1, 29)}
    return calibration, {k: np.append(rng.normal(mean, 1, n), calibration[-9]) for k, (mean, n) in laws.items()}


@pytest.fixture
def p(sets):
    """Their p-values."""
    calibration, values = sets
    found = {k: conformal.p_values(v, calibration) for k, v in values.items()}
    assert all((v == ALPHA).any() for v in found.values())
    return found


def test_a_score_is_reported_with_every_metric_of_every_outlier_set(sets, p):
    """Whatever a set is called; a p-value of just alpha is flagged."""
    calibration, values = sets

    found = score_report("title", "source", values, p, calibration, ALPHA)

    assert (found.title, found.source, found.calibration_size) == ("title", "source", 99)
    assert found.false_alarms == detection_metrics.rate(p[INLIERS] <= ALPHA)
    assert list(found.outliers) == ["far", INLIERS]
    for name, d in found.outliers.items():
        both = values[INLIERS], values[key(name)]
        for metric in ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id"):
            assert getattr(d, metric) == getattr(detection_metrics, metric)(*both), metric
        assert d.roc == detection_metrics.roc(*both, ROC_RATES)
        assert d.rows == len(both[1])
        assert d.caught == detection_metrics.rate(p[key(name)] <= ALPHA)
    assert found.uniformity.statistic == pytest.approx(kstest(p[INLIERS], "uniform").statistic)
    assert found.uniformity.p_value == pytest.approx(ks_2samp(values[INLIERS], calibration, method="asymp").pvalue)


def test_a_score_that_was_not_calibrated_is_only_ranked(sets):
    """No rate, and nothing to be uniform."""
    found = score_report("title", "source", sets[1], None, None, ALPHA)

    assert (found.calibration_size, found.false_alarms, found.uniformity) == (None, None, None)
    assert {d.caught for d in found.outliers.values()} == {None}


def test_curves_are_read_at_41_rates_from_one_in_ten_thousand_to_all():
    """On a logarithmic scale, to four digits."""
    assert (ROC_RATES[0], ROC_RATES[10], ROC_RATES[20], ROC_RATES[-1], len(ROC_RATES)) == (1e-4, 1e-3, 1e-2, 1.0, 41)
    assert ROC_RATES[1] == 0.0001259


@pytest.mark.parametrize("n", [5, 99, 100_000])
def test_shares_are_told_at_p_values_that_can_be_reached(n):
    """From the smallest to 1, at most 60 of them, as they are computed, so a row on one of them counts as flagged."""
    every = (1 + np.arange(n + 1)) / (n + 1)
    p = {INLIERS: every, key("same"): every}

    found = p_value_report(p, n, ALPHA)

    assert (found.alphas[0], found.alphas[-1]) == (1 / (n + 1), 1.0)
    assert set(found.alphas) <= set(every.tolist())
    assert len(found.alphas) == len(set(found.alphas)) <= 60
    assert found.inliers_flagged == pytest.approx(found.alphas)
    assert found.outliers_flagged == {"same": found.inliers_flagged}


def test_p_values_are_reported_with_the_luck_that_they_need(p):
    """Chance of so many false alarms at the rank of alpha; inliers in twentieths of [0, 1], whatever they reach."""
    found = p_value_report(p, 99, ALPHA)

    flagged = (p[INLIERS] <= ALPHA).sum()
    assert found.chance_of_false_alarms == pytest.approx(betabinom.sf(flagged - 1, 120, 10, 90))
    assert list(found.outliers_flagged) == ["far", INLIERS]
    low = p_value_report({INLIERS: np.array([0.01, 0.02, 0.07])}, 99, ALPHA)
    assert low.inlier_histogram == [2, 1, *[0] * (P_VALUE_BINS - 2)]
    assert P_VALUE_BINS == 20


def test_a_histogram_counts_every_row_on_one_scale():
    """Extremes and infinities in the outermost bins, which end where all but a few rows lie."""
    inliers, far = np.linspace(0, 1, 500), np.append(np.linspace(1, 2, 500), [50.0, np.inf, -np.inf])

    found = histogram({INLIERS: inliers, key("far"): far, key("none"): np.array([np.inf])})

    finite = np.concatenate([inliers, far[:-2]])
    assert (found.edges[0], found.edges[-1]) == pytest.approx(tuple(np.quantile(finite, [0.001, 0.99])))
    assert len(found.edges) == SCORE_BINS + 1 == 41
    assert (sum(found.inliers), {k: sum(v) for k, v in found.outliers.items()}) == (500, {"far": 503, "none": 1})
    assert found.outliers["far"][0] == 1  # that at -inf
    assert found.outliers["none"] == [0] * (SCORE_BINS - 1) + [1]


@pytest.mark.parametrize("value", [3.0, np.inf])
def test_a_histogram_of_one_value_has_a_width(value):
    """Equal scores, and scores that are all infinite, give no scale."""
    found = histogram({INLIERS: np.full(4, value)})

    assert (np.diff(found.edges) > 0).all()
    assert sum(found.inliers) == 4
