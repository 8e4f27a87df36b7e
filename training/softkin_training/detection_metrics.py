"""How well a score separates outliers from inliers, and what a p-value really gives at its alpha.

Higher score = more outlying. Every metric counts thresholds that the scores can really have: rows of equal score are
flagged together. +inf is a score like any other; NaN is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, ks_2samp, kstest, rankdata

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its exact binomial interval."""

    value: float
    low: float
    high: float
    """95 % Clopper-Pearson interval."""
    count: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """Kolmogorov-Smirnov: how far inlier p-values are from uniform."""

    statistic: float
    """Largest distance between the shares of p-values <= t and t, over all t."""
    p_value_known: float
    """One-sample test. It takes the calibration set for infinite, so it rejects too often where that is small."""
    p_value: float | None
    """Two-sample test of inlier scores against calibration scores: exact for exchangeable rows in the limit of many,
    conservative at ties. None where the calibration scores are not at hand."""


def rate(hits: NDArray[np.bool_]) -> Rate:
    """Share of `hits` with its 95 % Clopper-Pearson interval (Clopper & Pearson 1934)."""
    k, n = int(hits.sum()), len(hits)
    return Rate(
        value=float(hits.mean()),
        low=float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0,
        high=float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0,
        count=k,
        rows=n,
    )


def auroc(inliers: Floats, outliers: Floats) -> float:
    """Area under the ROC curve with outliers as positives: P(outlier scores higher), ties count half."""
    ranks = rankdata(np.concatenate([inliers, outliers]))
    n, m = len(inliers), len(outliers)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def aupr_out(inliers: Floats, outliers: Floats) -> float:
    """Average precision with outliers as positives; see `_average_precision`."""
    return _average_precision(outliers, inliers)


def aupr_in(inliers: Floats, outliers: Floats) -> float:
    """Average precision with inliers as positives, which a low score marks; see `_average_precision`."""
    return _average_precision(-np.asarray(inliers), -np.asarray(outliers))


def fpr95(inliers: Floats, outliers: Floats) -> float:
    """Share of inliers flagged by the threshold that catches 95 % of outliers (outliers positive: OpenOOD's FPR@95)."""
    return _false_positives_at_95(outliers, inliers)


def fpr95_id(inliers: Floats, outliers: Floats) -> float:
    """Share of outliers accepted by the threshold that keeps 95 % of inliers (inliers positive: the papers' FPR95)."""
    return _false_positives_at_95(-np.asarray(inliers), -np.asarray(outliers))


def roc(inliers: Floats, outliers: Floats, false_positive_rates: Sequence[float]) -> list[float]:
    """The ROC curve with outliers as positives: the largest share of them caught at no more than each given rate."""
    caught, flagged = _counts(outliers, inliers)
    allowed = np.floor(np.asarray(false_positive_rates) * len(inliers) + 1e-9)
    at = np.searchsorted(flagged, allowed, side="right") - 1
    return [float(share) for share in np.where(at >= 0, caught[at] / len(outliers), 0.0)]


def uniformity(p_values: Floats, scores: Floats, calibration: Floats | None) -> Uniformity:
    """Whether inlier p-values are uniform.

    Args:
        p_values: `[m]` of inliers.
        scores: `[m]` the scores behind them.
        calibration: `[n]` calibration scores, None where they are not at hand.
    """
    known = kstest(p_values, "uniform", method="asymp")
    # Asymptotic: the exact law is slow for thousands of rows and gives up on some of them.
    two = None if calibration is None else ks_2samp(scores, calibration, method="asymp")
    return Uniformity(
        statistic=float(known.statistic),
        p_value_known=float(known.pvalue),
        p_value=None if two is None else float(two.pvalue),
    )


def _counts(positives: Floats, negatives: Floats) -> tuple[Counts, Counts]:
    """Positives and negatives at or above each distinct score, from the highest score down."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    at_or_above = [len(a) - np.searchsorted(np.sort(a), thresholds, side="left") for a in (positives, negatives)]
    return at_or_above[0].astype(np.int64), at_or_above[1].astype(np.int64)


def _average_precision(positives: Floats, negatives: Floats) -> float:
    """Sum over thresholds of precision times the recall gained there; scikit-learn's `average_precision_score`.

    OpenOOD and pytorch-ood take the trapezoidal area under the same points, which is too optimistic (Davis & Goadrich
    2006). Both depend on how many rows of each kind there are: do not compare between sets of different size.
    """
    caught, flagged = _counts(positives, negatives)
    gained = np.diff(caught, prepend=0) / len(positives)
    return float((gained * caught / (caught + flagged)).sum())


def _false_positives_at_95(positives: Floats, negatives: Floats) -> float:
    """Share of negatives at or above the highest threshold that at least 95 % of positives reach."""
    caught, flagged = _counts(positives, negatives)
    first = int((20 * caught >= 19 * len(positives)).argmax())
    return float(flagged[first] / len(negatives))
