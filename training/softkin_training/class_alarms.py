"""Classes with more false alarms than others: the promise is about all inliers, so one class may have most of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CHANCE = 0.01
"""Largest chance that a class is named although all classes are flagged at the same rate."""
CLASSES_NAMED = 3


def uneven_classes(
    flagged_B: NDArray[np.bool_], predicted_B: NDArray[np.integer], classes: Sequence[str], alpha: float
) -> list[str]:
    """Name the predicted classes whose inliers are flagged more often than luck explains.

    Args:
        flagged_B: `[B]` whether each inlier was flagged.
        predicted_B: `[B]` their predicted classes.
        classes: names of all classes.
        alpha: the false-alarm rate that was asked for. A class is compared with it, or with the rate of all inliers
            where that is higher.

    Returns:
        One remark, or none.
    """
    rows = np.bincount(predicted_B, minlength=len(classes))
    flags = np.bincount(predicted_B[flagged_B], minlength=len(classes))
    # One test for each class: Bonferroni's correction.
    over = np.flatnonzero(binom.sf(flags - 1, rows, max(alpha, flagged_B.mean())) * len(classes) < CHANCE)
    if not len(over):
        return []
    worst = sorted(over.tolist(), key=lambda j: (-flags[j] / rows[j], j))
    named = [f"{classes[j]!r} {flags[j]} of {rows[j]} ({flags[j] / rows[j]:.1%})" for j in worst[:CLASSES_NAMED]]
    others = len(worst) - len(named)
    more = f"; and more in {others} other{'s' if others > 1 else ''}" if others else ""
    return [
        "False alarms gather in some classes: flagged are, of inliers predicted to be "
        f"{'; '.join(named)}{more}. The guarantee class_conditional keeps the same rate in every predicted class."
    ]
