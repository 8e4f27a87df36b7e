"""How many inliers are flagged as they are corrupted more and more, beside the classifier's accuracy on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softkin_training.corruptions import CORRUPTIONS, SEVERITIES, corrupt, no_images
from softkin_training.detection_metrics import rate
from softkin_training.report import Corrupted, Corruptions
from softkin_training.subject import Subject


def corruption_report(
    subject: Subject,
    inliers: NDArray[np.generic],
    labels: NDArray[np.int64] | None,
    *,
    alpha: float,
    rows: int,
    seed: int,
) -> Corruptions:
    """Corrupt inliers in every way and to every degree, and score them.

    Args:
        subject: the bundle.
        inliers: `[n, ...]` raw inputs.
        labels: `[n]` their classes; None when unknown.
        alpha: false-alarm rate of the verdicts.
        rows: how many inliers to take, drawn at random; 0 for none at all.
        seed: of the draw and of the corruptions.
    """
    skipped = no_images(inliers) if rows else "not asked for"
    if skipped:
        return Corruptions(skipped=skipped, rows=0, units={}, levels=[])
    value_range = float(inliers.min()), float(inliers.max())
    drawn = np.random.default_rng(seed).permutation(len(inliers))[:rows]
    x, y = inliers[drawn], None if labels is None else labels[drawn]

    def measured(kind: str, severity: int) -> Corrupted:
        worse = corrupt(x, kind, severity, value_range=value_range, seed=seed)
        own = subject.own(subject.detector.outputs(worse))
        flagged = own.p_value <= alpha
        correct = None if y is None else own.predicted_class == y
        return Corrupted(
            kind=kind,
            severity=severity,
            level=float((0, *CORRUPTIONS[kind].levels)[severity]),
            flagged=rate(flagged),
            accuracy=None if correct is None else float(correct.mean()),
            accuracy_of_accepted=None if correct is None or flagged.all() else float(correct[~flagged].mean()),
        )

    return Corruptions(
        skipped=None,
        rows=len(x),
        units={kind: c.unit for kind, c in CORRUPTIONS.items()},
        levels=[measured(kind, severity) for kind in CORRUPTIONS for severity in range(SEVERITIES + 1)],
    )
