"""How rows spread around the means of their classes: what whitening and Mahalanobis distances are made of.

Shapes: N rows, D numbers, K classes that occur.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softkin_training.rows import members_of_each

ROWS_TOGETHER = 1 << 15
"""Rows of a class that are in float64 at a time."""

Floats = NDArray[np.float64]


def class_scatter(z_ND: NDArray[np.floating], labels_N: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Means `[K, D]` of the classes, the lowest label first, and `[D, D]` sum of squares and products around them."""
    means: list[Floats] = []
    scatter: Floats = np.zeros((z_ND.shape[1],) * 2)
    for members in members_of_each(labels_N):
        mean = z_ND[members].mean(axis=0, dtype=np.float64)
        for some in np.array_split(members, -(-len(members) // ROWS_TOGETHER)):
            centered = z_ND[some] - mean
            scatter += centered.T @ centered
        means.append(mean)
    return np.stack(means), scatter
