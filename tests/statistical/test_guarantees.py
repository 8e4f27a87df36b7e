"""What docs/guarantees.md promises, on real scores: exact tests at a declared level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binom, binomtest

from softkin.certificate import certified_rank, false_alarm_bound
from softkin.conformal import ScoresByClass, class_conditional_p_values, p_values, rank
from trials import TIED_SHARE, deterministic, real_scores, realised_rates, select_in_batches, split_p_values

LEVEL = 1e-4
"""Chance that a correct implementation fails one of these tests."""
SPLITS = 20_000
DRAWS, BATCHES = 1000, 500
ALPHAS = (0.001, 0.01, 0.05, 0.1)
N = 999


@pytest.fixture(scope="module", params=[False, True], ids=["density", "counts with 60 % ties"])
def splits(request):
    """Deterministic and smoothed p-values of one row in each of SPLITS splits of real inliers."""
    inliers = real_scores(tied=request.param).inliers
    ties = (inliers == inliers.min()).mean()
    assert ties >= TIED_SHARE if request.param else ties < 0.01
    return split_p_values(inliers, N, SPLITS, np.random.default_rng(0), [deterministic, p_values])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_smoothed_p_values_raise_false_alarms_at_rate_alpha_exactly(splits, alpha):
    """Two-sided: neither more nor fewer, ties or not."""
    count = int((splits[1] <= alpha).sum())

    assert binomtest(count, SPLITS, alpha).pvalue > LEVEL


@pytest.mark.parametrize("alpha", ALPHAS)
def test_deterministic_p_values_never_raise_more_false_alarms_than_alpha(splits, alpha):
    """One-sided: ties may only lower the rate."""
    count = int((splits[0] <= alpha).sum())

    assert binomtest(count, SPLITS, alpha, alternative="greater").pvalue > LEVEL


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_published_dknn_p_values_would_fail_the_same_test(alpha):
    """Zeros trimmed and no +1 (the reference code of Papernot & McDaniel 2018): far from alpha on the tied counts."""

    def trimmed(scores, calibration, u):
        kept = calibration[calibration > calibration[0]]
        return (len(kept) - np.searchsorted(kept, scores, side="left")) / len(kept)

    p = split_p_values(real_scores(tied=True).inliers, N, SPLITS, np.random.default_rng(0), [trimmed])[0]

    assert binomtest(int((p <= alpha).sum()), SPLITS, alpha).pvalue < LEVEL


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 1000), (0.01, 1000), (0.1, 200)])
@pytest.mark.parametrize("guarantee", ["marginal", "certified"])
def test_the_certified_rate_is_exceeded_as_rarely_as_stated(alpha, n, guarantee):
    """Rates are counted on all other rows of the pool, so their law under exchangeability is beta-binomial, exactly."""
    inliers, confidence = real_scores().inliers, 0.95
    k = certified_rank(alpha, n, confidence) if guarantee == "certified" else rank(alpha, n)
    bound = alpha if guarantee == "certified" else false_alarm_bound(k, n, confidence)

    rates = realised_rates(inliers, n, k, DRAWS, np.random.default_rng(1))

    m = len(inliers) - n
    exceeded = int((rates > bound).sum())
    expected = betabinom.sf(np.floor(bound * m), m, k, n + 1 - k)
    assert binomtest(exceeded, DRAWS, expected).pvalue > LEVEL
    assert expected < 1 - confidence + 0.01  # m rows show the true rate but for a little noise


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 1000), (0.01, 1000), (0.01, 300)])
def test_the_certificate_covers_at_its_confidence(alpha, n):
    """Over calibration draws from a known law, where the true rate is known without noise: coverage is exact."""
    confidence = 0.95
    k = certified_rank(alpha, n, confidence)
    calibration = np.sort(np.random.default_rng(2).random((DRAWS, n)), axis=1)

    true_rate = 1.0 - calibration[:, n - k]  # the chance of a score above the k-th largest
    marginal_rate = 1.0 - calibration[:, n - rank(alpha, n)]

    assert (true_rate > alpha).sum() <= binom.ppf(1 - LEVEL, DRAWS, 1 - confidence)
    exceeded = int((marginal_rate > false_alarm_bound(rank(alpha, n), n, confidence)).sum())
    assert binomtest(exceeded, DRAWS, 1 - confidence).pvalue > LEVEL


def test_a_thousand_rows_certify_one_per_cent():
    """The fifth largest score; a band over all thresholds would certify nothing below 3.85 %."""
    k = certified_rank(0.01, 1000, 0.95)

    assert k == 5
    assert false_alarm_bound(5, 1000, 0.95) <= 0.01 < false_alarm_bound(6, 1000, 0.95)


def test_class_conditional_p_values_hold_alpha_in_every_predicted_class():
    """Where marginal ones flag some classes several times as often as others."""
    pool, alpha, n, splits = real_scores(), 0.05, 2000, 400
    rng, counts, rows = np.random.default_rng(3), np.zeros((2, 10), int), np.zeros(10, int)
    for _ in range(splits):
        order = rng.permutation(len(pool.inliers))
        scores, classes = pool.inliers[order], pool.predicted_classes[order]
        by_score = np.argsort(scores[:n])
        calibration = ScoresByClass.of(scores[:n][by_score], classes[:n][by_score], 10)
        # The first row of each class after the calibration rows: one draw of that class in each split.
        first = n + np.unique(classes[n:], return_index=True)[1]
        own = class_conditional_p_values(scores[first], classes[first], calibration)
        marginal = p_values(scores[first], scores[:n][by_score])
        rows += 1
        counts += np.stack([own <= alpha, marginal <= alpha])

    limit = binom.ppf(1 - LEVEL / 10, splits, alpha)
    assert (counts[0] <= limit).all()
    assert counts[1].max() > limit


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("outliers", ["MNIST", "notMNIST"])
def test_selection_keeps_the_false_discovery_rate(outliers, share):
    """Mean over batches of real inliers and outliers, with the error of that mean allowed for."""
    pool, rate = real_scores(), 0.1

    found = select_in_batches(
        pool.inliers,
        pool.outliers[outliers],
        n=1000,
        rows=200,
        share=share,
        rate=rate,
        batches=BATCHES,
        rng=np.random.default_rng(4),
    )

    error = found.false_discovery.std() / np.sqrt(BATCHES)
    assert found.false_discovery.mean() <= rate * (1 - share) + 3.7 * error  # 3.7: normal quantile at LEVEL
    assert found.found.mean() > 0.2
