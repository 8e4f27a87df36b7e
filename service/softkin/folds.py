"""How the masses of tiles become those of classes: tiles of one class are gathered side by side and summed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLD = 32
"""Most tiles that one step adds up; few enough that classes of very different sizes waste little padding."""
MOST_PADDING = 2
"""Numbers gathered per tile, at most, before groups of different widths are gathered apart, in an operator each."""


@dataclass(frozen=True)
class Folds:
    """A plan to add the masses of tiles up to those of classes, step by step.

    The columns are one for each tile, then one of mass 0; each step appends a column for every sum that it makes.
    """

    steps: list[list[NDArray[np.int64]]]
    """For every step, an array `[G, W]` of column numbers for each width W of its groups; each row is one sum."""
    where: NDArray[np.int64]
    """`[C]`: the column that holds the mass of each class in the end."""
    last_gives_all: bool
    """Whether the sums of the last step are the masses of all classes, in their order."""


def plan_folds(labels: NDArray[np.integer], num_classes: int) -> Folds:
    """Sum tiles to classes, however many tiles each class has.

    Args:
        labels: `[T]` class of every tile.
        num_classes: C; a class without a tile has mass 0.
    """
    nothing = len(labels)
    end = nothing + 1
    order = np.argsort(labels, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])
    steps = []
    while any(len(p) > 1 for p in places):
        owners = [(c, p[i : i + FOLD]) for c, p in enumerate(places) if len(p) > 1 for i in range(0, len(p), FOLD)]
        step: list[NDArray[np.int64]] = []
        for c in {c for c, _ in owners}:
            places[c] = np.empty(0, np.int64)
        for bucket in _by_width(owners):
            groups = np.full((len(bucket), max(len(p) for _, p in bucket)), nothing, np.int64)
            for group, (c, p) in zip(groups, bucket, strict=True):
                group[: len(p)] = p
                places[c] = np.append(places[c], end)
                end += 1
            step.append(groups)
        steps.append(step)
    where = np.array([p[0] if len(p) else nothing for p in places], np.int64)
    sums = sum(len(groups) for groups in steps[-1]) if steps else 0
    return Folds(steps, where, np.array_equal(where, np.arange(end - sums, end)))


_Owned = list[tuple[int, NDArray[np.int64]]]


def _by_width(owners: _Owned) -> list[_Owned]:
    """Which groups are gathered together: all of them, unless that would be mostly padding."""
    sizes = np.array([len(p) for _, p in owners])
    if len(sizes) * sizes.max() <= MOST_PADDING * sizes.sum():
        return [owners]
    widths = np.ceil(np.log2(sizes)).astype(int)
    return [[owners[i] for i in np.flatnonzero(widths == width)] for width in np.unique(widths)]
