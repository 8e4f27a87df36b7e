"""Rows of a bank in fewer bits: float16 and int8.

What is rounded is a row b to b', and for int8 a query z to z' as well. The scorer then takes the distance of z' and b',
not the product of rounded vectors: z.b = (|z|^2 + |b|^2 - |z - b|^2) / 2, with |z' - b'| in the place of |z - b|. The
error of a logit so shrinks with the distance: it is least for the nearest rows, which carry the mass. For int8 that
costs nothing: the scale of each vector is chosen to keep its norm. For float16 the offset takes what the norm lost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from softkin.bank import Bank, LayerBank, Precision
from softkin.errors import DataError

Floats = NDArray[np.float64]

BANK_LEVELS = 63
"""int8 rows use -63..63: processors without VNNI add pairs of products in 16 bits, where two products of a whole uint8
with a whole int8 would saturate, silently. The rows give the bit, because their errors average out over neighbours."""
QUERY_LEVELS = 127
"""Queries use -127..127 around a zero point of 128."""
QUERY_ZERO_POINT = 128
BLOCK_ROWS = 1 << 16


def reduce_precision(bank: Bank, precision: Precision) -> Bank:
    """The bank with its rows rounded to `precision`.

    Args:
        bank: in float32.
        precision: `float32` returns the bank as it is.

    Raises:
        DataError: a representation is too large for float16.
    """
    if precision == "float32":
        return bank
    return replace(bank, layers={n: _reduce(layer, precision) for n, layer in bank.layers.items()})


def _reduce(layer: LayerBank, precision: Precision) -> LayerBank:
    n, dim = len(layer.rows), layer.dim
    rows = np.empty((n, dim), precision)
    scales = np.ones(n, np.float32) if precision == "int8" else None
    offsets = np.empty(n, np.float32)
    for start in range(0, n, BLOCK_ROWS):  # float64 only block by block
        part = slice(start, start + BLOCK_ROWS)
        b = layer.rows[part, :dim].astype(np.float64)
        offsets[part] = layer.rows[part, dim]
        if scales is not None:
            rows[part], scales[part] = _to_int8(b)
        else:
            rows[part], lost = _to_float16(b)
            offsets[part] += lost
    if not np.isfinite(offsets).all():
        largest = float(np.abs(layer.rows[:, :dim]).max())
        raise DataError(f"bank: a representation holds {largest:.4g}, too large for float16; use float32 or int8")
    return replace(layer, rows=rows, offsets=offsets, scales=scales)


def _to_int8(b_ND: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Rows as whole numbers, and `[N]` the scales that give them the norms of `b_ND`: 1 for a row of zeros."""
    largest = np.abs(b_ND).max(axis=1, keepdims=True)
    per_number = np.divide(BANK_LEVELS, largest, out=np.zeros_like(largest), where=largest > 0)
    rows = np.rint(b_ND * per_number).astype(np.int8)
    norm, levels = np.linalg.norm(b_ND, axis=1), np.linalg.norm(rows.astype(np.float64), axis=1)
    return rows, np.divide(norm, levels, out=np.ones_like(norm), where=levels > 0)


def _to_float16(b_ND: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Rows rounded, and `[N]` half of what their squared norms lost by that; infinite where a number is too large."""
    with np.errstate(over="ignore"):
        rows = b_ND.astype(np.float16)
    return rows, (np.square(b_ND).sum(axis=1) - np.square(rows.astype(np.float64)).sum(axis=1)) / 2
