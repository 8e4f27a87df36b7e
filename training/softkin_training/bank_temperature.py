"""The unit of a bank's temperatures: how far its rows lie apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.errors import DataError
from softkin.mass import Metric

EPSILON = float(np.finfo(np.float32).eps)


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
        DataError: there is one row, representations are not finite, or all are equal, so the layer carries no
            information, or their numbers are so large, so small or so nearly alike that float32 cannot tell them apart.
    """
    if len(z_ND) < 2:
        raise DataError("the bank has a single row, which has no neighbour; take more rows, or condense less")
    with np.errstate(over="ignore"):
        sizes = _sizes(z_ND, metric)
    if bad := int((~np.isfinite(z_ND)).any(axis=1).sum()):
        raise DataError(f"{bad} of {len(z_ND)} rows become NaN or infinity in float32; scale the rows, or remove those")
    if not np.isfinite(sizes).all() or (sizes.max() == 0 and z_ND.any()):
        largest = float(np.abs(z_ND).max())
        raise DataError(
            f"representations of up to {largest:.3g} are too {'small' if largest < 1 else 'large'} for distances in "
            "float32; scale the rows, or choose metric cosine where only directions count"
        )
    dead = (z_ND == 0).all(axis=1)
    if dead.all():
        raise DataError(
            "all representations of a layer are zero, as those of dead units are, and those whose length float32 "
            "cannot hold; leave the layer out, or scale the rows: down where numbers are huge, up where they are tiny"
        )
    nearest = []
    for part in np.array_split(sample, max(1, len(sample) // 256)):
        d = _fast_distances(z_ND[part], z_ND, metric)
        # Up to rounding of the expanded form; pair by pair, lest one large row hide the distances of all others.
        d[d <= 16 * EPSILON * np.maximum.outer(sizes[part], sizes)] = np.inf
        d[np.logical_and.outer(dead[part], dead)] = np.inf  # equal, though by cosine 1 apart
        nearest.append(d.min(axis=1))
    found = np.concatenate(nearest)
    found = found[np.isfinite(found)]
    if not len(found):
        raise DataError(
            "all representations of a layer are equal to within the rounding of float32, so it cannot tell rows apart; "
            "leave the layer out, or subtract from the rows what they have in common"
        )
    return float(np.median(found))


def _fast_distances(z_BD: NDArray[np.float32], bank_ND: NDArray[np.float32], metric: Metric) -> NDArray[np.floating]:
    if metric == "cosine":
        return 1.0 - mass.unit_rows(z_BD) @ mass.unit_rows(bank_ND).T
    squares = np.square(bank_ND).sum(axis=1)
    return np.square(z_BD).sum(axis=1)[:, None] + squares[None] - 2.0 * z_BD @ bank_ND.T


def _sizes(z_ND: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """`[N]` size of the terms whose difference is a distance, by which its rounding is judged."""
    return np.ones(len(z_ND), np.float32) if metric == "cosine" else np.square(z_ND).sum(axis=1)
