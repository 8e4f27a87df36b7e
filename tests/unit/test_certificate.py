"""What one calibration set's false-alarm rate can be, against SciPy's beta distribution."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binom, multinomial

from softkin.certificate import (
    DEFAULT_CONFIDENCE,
    binomial_cdf,
    certified_rank,
    certify,
    false_alarm_bound,
    rows_to_certify,
    smallest_certified,
    smoothed_bound,
    smoothed_certified,
)
from softkin.conformal import rank, rounded_up
from softkin.errors import InvalidInputError
from softkin.verdicts import check_rule

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


def test_the_bound_of_a_billion_rows_takes_no_memory_for_each():
    """A candidate may be compared with live traffic for weeks; a number for every flagged row would be gigabytes."""
    expected = beta.ppf(0.95, 5 * 10**7, 95 * 10**7 + 1)
    tracemalloc.start()

    found = false_alarm_bound(5 * 10**7, 10**9, 0.95)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx(expected, rel=1e-12)
    assert peak < 20e6


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


@pytest.mark.parametrize(("n", "x"), [(1, 0.3), (7, 0.999), (300, 0.05), (5000, 1e-6), (100_000, 0.5), (10**8, 0.7)])
def test_the_binomial_distribution_function_is_scipys(n, x):
    """Wherever it is not 0 or 1 to 25 digits; nothing underflows to a wrong sum."""
    first, found = binomial_cdf(n, x)

    np.testing.assert_allclose(found, binom.cdf(first + np.arange(len(found)), n, x), rtol=1e-8, atol=1e-28)
    assert first == 0 or binom.cdf(first - 1, n, x) < 1e-25
    assert first + len(found) == n + 1 or binom.sf(first + len(found) - 1, n, x) < 1e-25


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


@pytest.mark.parametrize(("n", "alpha", "confidence"), [(2000, 0.5, 0.45), (2000, 0.3, 0.05), (10, 0.5, 1e-13)])
def test_below_confidence_one_half_more_is_certified_than_is_flagged_without(n, alpha, confidence):
    """By the same brute force; never the rank that flags everything."""
    k = np.arange(1, n + 1)

    found = certified_rank(alpha, n, confidence)

    assert found == (beta.ppf(confidence, k, n + 1 - k) <= alpha).sum() > rank(alpha, n) + 1


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
    assert binom.cdf(0, n, alpha) <= (1 - confidence) * (1 + 1e-8)
    assert n == 1 or binom.cdf(0, n - 1, alpha) > (1 - confidence) * (1 - 1e-8)


@pytest.mark.parametrize("alpha", [5e-324, 1e-310, 1e-19])
def test_there_is_a_number_of_rows_for_every_rate_however_small(alpha):
    """A caller may ask for it, and is told."""
    assert rows_to_certify(alpha, 0.95) == rows_to_certify(1e-18, 0.95) > 10**18

    with pytest.raises(InvalidInputError, match=r"alpha: .* certify nothing .* or at least 2995732273\d* calibra"):
        check_rule("certified", alpha=alpha, confidence=0.95, calibration_size=99, class_sizes=[50, 49])


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


@pytest.mark.parametrize(("alpha", "confidence"), [(0.3, 0.51), (0.3, 0.3), (0.95, 0.95), (0.99, 0.99), (0.5, 0.875)])
def test_what_is_named_as_enough_is_enough(alpha, confidence):
    """Where (1 - alpha)^n is 1 - confidence exactly, rounding does not refuse the rows or the rate that were named."""
    n = rows_to_certify(alpha, confidence)

    assert (1 - alpha) ** n == pytest.approx(1 - confidence, rel=1e-12)
    assert certified_rank(alpha, n, confidence) == 1
    assert certified_rank(float(rounded_up(smallest_certified(n, confidence))), n, confidence) == 1


@pytest.mark.parametrize("n", [1, 2, 10, 99, 1000])
def test_the_smoothed_bound_is_the_mean_of_the_beta_distribution_beyond_its_quantile(n):
    """At whole ranks; by integrals over SciPy's quantiles."""
    for k in ranks(n):
        for confidence in (0.01, 0.5, 0.95, 0.999):
            expected = quad(lambda c, k=k: beta.ppf(c, k, n + 1 - k), confidence, 1)[0] / (1 - confidence)
            assert smoothed_bound(k, n, confidence) == pytest.approx(expected, rel=1e-6), (k, confidence)
    assert smoothed_bound(0, n, 0.95) == 0.0
    assert smoothed_bound(n + 1, n, 0.95) == 1.0
    assert smoothed_bound(n, n, 1 - 1e-12) == pytest.approx(1.0, rel=1e-2)  # too close to 1 for a mean
    assert smoothed_bound(n, n, 1 - 1e-16) == pytest.approx(1.0, rel=1e-2)


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_the_smoothed_bound_rises_without_steps_and_never_below_what_is_flagged(n, data):
    """A rate has the mean flagged / (n + 1), which no bound may undercut where all scores tie."""
    confidence = data.draw(st.floats(0.01, 0.999))
    low, high = sorted(data.draw(st.tuples(*[st.floats(0, n + 1)] * 2)))

    bounds = [smoothed_bound(flagged, n, confidence) for flagged in (low, high)]

    assert bounds[0] <= bounds[1] + 1e-12
    assert bounds[0] >= low / (n + 1) - 1e-9
    assert bounds[1] <= 1


