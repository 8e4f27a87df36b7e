"""Class masses and nonconformity forms: the reference implementation, in NumPy.

The scorer computes the same masses with onnxruntime; everything after the masses runs here, for training and serving
alike. Shapes: B rows, N bank rows, D representation width, L layers, C classes. Higher nonconformity = stranger.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "squared_euclidean"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Floats = NDArray[np.float64]

NEGLIGIBLE_MASS = float(np.finfo(np.float32).eps)
"""Of all other classes, in parts of the largest class's mass: less counts as none. Masses are float32, and rows so deep
in a class would be told apart by how they round, or by what a bank in fewer bits makes of them."""


def unit_rows(z_BD: NDArray[np.floating]) -> NDArray[np.floating]:
    """Divide each row by its Euclidean norm; a zero row stays zero instead of turning into NaN."""
    # Squares of 1e-30 or 1e30 leave the range of float32: so scale first, by powers of two, which rounds nothing.
    _, exponent_B1 = np.frexp(np.abs(z_BD).max(axis=1, keepdims=True))
    z_BD = np.ldexp(z_BD, -exponent_B1)
    norm_B1 = np.linalg.norm(z_BD, axis=1, keepdims=True)
    return np.asarray(z_BD / np.maximum(norm_B1, np.finfo(z_BD.dtype).tiny))


def distances(z_BD: NDArray[np.floating], bank_ND: NDArray[np.floating], metric: Metric) -> Floats:
    """Distances between representations, in float64 and by differences, so that nothing cancels.

    Args:
        z_BD: `[B, D]` query representations, B >= 1.
        bank_ND: `[N, D]` bank representations.
        metric: `squared_euclidean`: ||z - b||^2; `cosine`: 1 - z.b / (|z| |b|), in [0, 2].

    Returns:
        `[B, N]`, at least 0.
    """
    z, b = z_BD.astype(np.float64), bank_ND.astype(np.float64)
    if metric == "cosine":
        return np.maximum(1.0 - unit_rows(z) @ unit_rows(b).T, 0.0)
    return np.stack([np.square(row - b).sum(axis=1) for row in z])


def logsumexp(a: Floats, axis: int) -> Floats:
    """log(sum(exp(a))) along `axis`; an empty or all -inf slice gives -inf, never NaN."""
    if a.shape[axis] == 0:
        return np.full(np.delete(a.shape, axis), -np.inf)
    top = a.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):  # log(0) = -inf is the right answer for an empty class
        return np.asarray(np.log(np.exp(a - top).sum(axis=axis)) + np.squeeze(top, axis=axis))


def class_mass(
    z_BD: NDArray[np.floating],
    bank_ND: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    *,
    num_classes: int,
    temperature: float,
    metric: Metric,
    weights_N: NDArray[np.floating] | None = None,
) -> Floats:
    """Soft-nearest-neighbour mass of every class at every row, in one layer.

    m(j, x) = logsumexp over bank rows i with y_i = j of (log w_i - d(z(x), b_i) / T), natural logarithm; the
    numerator of the soft nearest neighbour loss (Frosst, Papernot, Hinton 2019, eq. 1) if x had label j.

    Args:
        z_BD: `[B, D]` query representations, B >= 1.
        bank_ND: `[N, D]` bank representations.
        labels_N: `[N]` class indices in [0, num_classes).
        num_classes: C.
        temperature: T > 0, in units of the metric.
        metric: see `distances`.
        weights_N: `[N]` row weights, positive; all 1 when left out.

    Returns:
        `[B, C]`; -inf for a class without bank rows.
    """
    logits_BN = -distances(z_BD, bank_ND, metric) / temperature
    if weights_N is not None:
        logits_BN = logits_BN + np.log(weights_N.astype(np.float64))
    return np.stack([logsumexp(logits_BN[:, labels_N == j], axis=1) for j in range(num_classes)], axis=1)


def merge_masses(masses: NDArray[np.floating]) -> Floats:
    """Merge the class masses of disjoint shards of a bank: exact, in any order.

    Args:
        masses: `[S, ...]` masses of S shards.

    Returns:
        `[...]` masses of the whole bank.
    """
    return logsumexp(np.asarray(masses, np.float64), axis=0)


def posterior(masses_BLC: NDArray[np.floating], layer_weights_L: NDArray[np.floating]) -> Floats:
    """`-sum_l w_l log softmax_j m_l(j, x)`: the soft nearest neighbour loss of x if its label were j.

    The paper's relative form: few neighbours of the class. Returns `[B, C]`, at least 0; of a row so deep in its class
    that all other classes have less than `NEGLIGIBLE_MASS` there, that class's term is 0.
    """
    m = np.asarray(masses_BLC, np.float64)
    above_BLC = m.max(axis=2, keepdims=True) - m
    others_BLC = np.exp(-above_BLC)
    rows_RC = others_BLC.reshape(-1, m.shape[2])
    rows_RC[np.arange(len(rows_RC)), m.reshape(rows_RC.shape).argmax(axis=1)] = 0.0
    others_BL1 = others_BLC.sum(axis=2, keepdims=True)
    # Not by a sum over all classes, which rounds off the digits that tell such rows apart.
    log_sum_BL1 = np.log1p(np.where(others_BL1 < NEGLIGIBLE_MASS, 0.0, others_BL1))
    return np.einsum("blc,l->bc", log_sum_BL1 + above_BLC, np.asarray(layer_weights_L, np.float64))


def density(
    masses_BLC: NDArray[np.floating], class_weights_C: NDArray[np.floating], layer_weights_L: NDArray[np.floating]
) -> Floats:
    """`-sum_l w_l (m_l(j, x) - log n_j)`: minus the log soft-nearest-neighbour density of class j at x.

    Args:
        masses_BLC: `[B, L, C]` class masses.
        class_weights_C: `[C]` total weight n_j of each class in the bank: its row count unless the bank is condensed.
        layer_weights_L: `[L]` weights of the layers.

    Returns:
        `[B, C]`.
    """
    mean_BLC = np.asarray(masses_BLC, np.float64) - np.log(np.asarray(class_weights_C, np.float64))
    return -np.einsum("blc,l->bc", mean_BLC, np.asarray(layer_weights_L, np.float64))


def energy(logits_BC: NDArray[np.floating]) -> Floats:
    """`-logsumexp_j logits_j`: the network's own energy (Liu et al. 2020, eq. 4, T = 1). Returns `[B]`."""
    return -logsumexp(np.asarray(logits_BC, np.float64), axis=1)
