"""Selection over a batch: which rows to call outliers so that few of those called are inliers.

Benjamini & Hochberg (1995) on conformal p-values of one calibration set: these are positively dependent, which keeps
the false discovery rate at most `rate` times the share of inliers (Bates, Candes, Lei, Romano, Sesia 2021, arXiv
2104.08279).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def selection_threshold(p_values: NDArray[np.float64], rate: float) -> float:
    """The p-value at or below which rows are selected; 0 where no row is.

    The largest p_(k) with p_(k) <= k rate / m (Benjamini & Hochberg 1995).

    Args:
        p_values: `[m]` of the whole batch.
        rate: false discovery rate to keep: the expected share of inliers among the selected rows, in (0, 1).
    """
    ordered = np.sort(p_values)
    m = len(ordered)
    passing = np.flatnonzero(ordered * m <= rate * np.arange(1, m + 1))
    return float(ordered[passing[-1]]) if len(passing) else 0.0


def fewest_selectable(m: int, n: int, rate: float) -> int:
    """How many of m rows must have the smallest p-value that n calibration rows give before any can be selected."""
    smallest = 1 / (n + 1)
    k = math.floor(m * smallest / rate)
    # Decided by the comparison that `selection_threshold` makes: the quotient may round to either side.
    return k + int(smallest * m > rate * k)
