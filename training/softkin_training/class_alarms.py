"""Where false alarms gather: what is promised is their share of all inliers, and one class may have most of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CHANCE = 0.01
"""That any class is named where all of them are flagged alike."""
CLASSES_NAMED = 3


def uneven_classes(
    flagged_B: NDArray[np.bool_], predicted_B: NDArray[np.integer], classes: Sequence[str], alpha: float
) -> list[str]:
    """A remark on the predicted classes whose inliers are flagged more often than luck explains; none without such.

    Args:
        flagged_B: verdicts on inliers.
        predicted_B: their predicted classes.
        classes: names.
        alpha: the rate that was asked for; where more inliers are flagged than that, a class is held against these.
    """
    rows = np.bincount(predicted_B, minlength=len(classes))
    flags = np.bincount(predicted_B[flagged_B], minlength=len(classes))
    # Bonferroni's: a class for each test.
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
