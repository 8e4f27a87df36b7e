"""From scores and p-values of inliers and outlier sets to the figures of a report.

Sets come by name: `INLIERS`, and `key(name)` for an outlier set.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from softkin import conformal
from softkin_training.detection_metrics import (
    aupr_in,
    aupr_out,
    auroc,
    fpr95,
    fpr95_id,
    rate,
    roc,
    uniformity,
)
from softkin_training.flag_chance import chance_of_false_alarms
from softkin_training.report import Detection, Histogram, PValues, ScoreReport

Floats = NDArray[np.float64]
INLIERS = "inliers"
ROC_RATES = [float(f"{x:.4g}") for x in np.geomspace(1e-4, 1.0, 41)]
P_VALUE_BINS, SCORE_BINS = 20, 40


def key(name: str) -> str:
    """The key of an outlier set, which never equals `INLIERS`."""
    return f"outliers/{name}"


def score_report(
    title: str,
    source: str,
    values: Mapping[str, Floats],
    p: Mapping[str, Floats] | None,
    calibration: Floats | None,
    alpha: float,
) -> ScoreReport:
    """One score against every outlier set.

    Args:
        title: of the score.
        source: where it comes from.
        values: per set its scores.
        p: per set its p-values; None where the score was not calibrated.
        calibration: `[n]` the scores behind them; None where there are none of that kind.
        alpha: false-alarm rate of the verdicts.
    """
    inliers = values[INLIERS]
    return ScoreReport(
        title=title,
        source=source,
        calibration_size=None if calibration is None else len(calibration),
        false_alarms=rate(p[INLIERS] <= alpha) if p else None,
        uniformity=uniformity(p[INLIERS], inliers, calibration) if p else None,
        outliers={
            k.removeprefix(key("")): Detection(
                rows=len(v),
                auroc=auroc(inliers, v),
                aupr_out=aupr_out(inliers, v),
                aupr_in=aupr_in(inliers, v),
                fpr95=fpr95(inliers, v),
                fpr95_id=fpr95_id(inliers, v),
                caught=rate(p[k] <= alpha) if p else None,
                roc=roc(inliers, v, ROC_RATES),
            )
            for k, v in values.items()
            if k != INLIERS
        },
    )


def p_value_report(p: Mapping[str, Floats], n: int, alpha: float) -> PValues:
    """What the bundle's own p-values promise and give.

    Args:
        p: per set its p-values.
        n: calibration rows.
        alpha: false-alarm rate of the verdicts.
    """
    # Only k / (n + 1) can be reached, and as p-values are computed: then <= means here what it means in a verdict.
    alphas = np.unique(np.geomspace(1, n + 1, 60).round()) / (n + 1.0)
    flagged = {k: [float((v <= a).mean()) for a in alphas] for k, v in p.items()}
    count = int((p[INLIERS] <= alpha).sum())
    return PValues(
        chance_of_false_alarms=chance_of_false_alarms(count, len(p[INLIERS]), conformal.rank(alpha, n), n),
        inlier_histogram=np.histogram(p[INLIERS], P_VALUE_BINS, (0.0, 1.0))[0].tolist(),
        alphas=alphas.tolist(),
        inliers_flagged=flagged.pop(INLIERS),
        outliers_flagged={k.removeprefix(key("")): v for k, v in flagged.items()},
    )


def histogram(scores: Mapping[str, Floats]) -> Histogram:
    """Histograms of all sets over the 0.1 % to 99 % quantiles of all scores; the end bins hold what is beyond."""
    pooled = np.concatenate([v[np.isfinite(v)] for v in scores.values()])
    low, high = np.quantile(pooled, [0.001, 0.99]) if len(pooled) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, SCORE_BINS + 1)
    counts = {k: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist() for k, v in scores.items()}
    return Histogram(
        edges=edges.tolist(),
        inliers=counts.pop(INLIERS),
        outliers={k.removeprefix(key("")): v for k, v in counts.items()},
    )
