"""The unit of a bank's temperatures: how far its rows lie apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.errors import DataError
from softkin.mass import Metric

EPSILON = float(np.finfo(np.float32).eps)
COMPARED_TOGETHER = 512
"""Bank rows that the sample is compared with at a time."""
ALIKE = (
    "all representations of a layer are equal to within the rounding of float32, so it cannot tell rows apart; leave "
    "the layer out, or subtract from the rows what they have in common"
)


def neighbor_distance(z_ND: NDArray[np.float32], sample: NDArray[np.integer], metric: Metric) -> float:
    """Median distance of bank rows to their nearest other bank row: the natural unit of temperature.

    Temperatures of 0.1 to 0.5 of it separate outliers equally well; ten times more and far rows drown the near ones.

    Args:
        z_ND: `[N, D]` representations.
        sample: indices of the rows to take the median over.
        metric: of the distances.

    Returns:
        A positive distance; copies of a row do not count as neighbours.

    Raises:
        DataError: as of `refuse_alike`.
    """
    found = np.full(len(sample), np.inf)
    for distances in _nearest_of_each_block(z_ND, sample, metric):
        found = np.minimum(found, distances)
    if not np.isfinite(found).any():
        raise DataError(ALIKE)
    return float(np.median(found[np.isfinite(found)]))


def refuse_alike(z_ND: NDArray[np.float32], sample: NDArray[np.integer], metric: Metric) -> None:
    """Refuse representations that have no `neighbor_distance`; as soon as there is one, the rest is not compared.

    Raises:
        DataError: there is one row, representations are not finite, or all are equal, so the layer carries no
            information, or their numbers are so large, so small or so nearly alike that float32 cannot tell them apart.
    """
    if not any(np.isfinite(distances).any() for distances in _nearest_of_each_block(z_ND, sample, metric)):
        raise DataError(ALIKE)


def _nearest_of_each_block(
    z_ND: NDArray[np.float32], sample: NDArray[np.integer], metric: Metric
) -> Iterator[NDArray[np.floating]]:
    """Of every `COMPARED_TOGETHER` bank rows, the distance of each sampled row to the nearest that is not equal to it.

    Infinity where all are.
    """
    if len(z_ND) < 2:
        raise DataError("the bank has a single row, which has no neighbour; take more rows, or condense less")
    sizes = _sizes(z_ND, metric)
    if bad := int((~np.isfinite(z_ND)).any(axis=1).sum()):
        raise DataError(f"{bad} of {len(z_ND)} rows become NaN or infinity in float32; scale the rows, or remove those")
    if not np.isfinite(sizes).all() or (sizes.max() == 0 and z_ND.any()):
        largest = float(np.abs(z_ND).max())
        raise DataError(
            f"representations of up to {largest:.3g} are too {'small' if largest < 1 else 'large'} for distances in "
            "float32; scale the rows, or choose metric cosine where only directions count"
        )
    if not z_ND.any():  # by cosine they would be 1 apart
        raise DataError(
            "all representations of a layer are zero, as those of dead units are, and those whose length float32 "
            "cannot hold; leave the layer out, or scale the rows: down where numbers are huge, up where they are tiny"
        )
    sampled = _comparable(z_ND[sample], metric)
    for start in range(0, len(z_ND), COMPARED_TOGETHER):
        part = slice(start, start + COMPARED_TOGETHER)
        d = _fast_distances(sampled, _comparable(z_ND[part], metric), metric)
        d[_equal(d, sizes[sample], sizes[part])] = np.inf
        yield d.min(axis=1)


def _comparable(z_ND: NDArray[np.float32], metric: Metric) -> NDArray[np.floating]:
    return mass.unit_rows(z_ND) if metric == "cosine" else z_ND


def _fast_distances(z_BD: NDArray[np.floating], bank_ND: NDArray[np.floating], metric: Metric) -> NDArray[np.floating]:
    products = z_BD @ bank_ND.T
    if metric == "cosine":
        return np.subtract(1.0, products, out=products)
    d = np.add.outer(_sizes(z_BD, metric), _sizes(bank_ND, metric))
    products *= 2.0
    d -= products
    return d


def _equal(
    d_BN: NDArray[np.floating], sizes_B: NDArray[np.float32], sizes_N: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs that are equal up to the rounding of the expanded form; pair by pair, lest one large row hide others."""
    close = np.flatnonzero(d_BN <= 16 * EPSILON * max(sizes_B.max(), sizes_N.max()))  # hardly any are
    i, j = np.divmod(close, len(sizes_N))
    equal = d_BN[i, j] <= 16 * EPSILON * np.maximum(sizes_B[i], sizes_N[j])
    return i[equal], j[equal]


def _sizes(z_ND: NDArray[np.floating], metric: Metric) -> NDArray[np.float32]:
    """`[N]` size of the terms whose difference is a distance, by which its rounding is judged."""
    return np.ones(len(z_ND), np.float32) if metric == "cosine" else np.einsum("nd,nd->n", z_ND, z_ND)
