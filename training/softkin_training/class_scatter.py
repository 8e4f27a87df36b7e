"""How rows spread around the means of their classes: what whitening and Mahalanobis distances are made of.

Shapes: N rows, D numbers, K classes that occur.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softkin_training.rows import ROWS_TOGETHER, members_of_each, parts_of

Floats = NDArray[np.float64]


def class_scatter(z_ND: NDArray[np.floating], labels_N: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Means `[K, D]` of the classes, the lowest label first, and `[D, D]` sum of squares and products around them."""
    width = z_ND.shape[1]
    means: list[Floats] = []
    scatter: Floats = np.zeros((width, width))
    # Rows of many small classes go together: threads wait for each other in every matrix product, and with one for each
    # class that takes minutes where cores are shared.
    centered: Floats = np.empty((min(len(z_ND), ROWS_TOGETHER), width))
    filled = 0
    for members in members_of_each(labels_N):
        parts = [members[part] for part in parts_of(len(members))]
        means.append(sum(z_ND[some].sum(axis=0, dtype=np.float64) for some in parts) / len(members))
        for some in parts:
            if filled + len(some) > len(centered):
                scatter += centered[:filled].T @ centered[:filled]
                filled = 0
            np.subtract(z_ND[some], means[-1], out=centered[filled : filled + len(some)])
            filled += len(some)
    return np.stack(means), scatter + centered[:filled].T @ centered[:filled]
