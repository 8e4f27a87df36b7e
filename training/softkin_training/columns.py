"""Columns of a table in units of their own deviation, where they are compared as they are: age beside income.

Whitening alone does not do it: it takes no direction for smaller than a share of the mean variance, which one column of
large numbers makes, so that those of small ones hardly count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import InvalidInputError
from softkin_training.fit_rows import UNEVEN, axes_of, column_deviations, column_means

STANDARDIZED = "standardize"
"""First word of the reducer of a layer whose columns are standardised."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`z -> (z - center) / deviation`."""

    center: NDArray[np.float64]
    """`[D]` means."""
    deviation: NDArray[np.float64]
    """`[D]`; 1 where a column does not vary."""

    @classmethod
    def of(cls, x: NDArray[Any]) -> Columns:
        """Take the means and deviations of the columns of rows `[n, D]`."""
        deviation = column_deviations(x)
        return cls(center=column_means(x), deviation=np.where(deviation > 0, deviation, 1.0))


def columns_of(x: NDArray[Any], asked: bool | None) -> Columns | None:
    """What rows are to be standardised by; None where they stay as they are.

    Args:
        x: `[n, ...]` training rows, calibration rows left out.
        asked: None: where half of the columns that vary do so `UNEVEN` times less than another. Not where a few do:
            those may be pixels at the edge of a flattened image, whose rare ink would then outweigh all else.

    Raises:
        InvalidInputError: asked of rows that have no columns.
    """
    if x.ndim != 2:
        if asked:
            raise InvalidInputError(
                "standardize", f"got True for rows {axes_of(x)}; it is for columns, [rows, columns]: leave it out"
            )
        return None
    if not len(x):  # all rows calibrate, which is refused when there is a bank to make
        return None
    if asked is None:
        varying = column_deviations(x)
        varying = varying[varying > 0]
        asked = len(varying) > 0 and bool(varying.max() > UNEVEN * np.median(varying))
    return Columns.of(x) if asked else None
