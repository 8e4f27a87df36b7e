"""Whether a classifier's probabilities, and a detector's credibility, mean what they say.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin import mass

Floats = NDArray[np.float64]

ECE_BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017 use 15)."""
CREDIBILITY_BINS = 10
"""Bins of the credibility diagram (Papernot & McDaniel 2018 use tenths)."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose probability, or credibility, lies in (low, high]; the first bin holds 0 too."""

    low: float
    high: float
    rows: int
    mean: float | None
    """Mean probability, or credibility, of its rows; None for an empty bin."""
    accuracy: float | None
    """Share of its rows whose class was predicted right; None for an empty bin."""


@dataclass(frozen=True, kw_only=True)
class ClassifierCalibration:
    """The classifier on labelled inliers, and what its probabilities and the credibility are worth."""

    rows: int
    accuracy: float
    ece: float
    adaptive_ece: float
    brier: float
    nll: float
    reliability: tuple[Bin, ...]
    """By the probability of the predicted class."""


def classifier_calibration(logits_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> ClassifierCalibration:
    """Measure a classifier's probabilities.

    Args:
        logits_BC: `[B, C]` logits, finite.
        labels_B: `[B]` true classes.
    """
    logits = logits_BC.astype(np.float64)
    log_p_BC = logits - mass.logsumexp(logits, axis=1)[:, None]
    p_BC = np.exp(log_p_BC)
    confidence, correct = p_BC.max(axis=1), p_BC.argmax(axis=1) == labels_B
    return ClassifierCalibration(
        rows=len(labels_B),
        accuracy=float(correct.mean()),
        ece=expected_calibration_error(confidence, correct),
        adaptive_ece=adaptive_calibration_error(confidence, correct),
        brier=brier_score(p_BC, labels_B),
        nll=float(-np.take_along_axis(log_p_BC, labels_B[:, None], axis=1).mean()),
        reliability=accuracy_by_bin(confidence, correct, ECE_BINS),
    )


def accuracy_by_bin(values_B: Floats, correct_B: NDArray[np.bool_], bins: int) -> tuple[Bin, ...]:
    """Accuracy of the rows in each of `bins` equally wide parts of [0, 1]: a reliability or credibility diagram.

    Args:
        values_B: `[B]` in [0, 1]: probability of the predicted class, or credibility.
        correct_B: `[B]` whether the predicted class is the true one.
        bins: how many.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    at_B = np.searchsorted(edges[1:-1], values_B, side="left")
    rows = np.bincount(at_B, minlength=bins)
    sums = np.bincount(at_B, values_B, bins), np.bincount(at_B, correct_B, bins)
    mean, accuracy = ([float(s / n) if n else None for s, n in zip(total, rows, strict=True)] for total in sums)
    return tuple(
        Bin(low=float(edges[i]), high=float(edges[i + 1]), rows=int(rows[i]), mean=mean[i], accuracy=accuracy[i])
        for i in range(bins)
    )


def expected_calibration_error(confidence_B: Floats, correct_B: NDArray[np.bool_], bins: int = ECE_BINS) -> float:
    """ECE (Naeini et al. 2015; Guo et al. 2017, eq. 3): `sum over bins (rows / B) |accuracy - mean confidence|`.

    Bins are equally wide parts of [0, 1]. Returns a value in [0, 1].
    """
    found = accuracy_by_bin(confidence_B, correct_B, bins)
    return float(sum(b.rows * abs((b.accuracy or 0.0) - (b.mean or 0.0)) for b in found) / len(confidence_B))


def adaptive_calibration_error(confidence_B: Floats, correct_B: NDArray[np.bool_], bins: int = ECE_BINS) -> float:
    """ECE over bins of equally many rows (Nguyen & O'Connor 2015): none is empty or holds nearly all, but for ties.

    Rows of equal confidence go to one bin, so that the value does not depend on the order of rows. In [0, 1].
    """
    n = len(confidence_B)
    at_B = np.searchsorted(np.sort(confidence_B), confidence_B, side="left") * bins // n
    gap = np.bincount(at_B, correct_B.astype(np.float64) - confidence_B)
    return float(np.abs(gap).sum() / n)


def brier_score(p_BC: Floats, labels_B: NDArray[np.int64]) -> float:
    """Mean over rows of `sum_c (p_c - [c is the true class])^2` (Brier 1950), in [0, 2]."""
    truth_BC = np.zeros_like(p_BC)
    np.put_along_axis(truth_BC, labels_B[:, None], 1.0, axis=1)
    return float(np.square(p_BC - truth_BC).sum(axis=1).mean())
