"""How likely it is that so many inliers are flagged by luck alone. Needs no scipy, which recalibrating lacks."""

from __future__ import annotations

import math

UNLIKE = 1e-4
"""Chance below which rows are said to be unlike the calibration rows: they may be like them, so rarely."""


def chance_of_false_alarms(count: int, rows: int, k: int, n: int) -> float:
    """Chance that at least `count` of `rows` inliers get one of the k smallest p-values, by luck alone.

    Exact for continuous scores of exchangeable rows, of both samples: `count` inliers are flagged where, of the
    count + k - 1 strangest rows of both, fewer than k are calibration rows, which is a hypergeometric tail. The same as
    the beta-binomial tail (Vovk 2012). A small value says that these inliers are not like the calibration rows.

    Args:
        count: inliers flagged.
        rows: inliers in all.
        k: how many of the n + 1 possible p-values are flagged; see `softkin.conformal.rank`.
        n: calibration rows.
    """
    if count <= 0 or k > n:
        return 1.0
    strangest = count + k - 1
    logs = (
        _log_binomial(rows, inliers) + _log_binomial(n, strangest - inliers) - _log_binomial(n + rows, strangest)
        for inliers in range(count, min(rows, strangest) + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
