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


def _table() -> tuple[Floats, Floats]:
    """Edges `[K]` between which every density is constant, and `[E, K + 1]` the densities between them."""
    start_E, end_E, share_E = _intervals().T
    edges_K = np.unique(np.concatenate([start_E, end_E]))[1:-1]  # without 0 and 1
    middle_K = (np.append(0.0, edges_K) + np.append(edges_K, 1.0)) / 2
    inside_EK = (middle_K > start_E[:, None]) & (middle_K <= end_E[:, None])
    return edges_K, 1.0 - share_E[:, None] + np.where(inside_EK, (share_E / (end_E - start_E))[:, None], 0.0)


_EDGES, _DENSITIES = _table()
_LOG_LOW = np.log(_DENSITIES[:LOW_BETS].mean(axis=0))


def bets(p: Floats) -> Floats:
    """`[E, T]`: every bet's density at p-values `[T]` in (0, 1]."""
    return _DENSITIES.take(np.searchsorted(_EDGES, p), axis=1)


def log_low_bet(p: Floats) -> Floats:
    """`[T]`: log of the mean density of the bets on strange rows."""
    return np.asarray(_LOG_LOW[np.searchsorted(_EDGES, p)])


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
