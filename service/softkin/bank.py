"""The bank of training representations, laid out the way the scorer reads it: class-sorted tiles.

Rows of one class stand together, cut into tiles of `TILE_ROWS` that never straddle a class; the last tile of a class is
filled with padding rows of mass 0. So the class mass is a sum over whole tiles, and no one-hot matrix is ever needed.

A stored row has one number more than the representation: its offset, which the scorer multiplies by 1. The row's
logit is then a single dot product:

    cosine              z.b / T + log w            rows b, scale 1/T, offset T log w
    squared_euclidean   (2 z.b - |b|^2) / T + log w  rows b, scale 2/T, offset T/2 log w - |b|^2 / 2

both up to a term that depends on the query alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.errors import DataError
from softkin.mass import Metric

TILE_ROWS = 64
PADDING_LABEL = -1
PADDING_OFFSET = np.float32(-1e30)
"""Finite, so that times any scale it stays finite, and far below every real logit."""


@dataclass(frozen=True, kw_only=True)
class LayerBank:
    """One layer's share of the bank."""

    metric: Metric
    temperature: float
    rows: NDArray[np.float32]
    """`[N, D+1]` tiled rows; the last column is the offset."""
    center: NDArray[np.float32]
    """`[D]`: subtracted from queries and already from `rows`; keeps the dot products from cancelling. 0 for cosine."""

    @property
    def dim(self) -> int:
        """Width D of the representation."""
        return self.rows.shape[1] - 1

    @property
    def scale(self) -> float:
        """What the scorer multiplies queries by."""
        return (1.0 if self.metric == "cosine" else 2.0) / self.temperature


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Representations of training rows with their labels and example ids, in tiles; padding included in N."""

    layers: dict[str, LayerBank]
    labels: NDArray[np.int32]
    """`[N]` class of each row; `PADDING_LABEL` for padding."""
    ids: NDArray[np.int64]
    """`[N]` example ids; -1 for padding."""
    weights: NDArray[np.float32]
    """`[N]` row weights; 0 for padding."""
    num_classes: int

    @property
    def size(self) -> int:
        """Number of real rows."""
        return int((self.labels != PADDING_LABEL).sum())

    @property
    def class_weights(self) -> NDArray[np.float64]:
        """`[C]` total weight per class."""
        real = self.labels != PADDING_LABEL
        weights = self.weights[real].astype(np.float64)
        return np.asarray(np.bincount(self.labels[real], weights, self.num_classes), np.float64)

    def without_rows(self) -> Bank:
        """The same bank less the representations, for when a session has read them from the file."""
        empty = {n: replace(b, rows=np.zeros((0, b.dim + 1), np.float32)) for n, b in self.layers.items()}
        return replace(self, layers=empty)

    @property
    def tile_labels(self) -> NDArray[np.int32]:
        """`[N / TILE_ROWS]` class of each tile: a tile's first row is never padding."""
        return self.labels[::TILE_ROWS]


def pack(
    representations: dict[str, NDArray[np.float32]],
    labels: NDArray[np.integer],
    ids: NDArray[np.integer],
    *,
    num_classes: int,
    temperatures: dict[str, float],
    metrics: dict[str, Metric],
    weights: NDArray[np.floating] | None = None,
) -> Bank:
    """Lay representations out in tiles.

    Args:
        representations: per layer `[N, D]`, finite; for cosine each row has unit norm (or is zero).
        labels: `[N]` class indices; every class in [0, num_classes) must occur.
        ids: `[N]` example ids, unique.
        num_classes: C.
        temperatures: per layer, > 0.
        metrics: per layer.
        weights: `[N]` positive row weights; all 1 when left out.

    Raises:
        DataError: arrays disagree, a class has no rows, a value is not finite, an id occurs twice.
    """
    n = len(labels)
    w = np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32)
    _check(representations, labels, ids, w, num_classes)
    take = _tile_order(np.asarray(labels), num_classes)
    padding = take < 0
    layers = {}
    for name, z_ND in representations.items():
        metric, temperature = metrics[name], temperatures[name]
        if metric == "squared_euclidean":
            center = z_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
            b = z_ND - center
            offset = temperature / 2 * np.log(w) - np.square(b, dtype=np.float64).sum(axis=1) / 2
        else:
            center, b = np.zeros(z_ND.shape[1], np.float32), mass.unit_rows(z_ND)
            offset = temperature * np.log(w)
        rows = np.concatenate([b, offset[:, None]], axis=1).astype(np.float32)[take]
        rows[padding] = 0.0
        rows[padding, -1] = PADDING_OFFSET
        layers[name] = LayerBank(metric=metric, temperature=temperature, rows=rows, center=center)
    return Bank(
        layers=layers,
        labels=np.where(padding, PADDING_LABEL, labels[take]).astype(np.int32),
        ids=np.where(padding, -1, ids[take]).astype(np.int64),
        weights=np.where(padding, 0.0, w[take]).astype(np.float32),
        num_classes=num_classes,
    )


def _tile_order(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Source index of every tiled row, -1 for padding."""
    order = np.argsort(labels, kind="stable")
    parts: list[NDArray[np.int64]] = []
    for rows in np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]):
        parts += [rows, np.full(-len(rows) % TILE_ROWS, -1, np.int64)]
    return np.concatenate(parts)


def _check(
    representations: dict[str, NDArray[np.float32]],
    labels: NDArray[np.integer],
    ids: NDArray[np.integer],
    weights: NDArray[np.float32],
    num_classes: int,
) -> None:
    n = len(labels)
    for what, length in {**{k: len(v) for k, v in representations.items()}, "ids": len(ids), "w": len(weights)}.items():
        if length != n:
            raise DataError(f"bank: {what} has {length} rows, labels have {n}; they must describe the same rows")
    counts = np.bincount(labels[labels >= 0], minlength=num_classes) if n else np.zeros(num_classes)
    if len(counts) != num_classes or (n and labels.min() < 0):
        raise DataError(f"bank: labels must lie in [0, {num_classes}); got [{labels.min()}, {labels.max()}]")
    if (counts == 0).any():
        raise DataError(f"bank: class {int(counts.argmin())} has no rows; every class needs at least one")
    if len(np.unique(ids)) != n:
        raise DataError("bank: example ids must be unique, or evidence cannot be traced back")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise DataError("bank: weights must be finite and positive")
    for name, z in representations.items():
        bad = ~np.isfinite(z).all(axis=1)
        if bad.any():
            raise DataError(f"bank: layer {name!r}, example {int(ids[bad.argmax()])} has a value that is not finite")
