"""The promise: P(p <= alpha) <= alpha for inliers, over the draw of calibration rows and the row scored."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from softkin import Detector, conformal

LEVEL = 1e-4
"""Chance that a correct implementation fails one of these tests."""
CALIBRATION_ROWS = 99
REPEATS = 3000


@pytest.fixture(scope="module")
def splits(tiny):
    """Scores of fresh inliers: REPEATS independent draws of calibration rows and one row to test."""
    rng = np.random.default_rng(1)
    spread = tiny.bank.x[tiny.bank.y == 0].std(axis=0).mean()
    centers = np.stack([tiny.bank.x[tiny.bank.y == j].mean(axis=0) for j in range(3)])
    n = REPEATS * (CALIBRATION_ROWS + 1)
    x = (centers[rng.integers(0, 3, n)] + spread * rng.normal(size=(n, centers.shape[1]))).astype(np.float32)
    return Detector.load(tiny.path, device="cpu").score(x).outlier_score.reshape(REPEATS, -1)


def false_alarms(splits: np.ndarray, alpha: float) -> int:
    """How many test rows are flagged at alpha."""
    return sum(bool(conformal.p_values(row[:1], np.sort(row[1:]))[0] <= alpha) for row in splits)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.5])
def test_false_alarms_match_alpha(splits, alpha):
    """Continuous scores, alpha (n + 1) whole: the rate is alpha exactly, so the count is binomial."""
    count = false_alarms(splits, alpha)

    low, high = binom.interval(1 - LEVEL, REPEATS, alpha)
    assert low <= count <= high


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.5])
def test_ties_never_raise_false_alarms_above_alpha(splits, alpha):
    """Scores cut to a coarse grid, most of them tied: deterministic p-values stay on the safe side."""
    middle, step = np.median(splits), splits.std() / 2
    tied = middle + step * np.maximum(np.round((splits - middle) / step), 0)

    assert (tied == middle).mean() > 0.4
    assert false_alarms(tied, alpha) <= binom.ppf(1 - LEVEL, REPEATS, alpha)


def test_the_test_would_notice_a_missing_plus_one(splits):
    """p = #{cal >= s} / n, a known fault of public implementations, fails the same check."""
    alpha = 1 / CALIBRATION_ROWS
    wrong = sum((row[1:] >= row[0]).sum() / CALIBRATION_ROWS <= alpha for row in splits)

    assert wrong > binom.ppf(1 - LEVEL, REPEATS, alpha)
