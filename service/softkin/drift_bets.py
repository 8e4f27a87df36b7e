"""What the drift watch bets on: densities on (0, 1], and when each part of the capital begins to bet.

A bet says that beside inliers, whose p-values are uniform, a `share` of all p-values lies in one interval. Its density
is 1 - share outside and 1 - share + share / width inside, so a fair p-value wins nothing in expectation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOW_TAILS, LOW_SHARES = (0.002, 0.01, 0.03, 0.1, 0.3), (0.03, 0.1, 0.3)
"""Strange rows: p-values of at most the tail's width."""
HIGH_TAILS, HIGH_SHARES = (0.03, 0.1, 0.3), (0.1, 0.3)
"""Rows that are too familiar, such as rows of the training set: the same for p-values close to 1."""
BAND_STARTS, BAND_WIDTH, BAND_SHARE = tuple(k / 10 for k in range(1, 9)), 0.1, 0.3
"""Rows that are all alike, such as those of a sensor that is stuck: p-values in one band between the tails."""
LOW_BETS = len(LOW_TAILS) * len(LOW_SHARES)
"""The bets on strange rows come first."""

RESERVE = 0.5
"""Capital that never bets: an alarm needs twice the winnings, so the level holds with room to spare, for a few rows of
delay; and while nothing drifts the martingale stays between this and 1."""


def _intervals() -> Floats:
    """`[E, 3]`: open lower end, closed upper end, and share of each bet."""
    low = [(0.0, tail, share) for tail in LOW_TAILS for share in LOW_SHARES]
    high = [(1.0 - tail, 1.0, share) for tail in HIGH_TAILS for share in HIGH_SHARES]
    bands = [(start, start + BAND_WIDTH, BAND_SHARE) for start in BAND_STARTS]
    return np.array(low + high + bands)


_START, _END, _SHARE = _intervals().T
_OUTSIDE = 1.0 - _SHARE
_INSIDE = _OUTSIDE + _SHARE / (_END - _START)


def bets(p: Floats) -> Floats:
    """`[T, E]`: every bet's density at p-values `[T]` in (0, 1]."""
    return np.where((p[:, None] > _START) & (p[:, None] <= _END), _INSIDE, _OUTSIDE)


def kept(t: NDArray[np.int64]) -> Floats:
    """Capital that is not yet staked after row t >= 0: RESERVE, and of the rest 1 / (1 + ln(1 + t)).

    It falls as slowly as that so that a change after a million rows costs only e^20 of evidence.
    """
    return RESERVE + (1.0 - RESERVE) * _unstaked(t)


def staked(t: NDArray[np.int64]) -> Floats:
    """Capital staked at row t >= 1: kept(t - 1) - kept(t), without cancellation."""
    return (1.0 - RESERVE) * np.log1p(1.0 / t) * _unstaked(t - 1) * _unstaked(t)


def _unstaked(t: NDArray[np.int64]) -> Floats:
    return 1.0 / (1.0 + np.log1p(t))
