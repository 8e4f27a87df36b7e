"""Conformal p-values: how often an inlier looks at least as strange.

Exact under exchangeability of the calibration rows and the scored row (Vovk, Gammerman, Shafer 2005, ch. 2):
P(p <= alpha) <= alpha for every alpha.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from softkin.errors import InvalidInputError

Floats = NDArray[np.float64]


def p_values(scores: NDArray[np.floating], calibration: NDArray[np.floating]) -> Floats:
    """`(1 + #{i : calibration_i >= score}) / (n + 1)`; ties count against the row, so alpha is never exceeded.

    Args:
        scores: any shape; higher = stranger. +inf is allowed and gives the smallest p-value.
        calibration: `[n]` sorted ascending, n >= 1: scores of rows that neither the network nor the bank has seen.

    Returns:
        Same shape as `scores`, in [1/(n+1), 1].
    """
    n = len(calibration)
    # A NaN would sort past the end and read as the strangest score of all, hiding a fault of ours.
    assert n >= 1
    assert not np.isnan(scores).any()
    at_least = n - np.searchsorted(calibration, scores, side="left")
    return np.asarray((1.0 + at_least) / (n + 1.0), np.float64)


def smallest_p_value(n: int) -> float:
    """The smallest p-value that n calibration rows can give: 1 / (n + 1)."""
    return 1.0 / (n + 1.0)


def rows_needed(alpha: float) -> int:
    """The fewest calibration rows that can give a p-value of alpha or less."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def check_alpha(alpha: float, n: int) -> float:
    """Return `alpha` if n calibration rows can honour it.

    Raises:
        InvalidInputError: alpha is not in (0, 1), or below 1 / (n + 1), where nothing could ever be flagged.
    """
    if not 0.0 < alpha < 1.0:  # also catches NaN
        raise InvalidInputError("alpha", f"got {alpha:g}; it is a false-alarm rate and must lie strictly in (0, 1)")
    if alpha < smallest_p_value(n):
        least = f"{smallest_p_value(n):.6g}"
        raise InvalidInputError(
            "alpha",
            f"got {alpha:g}, but {n} calibration rows cannot give a p-value below {least}, so nothing could be "
            f"flagged; use alpha >= {least} or at least {rows_needed(alpha)} calibration rows",
        )
    return alpha


def credibility(class_p_values_BC: Floats) -> Floats:
    """Largest class p-value (Papernot & McDaniel 2018, section IV). Returns `[B]`."""
    return np.asarray(class_p_values_BC.max(axis=1))


def confidence(class_p_values_BC: Floats) -> Floats:
    """One minus the second largest class p-value (Papernot & McDaniel 2018, section IV). Returns `[B]`."""
    if class_p_values_BC.shape[1] == 1:
        return np.ones(len(class_p_values_BC))
    return 1.0 - np.partition(class_p_values_BC, -2, axis=1)[:, -2]


def tail_surprise(scores: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """Minus the log p-value of `scores` against `reference`, made continuous: puts different scores on one scale.

    Between reference scores the log p-value is interpolated; past the largest it goes on as an exponential tail whose
    mean excess is that of the top tenth. So two far outliers still differ, where plain p-values would tie at 1/(n+1).
    It is one fixed monotone function of the score, hence conformal p-values of sums of it stay exact as long as the
    calibration rows are not the reference rows.

    Args:
        scores: any shape.
        reference: `[n]` sorted ascending, n >= 2.

    Returns:
        Same shape, at least 0; about the standard exponential distribution for inliers.
    """
    n = len(reference)
    surprise_n = -np.log((n - np.arange(n)) / (n + 1.0))
    inside = np.interp(scores, reference, surprise_n, left=0.0)
    top = reference[int(0.9 * (n - 1)) :]
    mean_excess = float((top - top[0]).mean()) or 1.0  # a tail of equal scores has no scale: take the score's own
    return np.asarray(inside + np.maximum(np.asarray(scores, np.float64) - reference[-1], 0.0) / mean_excess)
