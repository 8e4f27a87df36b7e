"""Published scores that softkin is compared with: those made of logits or of neighbours. Higher = more outlying.

`fitted_baselines.py` has those that fit a model to the bank's rows, `feature_baselines.py` those that change features.
Shapes: B rows, N bank rows, D width, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from softkin import conformal, mass

KTH = 50
"""k of the k-th-neighbour distance (Sun et al. 2022 use 50 on CIFAR-10)."""
DKNN_K = 75
"""Neighbours per layer of DkNN (Papernot & McDaniel 2018; 75 in the authors' code)."""
GEN_GAMMA, GEN_CLASSES = 0.1, 100
"""Exponent and number of largest probabilities of GEN (Liu et al. 2023)."""

DISTANCES = 2**23
"""Distances held at once."""
BANK_ROWS = 2**15
"""Bank rows that are looked at at a time: of a large bank no copy is made, and no matrix product has few queries."""
PART = 16
"""Distances of which the smallest alone is looked at first."""

Floats = NDArray[np.float64]
Representations = Mapping[str, NDArray[np.float32]]


def max_softmax(logits_BC: NDArray[np.float32]) -> Floats:
    """Minus the largest softmax probability (Hendrycks & Gimpel 2017). Returns `[B]`."""
    logits = logits_BC.astype(np.float64)
    return -np.exp(logits.max(axis=1) - mass.logsumexp(logits, axis=1))


def max_logit(logits_BC: NDArray[np.float32]) -> Floats:
    """Minus the largest logit (Hendrycks et al. 2022). Returns `[B]`."""
    return -logits_BC.max(axis=1).astype(np.float64)


def gen(logits_BC: NDArray[np.float32], gamma: float = GEN_GAMMA, classes: int = GEN_CLASSES) -> Floats:
    """Generalised entropy `sum_c (p_c (1 - p_c))^gamma` over the largest probabilities (Liu et al. 2023, eq. 1).

    Args:
        logits_BC: `[B, C]`.
        gamma: exponent in (0, 1).
        classes: how many of the largest probabilities count.

    Returns:
        `[B]`.
    """
    logits = logits_BC.astype(np.float64)
    p = np.exp(logits - mass.logsumexp(logits, axis=1)[:, None])
    # 1 - p from the other probabilities: next to 1 the difference would round to zero, and with it the whole term.
    rest = 1.0 - p
    top = p.argmax(axis=1)[:, None]
    others = np.where(np.arange(p.shape[1]) == top, 0.0, p).sum(axis=1)
    np.put_along_axis(rest, top, others[:, None], axis=1)
    terms = (p * rest) ** gamma
    if terms.shape[1] > classes:
        largest = np.argpartition(p, -classes, axis=1)[:, -classes:]
        terms = np.take_along_axis(terms, largest, axis=1)
    return np.asarray(terms.sum(axis=1))


def nearest(z_BD: NDArray[np.float32], bank_ND: NDArray[np.float32], k: int) -> tuple[Floats, NDArray[np.int64]]:
    """The k nearest bank rows by cosine, nearest first.

    Args:
        z_BD: `[B, D]` queries.
        bank_ND: `[N, D]` bank rows.
        k: neighbours; N where there are fewer rows.

    Returns:
        `[B, K]` Euclidean distances between normalised rows, and `[B, K]` the rows' numbers.
    """
    z, k = mass.unit_rows(z_BD), min(k, len(bank_ND))
    squared, rows = np.zeros((len(z), 0), np.float32), np.zeros((len(z), 0), np.int64)
    for start in range(0, len(bank_ND), BANK_ROWS):
        bank = mass.unit_rows(bank_ND[start : start + BANK_ROWS])
        found = [_nearest_of_few(some, bank, min(k, len(bank))) for some in _slices(z, max(1, DISTANCES // len(bank)))]
        squared = np.concatenate([squared, np.concatenate([d for d, _ in found])], axis=1)
        rows = np.concatenate([rows, start + np.concatenate([r for _, r in found])], axis=1)
        best = squared.argsort(axis=1, kind="stable")[:, :k]
        squared, rows = np.take_along_axis(squared, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return np.sqrt(squared.astype(np.float64)), rows


def _nearest_of_few(
    z_BD: NDArray[np.float32], bank_ND: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`[B, k]` squared distances to the nearest of so few rows that all fit into memory, and which these are."""
    cosine = z_BD @ bank_ND.T
    np.maximum(np.subtract(1.0, cosine, out=cosine), 0.0, out=cosine)
    found = _smallest(cosine, k)
    return 2.0 * np.take_along_axis(cosine, found, axis=1), found


def kth_neighbor(z_BD: NDArray[np.float32], bank_ND: NDArray[np.float32], k: int = KTH) -> Floats:
    """Distance to the k-th nearest bank row, both normalised (Sun et al. 2022, eq. 2). Returns `[B]`."""
    return nearest(z_BD, bank_ND, k)[0][:, -1]


def dknn_nonconformity(
    z: Representations, bank: Representations, bank_labels: NDArray[np.int64], num_classes: int, k: int = DKNN_K
) -> Floats:
    """Count of neighbours, over all layers, whose label is not j (Papernot & McDaniel 2018). Returns `[B, C]`."""
    found = [other_labels(bank_labels[nearest(z[n], bank[n], k)[1]], num_classes) for n in z]
    return np.asarray(sum(found), np.float64)


def other_labels(labels_BK: NDArray[np.int64], num_classes: int) -> Floats:
    """How many of each row's neighbours are not of class j. Returns `[B, C]`."""
    rows, k = labels_BK.shape
    cells = np.arange(rows)[:, None] * num_classes + labels_BK
    same = np.bincount(cells.ravel(), minlength=rows * num_classes)
    return k - same.reshape(rows, num_classes).astype(np.float64)


def dknn_credibility(nonconformity_BC: Floats, calibration_true: Floats) -> Floats:
    """One minus DkNN's credibility: calibrated on true labels, as published. Returns `[B]`."""
    p_BC = conformal.p_values(nonconformity_BC, np.sort(calibration_true))
    return 1.0 - conformal.credibility(p_BC)


def _smallest(values_BN: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """`[B, k]` where each row's k smallest values are, in any order; k from 1 to N.

    They lie in the k parts with the smallest minima, so that not all of a row has to be partitioned.
    """
    n = values_BN.shape[1]
    parts = n // PART
    if parts <= k:
        return np.argpartition(values_BN, k - 1, axis=1)[:, :k]
    whole = values_BN[:, : parts * PART].reshape(len(values_BN), PART, parts)  # a part is every so many-th value
    best = np.argpartition(whole.min(axis=1), k - 1, axis=1)[:, :k]
    inside = (best[:, :, None] + parts * np.arange(PART)).reshape(len(best), PART * k)
    rest = np.broadcast_to(np.arange(parts * PART, n), (len(best), n - parts * PART))
    among = np.concatenate([inside, rest], axis=1)
    found = np.argpartition(np.take_along_axis(values_BN, among, axis=1), k - 1, axis=1)[:, :k]
    return np.take_along_axis(among, found, axis=1)


def _slices(z_BD: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    for i in range(0, max(1, len(z_BD)), rows):  # of no rows one slice, for its shape
        yield z_BD[i : i + rows]