@settings(deadline=None)
@given(st.integers(2, 10), st.lists(st.floats(0.02, 1), min_size=2, max_size=3), st.floats(0, 1), st.floats(0.3, 0.99))
def test_smoothed_rates_exceed_their_bound_as_rarely_as_stated_where_scores_tie(n, law, share, confidence):
    """Exactly: over all calibration sets of two or three values. The quantile alone is exceeded too often."""
    flagged, chance = share * (n + 1), np.array(law) / sum(law)
    bound = smoothed_bound(flagged, n, confidence)
    exceeded = 0.0
    for counts in product(range(n + 1), repeat=len(law)):  # calibration rows with each value, strangest first
        if sum(counts) == n:
            above = np.cumsum((0, *counts[:-1]))
            rate = chance @ np.clip((flagged - above) / (1 + np.array(counts)), 0, 1)
            exceeded += multinomial.pmf(counts, n, chance) * (rate > bound + 1e-9)

    assert exceeded <= 1 - confidence + 1e-9


def test_the_quantile_alone_is_no_bound_for_smoothed_rates():
    """At n = 100, two values, one of chance 0.026: the rate is above the quantile of rank 1 in one set of fourteen."""
    n, q, bound = 100, 0.026, false_alarm_bound(1, 100, 0.95)
    strange = np.arange(n + 1)  # calibration rows with the strange value
    rates = q / (1 + strange) + (1 - q) * np.clip((1 - strange) / (1 + n - strange), 0, 1)

    exceeded = binom.pmf(strange, n, q)[rates > bound].sum()

    assert exceeded > 0.07
    assert binom.pmf(strange, n, q)[rates > smoothed_bound(1, n, 0.95)].sum() <= 0.05


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1e-4, 0.99), st.floats(0.01, 0.9999))
@example(100, 0.008, 0.1)  # less than one, though two are certified without
def test_what_is_certified_with_smoothing_is_the_most_that_keeps_alpha(n, alpha, confidence):
    """Its bound is alpha; and it is nothing exactly where nothing is certified without smoothing."""
    found = smoothed_certified(alpha, n, confidence)

    assert (found > 0) == (certified_rank(alpha, n, confidence) > 0)
    if found:
        assert smoothed_bound(found, n, confidence) == pytest.approx(alpha, rel=1e-9)
        assert found / (n + 1) <= alpha * (1 + 1e-9)


def test_a_certificate_puts_it_together():
    """The bound at the rank of alpha, and the smallest rate that can be certified."""
    found = certify(0.05, 300)

    assert (found.alpha, found.confidence, DEFAULT_CONFIDENCE) == (0.05, 0.95, 0.95)
    assert found.false_alarm_bound == pytest.approx(beta.ppf(0.95, 15, 286), rel=1e-9)  # floor(0.05 * 301) = 15
    assert found.smallest_certified == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)

    other = certify(0.1, 9, 0.5)
    assert other.false_alarm_bound == pytest.approx(1 - 0.5 ** (1 / 9), rel=1e-9)
    assert other.smallest_certified == pytest.approx(1 - 0.5 ** (1 / 9), rel=1e-9)
