"""How the masses of tiles become those of classes: tiles of one class are gathered side by side and summed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLD = 32
"""Tiles that one step sums; few enough that classes of very different sizes waste little padding."""
MOST_PADDING = 2
"""Gathered numbers for each tile, over which tiles are gathered by like widths: every width is a step of its own."""


@dataclass(frozen=True)
class Folds:
    """Steps over columns that begin with the tiles and one of mass 0; each adds the sums that it makes behind them."""

    steps: list[list[NDArray[np.int64]]]
    """Of every step the groups, `[G, W]` columns for each width W: their sums are a new column for each of the G."""
    where: NDArray[np.int64]
    """`[C]`: in which column the mass of each class stands in the end."""
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
    """Groups that are gathered together: all, unless most would be padding then."""
    sizes = np.array([len(p) for _, p in owners])
    if len(sizes) * sizes.max() <= MOST_PADDING * sizes.sum():
        return [owners]
    widths = np.ceil(np.log2(sizes)).astype(int)
    return [[owners[i] for i in np.flatnonzero(widths == width)] for width in np.unique(widths)]
