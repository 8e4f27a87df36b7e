"""Certificates: what the false-alarm rate of one calibration set, the one at hand, can be.

A p-value keeps alpha on average over calibration sets. Given one set of n rows, the rate at which fresh inliers get
one of its k smallest p-values is itself random: Beta(k, n + 1 - k) for continuous scores, as an order statistic of
uniforms, and less where scores tie (Vovk 2012, "Conditional validity of inductive conformal predictors").

Smoothed p-values toss a coin where scores tie, and then the rate is E(X | calibration scores) of such an X, a mean over
the orders that tied rows might have had. It may exceed the quantile of X more often than X does (rank 1 of 100 rows at
confidence 0.95: in up to 13 % of calibration sets). What it exceeds as rarely as asked for is the mean b of X beyond
that quantile: were E(X | scores) > b on sets of chance c > 1 - confidence, then so were the mean of X on these sets,
which is at most its mean beyond the quantile of 1 - c, and so at most b.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from softkin.conformal import rank

DEFAULT_CONFIDENCE = 0.95
REACH, FEWEST = 12, 50
"""Standard deviations, and further successes, away from the mode where a binomial distribution is 0 to 25 digits."""
ROUNDING = 1e-12
"""Relative error up to which a chance counts as equal to 1 - confidence, as (1 - 0.3)^2 and 1 - 0.51 are."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the false-alarm rate of one calibration set can be."""

    alpha: float
    confidence: float
    """Over the draw of the calibration rows."""
    false_alarm_bound: float
    """The true rate at `alpha` does not exceed this."""
    smallest_certified: float
    """The smallest rate that guarantee `certified` can be asked for."""


def certify(alpha: float, n: int, confidence: float = DEFAULT_CONFIDENCE) -> Certificate:
    """The certificate of n calibration rows at alpha."""
    return Certificate(
        alpha=alpha,
        confidence=confidence,
        false_alarm_bound=false_alarm_bound(rank(alpha, n), n, confidence),
        smallest_certified=smallest_certified(n, confidence),
    )


@lru_cache(maxsize=256)
def false_alarm_bound(k: int, n: int, confidence: float) -> float:
    """The rate that inliers with one of the k smallest p-values do not exceed, with `confidence`.

    The quantile of Beta(k, n + 1 - k): the x at which n draws have fewer than k successes with chance 1 - confidence.

    Args:
        k: how many of the n + 1 possible p-values are flagged, 0 to n + 1; see `softkin.conformal.rank`.
        n: calibration rows.
        confidence: over the draw of the calibration rows, in (0, 1).

    Returns:
        In [0, 1].
    """
    if k == 0:
        return 0.0
    if k > n:
        return 1.0
    low, high = k / (n + 1) / 1e6, 1.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _chance_of_at_most(k - 1, n, middle) > 1 - confidence else (low, middle)
    return high


@lru_cache(maxsize=256)
def smoothed_bound(flagged: float, n: int, confidence: float) -> float:
    """The rate that inliers with a smoothed p-value of at most flagged / (n + 1) do not exceed, with `confidence`.

    The mean of Beta(k, n + 1 - k) beyond its quantile, interpolated between ranks k: there the rate is a mixture of
    those of two ranks, and such means add up to no less than that of a sum.

    Args:
        flagged: 0 to n + 1.
        n: calibration rows.
        confidence: over the draw of the calibration rows, in (0, 1).

    Returns:
        In [flagged / (n + 1), 1].
    """
    k = math.floor(flagged)
    share = flagged - k
    return (1 - share) * _mean_beyond(k, n, confidence) + share * _mean_beyond(k + 1, n, confidence)


def _mean_beyond(k: int, n: int, confidence: float) -> float:
    quantile = false_alarm_bound(k, n, confidence)
    if k == 0 or k > n:
        return quantile
    # x times the density of Beta(k, n + 1 - k) is k / (n + 1) times that of Beta(k + 1, n + 1 - k).
    mean = k / (n + 1) * _chance_of_at_most(k, n + 1, quantile) / (1 - confidence)
    return min(max(mean, quantile), 1.0)  # rounding: near 1 the density beyond the quantile may come out as none


@lru_cache(maxsize=256)
def certified_rank(alpha: float, n: int, confidence: float) -> int:
    """The largest k whose `false_alarm_bound` is at most alpha; 0 where n rows certify nothing at alpha."""
    first, cdf = binomial_cdf(n, alpha)
    return min(first + int(np.searchsorted(cdf, (1 - confidence) * (1 + ROUNDING), side="right")), n)


@lru_cache(maxsize=256)
def smoothed_certified(alpha: float, n: int, confidence: float) -> float:
    """The largest `flagged` whose `smoothed_bound` is at most alpha: as a rule a little less than `certified_rank`.

    Between 0 and 1 where n rows barely certify their smallest p-value; 0 where they certify nothing at alpha.
    """
    most = certified_rank(alpha, n, confidence)
    if most == 0:
        return 0.0
    below, step = most, 1  # the answer lies close by: every bound takes time that grows with n
    while smoothed_bound(below, n, confidence) > alpha:
        below, step = max(below - step, 0), 2 * step
    k = below + bisect_right(range(below + 1, most + 1), alpha, key=lambda k: smoothed_bound(k, n, confidence))
    low, high = (smoothed_bound(j, n, confidence) for j in (k, k + 1))
    return k + (alpha - low) / (high - low)


def rows_to_certify(alpha: float, confidence: float) -> int:
    """The fewest calibration rows with which anything can be certified at alpha: (1 - alpha)^n <= 1 - confidence.

    As for alpha 10^-18 where it is less: floating-point numbers go on to where no count of rows can follow.
    """
    of_one = math.log1p(-max(alpha, 1e-18))
    return math.ceil(math.log1p(-confidence) / of_one * (1 - 1e-14))  # equal but for rounding is enough


def smallest_certified(n: int, confidence: float) -> float:
    """The smallest alpha at which n calibration rows certify anything."""
    return -math.expm1(math.log1p(-confidence) / n)


def _chance_of_at_most(k: int, n: int, x: float) -> float:
    """The chance of at most k successes in n draws that succeed with chance x, x in (0, 1]; 0 <= k < n."""
    if x >= 1.0:
        return 0.0
    first, cdf = binomial_cdf(n, x)
    return 0.0 if k < first else float(cdf[min(k - first, len(cdf) - 1)])


def binomial_cdf(n: int, x: float) -> tuple[int, NDArray[np.float64]]:
    """The cumulative binomial distribution of n draws of chance x, x in (0, 1), where it is not 0 or 1 to 25 digits.

    Only that part is computed, so that memory and time grow with the square root of n and not with n.

    Returns:
        A number of successes k; and the chances of at most k, k + 1, ... successes, ascending.
    """
    mode = min(math.floor((n + 1) * x), n)
    reach = math.ceil(REACH * math.sqrt(n * x * (1 - x))) + FEWEST
    first, last = max(mode - reach, 0), min(mode + reach, n)
    i = np.arange(first + 1, last + 1)
    log_pmf = np.concatenate([[0.0], np.cumsum(np.log((n + 1 - i) / i) + math.log(x) - math.log1p(-x))])
    cdf = np.cumsum(np.exp(log_pmf - log_pmf[mode - first]))
    return first, cdf / cdf[-1]
