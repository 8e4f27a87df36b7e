"""What would have to be otherwise: the columns of a flagged row that must be as in a training row before it is none.

Nearest instance counterfactuals (Brughmans, Leyman, Martens 2023, NICE), with the conformal verdict in the place of the
class: the values of one training row replace those of the row, first the one that lowers the outlier score most, until
the p-value exceeds alpha; then what turned out needless is put back. The training row is the one that is most alike in
most columns. By plain distance a single wrong value would decide which one that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin import Detector
from softkin_training.fit_rows import column_deviations
from softkin_training.rows import parts_of

CAP = 3.0
"""Deviations of a column from which on two values are no more alike for being nearer."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that is replaced."""

    column: int
    p_value: float
    """Once this one and those before it are replaced."""


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """What would make a row none that is flagged."""

    example: int
    """Id of the training row whose values are taken."""
    values: NDArray[np.generic]
    """`[D]` that training row."""
    changes: tuple[Change, ...]
    """In the order of what they bring; after the last one the row is not flagged, unless the training row itself is."""


class Counterfactuals:
    """Explains rows of columns.

    Args:
        detector: that flags them.
        rows: `[n, D]` its training rows.
        ids: `[n]` their example ids.
        alpha: the rate at which rows are flagged, with guarantee `marginal`.
    """

    def __init__(self, detector: Detector, rows: NDArray[np.generic], ids: NDArray[np.int64], *, alpha: float) -> None:
        self._detector, self._rows, self._ids, self._alpha = detector, rows, ids, alpha
        deviations = column_deviations(rows)
        self._scales = np.where(deviations > 0, deviations, np.finfo(np.float64).tiny)  # a constant column must agree

    def of(self, x: NDArray[np.generic]) -> Counterfactual:
        """Explain a flagged row `[D]`."""
        most_alike = self._most_alike(x)
        values = self._rows[most_alike]
        columns = self._without_needless(x, values, self._enough(x, values))
        p_values: list[float] = []
        if columns:
            steps = np.repeat(x[None], len(columns), axis=0)
            for i, column in enumerate(columns):
                steps[i:, column] = values[column]
            p_values = self._detector.score(steps, alpha=self._alpha).p_value.tolist()
        return Counterfactual(
            example=int(self._ids[most_alike]),
            values=values,
            changes=tuple(Change(column=c, p_value=p) for c, p in zip(columns, p_values, strict=True)),
        )

    def _most_alike(self, x: NDArray[np.generic]) -> int:
        distances = []
        for part in parts_of(len(self._rows)):
            with np.errstate(over="ignore"):
                apart = np.abs(self._rows[part].astype(np.float64) - x.astype(np.float64)) / self._scales
            distances.append(np.minimum(apart, CAP).sum(axis=1))
        return int(np.concatenate(distances).argmin())

    def _enough(self, x: NDArray[np.generic], values: NDArray[np.generic]) -> list[int]:
        """Columns after whose replacement the row is not flagged, the best next one at a time; or all that differ."""
        order: list[int] = []
        left = np.flatnonzero(x != values)
        while len(left):
            tried = np.repeat(x[None], len(left), axis=0)
            tried[np.arange(len(left)), left] = values[left]
            found = self._detector.score(tried, alpha=self._alpha)
            best = int(found.outlier_score.argmin())
            order.append(int(left[best]))
            if not found.is_outlier[best]:
                break
            x, left = tried[best], np.delete(left, best)
        return order

    def _without_needless(self, x: NDArray[np.generic], values: NDArray[np.generic], columns: list[int]) -> list[int]:
        """The columns none of which can be put back; all where even they are not enough."""
        kept = list(columns)
        while len(kept) > 2:  # if one alone were enough, it would have been taken first
            tried = np.repeat(x[None], len(kept), axis=0)
            for i in range(len(kept)):
                others = kept[:i] + kept[i + 1 :]
                tried[i, others] = values[others]
            found = self._detector.score(tried, alpha=self._alpha)
            if found.is_outlier.all():
                break
            kept.pop(int(found.outlier_score.argmin()))
        return kept
