"""Condense a bank: a few weighted prototypes per class in the place of its rows. Needs no torch.

The rows of each class are partitioned by k-means, and each part is replaced by its mean with the number of its rows as
weight. Memory and time per request shrink by the ratio, and scores move little; figures: docs/decisions/0009.

Shapes: N rows, D representation width, M prototypes; n rows and k prototypes of one class.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from softkin import mass
from softkin.errors import DataError
from softkin.mass import Metric
from softkin_training.rows import members_of_each

NO_DIRECTION = 1e-6
"""Means of unit rows shorter than this are rounding: their direction means nothing."""


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """The weighted prototypes of one layer, which replace its rows in a condensed bank; sorted by class."""

    rows: NDArray[np.float32]
    """`[M, D]`; for cosine of unit norm, or zero where the rows have no common direction."""
    labels: NDArray[np.int64]
    """`[M]` classes, ascending."""
    weights: NDArray[np.float32]
    """`[M]` how many rows each stands for, at least 1; they sum per class to the rows of the class."""
    ids: NDArray[np.int64]
    """`[M]` example id of the member nearest to the prototype, unique: evidence stays traceable to a training row."""


def condense(
    z_ND: NDArray[np.floating],
    labels: NDArray[np.integer],
    ids: NDArray[np.integer],
    *,
    ratio: float,
    metric: Metric,
    seed: int,
) -> Prototypes:
    """Replace the rows of each class by the weighted means of a k-means partition (Lloyd 1982).

    A class of n rows becomes `round(n / ratio)` prototypes, at least 1: a number that depends on nothing but labels and
    ratio, so all layers of a bank agree on it. Time grows with n^2 D / ratio per class.

    Args:
        z_ND: `[N >= 1, D >= 1]` representations of one layer, finite in float32.
        labels: `[N]` class indices, at least 0.
        ids: `[N]` example ids, unique.
        ratio: how many times smaller the bank becomes, at least 1; at 1 the rows stay as they are.
        metric: `squared_euclidean`: prototypes are means; `cosine`: rows and means are scaled to unit norm. The length
            of a mean says how broad its part is, and using it as a weight would favour narrow parts.
        seed: of the k-means++ starts, at least 0 (Arthur & Vassilvitskii 2007).

    Returns:
        The prototypes; the same for the same arguments.

    Raises:
        DataError: the arrays disagree or are empty, a value is not finite, a label is negative, an id occurs twice, or
            the ratio is below 1 or not finite.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold turns infinite, and is refused by name
        z32_ND = np.asarray(z_ND, np.float32)
    y, examples = np.asarray(labels, np.int64), np.asarray(ids, np.int64)
    _check(z32_ND, y, examples, ratio)
    parts = []
    for members in members_of_each(y):
        label = int(y[members[0]])
        k = max(1, round(len(members) / ratio))
        state = int(np.random.SeedSequence([seed, label]).generate_state(1)[0])
        rows, counts, nearest = _prototypes(z32_ND[members], k, metric, state)
        parts.append(
            (rows.astype(np.float32), np.full(k, label), counts.astype(np.float32), examples[members[nearest]])
        )
    rows_MD, labels_M, weights_M, ids_M = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Prototypes(rows=rows_MD, labels=labels_M, weights=weights_M, ids=ids_M)


def _prototypes(
    z_nD: NDArray[np.float32], k: int, metric: Metric, random_state: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows `[k, D]`, member counts `[k]` and index of the nearest member `[k]` for the rows of one class."""
    rows_nD: NDArray[np.float64] = z_nD.astype(np.float64)
    if metric == "cosine":
        rows_nD = mass.unit_rows(rows_nD).astype(np.float64)
    if k == len(rows_nD):
        return rows_nD, np.ones(k, np.int64), np.arange(k)
    part = _partition(rows_nD, k, random_state)
    # From the partition and in float64: the centroids of k-means itself are sums in the order its threads finished.
    order = np.argsort(part, kind="stable")
    counts = np.bincount(part, minlength=k)
    first = np.cumsum(counts) - counts
    mean_kD = np.add.reduceat(rows_nD[order], first) / counts[:, None]
    if metric == "cosine":
        length_k1 = np.linalg.norm(mean_kD, axis=1, keepdims=True)
        mean_kD = np.where(length_k1 < NO_DIRECTION, 0.0, mass.unit_rows(mean_kD))
    # Each part has members of its own, so no two prototypes can name the same one.
    distance_n = np.square(rows_nD - mean_kD[part]).sum(axis=1)
    nearest = np.lexsort((distance_n, part))[first]
    return mean_kD, counts, nearest


def _partition(rows_nD: NDArray[np.float64], k: int, random_state: int) -> NDArray[np.int64]:
    """Part in [0, k) of each of n > k rows; no part is empty, even where rows are equal."""
    centered_nD = rows_nD - rows_nD.mean(axis=0)
    scale = np.abs(centered_nD).max() or 1.0  # squares of very small or large rows would leave float32
    with warnings.catch_warnings():
        # Fewer distinct rows than parts: dealt with below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One start is enough: the best of four gained nothing. At 256 numbers a row lloyd is as fast as elkan.
        k_means = KMeans(k, n_init=1, algorithm="lloyd", random_state=random_state)
        part: NDArray[np.int64] = k_means.fit_predict((centered_nD / scale).astype(np.float32)).astype(np.int64)
    empty = np.flatnonzero(np.bincount(part, minlength=k) == 0)
    # k-means leaves parts empty only where rows are equal, so it is all one which copies move there.
    spare = np.setdiff1d(np.arange(len(part)), np.unique(part, return_index=True)[1])
    part[spare[: len(empty)]] = empty
    return part


def _check(z_ND: NDArray[np.float32], labels: NDArray[np.int64], ids: NDArray[np.int64], ratio: float) -> None:
    if not (math.isfinite(ratio) and ratio >= 1):
        raise DataError(f"condense: ratio is {ratio}; it must be at least 1 and finite: the bank becomes 1/ratio of it")
    if z_ND.ndim != 2 or 0 in z_ND.shape:
        raise DataError(f"condense: representations are {z_ND.shape}; they must be [rows >= 1, width >= 1]")
    n = len(z_ND)
    if labels.shape != (n,) or ids.shape != (n,):
        raise DataError(
            f"condense: labels are {labels.shape} and ids {ids.shape} for {n} rows; there must be one each per row"
        )
    bad = ~np.isfinite(z_ND).all(axis=1)
    if bad.any():
        raise DataError(f"condense: example {int(ids[bad.argmax()])} has a value that is not finite in float32")
    if labels.min() < 0:
        raise DataError(
            f"condense: example {int(ids[labels.argmin()])} has label {labels.min()}; it must be at least 0"
        )
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise DataError(f"condense: id {int(values[counts.argmax()])} occurs twice; ids must be unique")
