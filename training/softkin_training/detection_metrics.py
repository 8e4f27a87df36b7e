"""How well a score separates outliers from inliers, and what a p-value really gives at its alpha."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its exact binomial interval."""

    value: float
    low: float
    high: float
    """95 % Clopper-Pearson interval."""
    count: int
    rows: int


def rate(hits: NDArray[np.bool_]) -> Rate:
    """Share of `hits` with its 95 % Clopper-Pearson interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "exact")
    return Rate(
        value=float(hits.mean()),
        low=float(interval.low),
        high=float(interval.high),
        count=int(hits.sum()),
        rows=len(hits),
    )


def auroc(inliers: Floats, outliers: Floats) -> float:
    """Area under the ROC curve with outliers as positives: P(outlier scores higher), ties count half."""
    labels = np.concatenate([np.zeros(len(inliers)), np.ones(len(outliers))])
    return float(roc_auc_score(labels, np.concatenate([inliers, outliers])))


def fpr95(inliers: Floats, outliers: Floats) -> float:
    """Share of inliers flagged by the threshold that catches 95 % of outliers (outliers positive: OpenOOD's FPR@95)."""
    return float((inliers >= np.quantile(outliers, 0.05, method="lower")).mean())


def fpr95_id(inliers: Floats, outliers: Floats) -> float:
    """Share of outliers accepted by the threshold that keeps 95 % of inliers (inliers positive: the papers' FPR95)."""
    return float((outliers <= np.quantile(inliers, 0.95, method="higher")).mean())
