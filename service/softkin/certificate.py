"""Certificates: what the false-alarm rate of one calibration set, the one at hand, can be.

A p-value keeps alpha on average over calibration sets. Given one set of n rows, the rate at which fresh inliers get
one of its k smallest p-values is itself random: Beta(k, n + 1 - k) for continuous scores, as an order statistic of
uniforms, and less where scores tie (Vovk 2012, "Conditional validity of inductive conformal predictors").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from softkin.conformal import rank

DEFAULT_CONFIDENCE = 0.95


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
        if middle in (low, high):
            break
        low, high = (middle, high) if binomial_cdf(k - 1, n, middle)[-1] > 1 - confidence else (low, middle)
    return high


@lru_cache(maxsize=256)
def certified_rank(alpha: float, n: int, confidence: float) -> int:
    """The largest k whose `false_alarm_bound` is at most alpha; 0 where n rows certify nothing at alpha."""
    # At confidence 0.5 and above the bound lies above k / (n + 1), so no k past alpha's own rank can keep alpha.
    most = rank(alpha, n) if confidence >= 0.5 else n
    return min(int((binomial_cdf(most, n, alpha) <= 1 - confidence).sum()), n)


def rows_to_certify(alpha: float, confidence: float) -> int:
    """The fewest calibration rows with which anything can be certified at alpha: (1 - alpha)^n <= 1 - confidence."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-alpha) - 1e-9)


def smallest_certified(n: int, confidence: float) -> float:
    """The smallest alpha at which n calibration rows certify anything."""
    return -math.expm1(math.log1p(-confidence) / n)


def binomial_cdf(most: int, n: int, x: float) -> NDArray[np.float64]:
    """`[most + 1]`: chance of at most 0, 1, ... `most` successes in n draws of chance x, x in (0, 1]; most < n."""
    if x >= 1.0:
        return np.zeros(most + 1)
    i = np.arange(1, most + 1)
    steps = np.log((n + 1 - i) / i) + math.log(x) - math.log1p(-x)
    log_pmf = n * math.log1p(-x) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)
