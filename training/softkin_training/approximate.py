"""Banks of fewer bits or fewer rows: which one keeps the error budget, and what it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from softkin import conformal
from softkin.bank import Bank, Precision
from softkin.errors import DataError
from softkin.manifest import Approximation
from softkin.precision import reduce_precision
from softkin_training.calibrate import Calibrated

FEWEST_BITS_FIRST: tuple[Precision, ...] = ("int8", "float16", "float32")


def choose(
    exact: Calibrated,
    bank: Bank,
    *,
    precision: Precision | Literal["auto"],
    budget: float,
    calibrated: Callable[[Bank], Calibrated],
    alpha: float,
    outliers: Mapping[str, NDArray[np.generic]],
) -> tuple[Calibrated, Approximation | None]:
    """Round a bank to the fewest bits asked for that keep the budget.

    Args:
        exact: all rows in float32.
        bank: what to round: that bank, or a condensed one.
        precision: what to round to; `auto` tries int8, then float16, then float32.
        budget: largest change of a p-value on the calibration rows.
        calibrated: calibrates a bank by its own scorer.
        alpha: where verdicts are compared.
        outliers: raw inputs by name.

    Returns:
        The choice, and how it differs from `exact`; None where it is `exact`.

    Raises:
        DataError: nothing that was asked for keeps the budget, or a value does not fit into the float16 asked for.
    """
    found = {}
    for name in FEWEST_BITS_FIRST if precision == "auto" else (precision,):
        if name == "float32" and bank is exact.bank:
            return exact, None
        try:
            rounded = reduce_precision(bank, name)
        except DataError:
            if precision == "auto":  # too large for float16: float32 holds them
                continue
            raise
        candidate = calibrated(rounded)
        approximation = compare(exact, candidate, budget=budget, alpha=alpha, outliers=outliers)
        if approximation.max_p_value_change <= budget:
            return candidate, approximation
        found[name] = approximation.max_p_value_change
    tried = ", ".join(f"{change:.2g} in {name}" for name, change in found.items())
    raise DataError(
        f"bank: p-values of the calibration rows change by up to {tried}; max_p_value_change allows {budget:g}: raise "
        "it, condense less, or keep more bits"
    )


def compare(
    exact: Calibrated,
    other: Calibrated,
    *,
    budget: float,
    alpha: float,
    outliers: Mapping[str, NDArray[np.generic]],
) -> Approximation:
    """How `other` differs from `exact`, each with p-values from its own calibration."""
    before, after = (conformal.p_values(c.scores, c.calibration.outlier_scores) for c in (exact, other))
    change = np.abs(after - before)
    auroc_changes = {}
    for name, x in outliers.items():
        from softkin_training.detection_metrics import auroc  # needs scipy, which building alone does not

        auroc_changes[name] = auroc(other.scores, other.outlier_scores(x)) - auroc(
            exact.scores, exact.outlier_scores(x)
        )
    return Approximation(
        budget=budget,
        max_p_value_change=float(change.max()),
        mean_p_value_change=float(change.mean()),
        verdict_changes=float(((after <= alpha) != (before <= alpha)).mean()),
        auroc_changes=auroc_changes,
    )
