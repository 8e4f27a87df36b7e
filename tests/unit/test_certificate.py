"""What one calibration set's false-alarm rate can be, against SciPy's beta distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from softkin.certificate import (
    DEFAULT_CONFIDENCE,
    binomial_cdf,
    certified_rank,
    certify,
    false_alarm_bound,
    rows_to_certify,
    smallest_certified,
)
from softkin.conformal import rank

CONFIDENCES = (0.5, 0.9, 0.95, 0.99, 0.999999)


def ranks(n):
    """The smallest, the largest and some ranks between, on a logarithmic scale."""
    return sorted({1, 2, 3, n // 2, n - 1, n, *np.geomspace(1, n, 7).astype(int).tolist()} & set(range(1, n + 1)))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 19, 99, 300, 1000, 9999, 100_000])
def test_the_bound_is_the_quantile_of_the_beta_distribution(n):
    """Beta(k, n + 1 - k) at the confidence, to 1e-9 relative, from the smallest rank to the largest."""
    for k in ranks(n):
        for confidence in CONFIDENCES:
            expected = beta.ppf(confidence, k, n + 1 - k)
            assert false_alarm_bound(k, n, confidence) == pytest.approx(expected, rel=1e-9), (k, confidence)


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_the_bound_is_that_quantile_at_any_rank_and_confidence(n, data):
    """Confidences below one half included, where the bound may lie under alpha."""
    k, confidence = data.draw(st.integers(1, n)), data.draw(st.floats(1e-3, 1 - 1e-6))

    expected = beta.ppf(confidence, k, n + 1 - k)

    assert false_alarm_bound(k, n, confidence) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [1, 99, 5000])
def test_nothing_flagged_has_no_false_alarms_and_everything_flagged_has_all(n):
    """Rank 0 is bounded by 0, rank n + 1 by 1, at every confidence."""
    for confidence in (0.01, *CONFIDENCES):
        assert false_alarm_bound(0, n, confidence) == 0.0
        assert false_alarm_bound(n + 1, n, confidence) == 1.0


def test_the_bound_rises_with_rank_and_confidence_and_falls_with_rows():
    """More flagged, or more certainty asked: a larger bound; more calibration rows at the same share: a smaller one."""
    by_rank = [false_alarm_bound(k, 99, 0.95) for k in range(101)]
    by_confidence = [false_alarm_bound(5, 99, c) for c in CONFIDENCES]
    by_rows = [false_alarm_bound(k, 100 * k - 1, 0.95) for k in (1, 2, 5, 20, 100)]

    assert (np.diff(by_rank) > 0).all()
    assert (np.diff(by_confidence) > 0).all()
    assert (np.diff(by_rows) < 0).all()
    assert min(by_rows) > 0.01


@pytest.mark.parametrize(("n", "x"), [(1, 0.3), (7, 0.999), (300, 0.05), (5000, 1e-6), (100_000, 0.5), (40, 1.0)])
def test_the_binomial_distribution_function_is_scipys(n, x):
    """Every count up to the most asked for; nothing underflows to a wrong sum."""
    for most in {0, 1, n // 2, n - 1}:
        found = binomial_cdf(most, n, x)

        assert len(found) == most + 1
        np.testing.assert_allclose(found, binom.cdf(np.arange(most + 1), n, x), rtol=1e-8, atol=1e-300)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1e-4, 0.6), st.floats(0.5, 0.9999))
def test_the_certified_rank_is_the_largest_whose_bound_is_at_most_alpha(n, alpha, confidence):
    """By brute force over all ranks, with SciPy's quantiles; no more is flagged than without a certificate, but one."""
    k = np.arange(1, n + 1)
    bounds = np.append(beta.ppf(confidence, k, n + 1 - k), 1.0)
    if (np.abs(bounds - alpha) < 1e-9 * alpha).any():
        return  # on the edge, where the last bits of SciPy decide

    found = certified_rank(alpha, n, confidence)

    assert found == (bounds <= alpha).sum()
    assert found <= rank(alpha, n) + 1


@pytest.mark.parametrize(("n", "expected"), [(298, 0), (299, 1), (1000, 5), (5000, 39), (10_000, 84)])
def test_known_ranks_at_one_percent_and_confidence_95(n, expected):
    """Figures that the page on guarantees states; 299 rows are the fewest that certify 1 %."""
    assert certified_rank(0.01, n, 0.95) == expected
    assert (beta.ppf(0.95, np.arange(1, n + 1), n + 1 - np.arange(1, n + 1)) <= 0.01).sum() == expected
    assert rows_to_certify(0.01, 0.95) == 299


@settings(deadline=None)
@given(st.floats(1e-5, 0.99), st.floats(0.01, 0.9999))
def test_the_rows_needed_are_enough_and_one_fewer_is_not(alpha, confidence):
    """(1 - alpha)^n <= 1 - confidence, and n is the smallest such number."""
    n = rows_to_certify(alpha, confidence)

    assert n >= 1
    assert binomial_cdf(0, n, alpha)[0] <= (1 - confidence) * (1 + 1e-8)
    assert n == 1 or binomial_cdf(0, n - 1, alpha)[0] > 1 - confidence


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0.01, 0.9999))
def test_rows_needed_and_smallest_certified_are_inverse_to_each_other(n, confidence):
    """n rows certify nothing below their smallest alpha, something above it; and that alpha needs n rows."""
    least = smallest_certified(n, confidence)

    assert rows_to_certify(least, confidence) == n
    assert rows_to_certify(least * (1 - 1e-6), confidence) >= n
    assert certified_rank(least * (1 + 1e-9), n, confidence) == 1
    assert certified_rank(least * (1 - 1e-9), n, confidence) == 0
    assert least == pytest.approx(false_alarm_bound(1, n, confidence), rel=1e-9)


def test_a_certificate_puts_it_together():
    """The bound at the rank of alpha, and the smallest rate that can be certified."""
    found = certify(0.05, 300)

    assert (found.alpha, found.confidence, DEFAULT_CONFIDENCE) == (0.05, 0.95, 0.95)
    assert found.false_alarm_bound == pytest.approx(beta.ppf(0.95, 15, 286), rel=1e-9)  # floor(0.05 * 301) = 15
    assert found.smallest_certified == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)

    other = certify(0.1, 9, 0.5)
    assert other.false_alarm_bound == pytest.approx(1 - 0.5 ** (1 / 9), rel=1e-9)
    assert other.smallest_certified == pytest.approx(1 - 0.5 ** (1 / 9), rel=1e-9)
