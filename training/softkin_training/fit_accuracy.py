"""What a classifier makes of the rows that a bundle is built of: figures by which wrong rows or labels show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin.scorer import LOGITS, Network
from softkin_training.rows import Rows

JUDGED_ROWS = 1000
"""Rows of the bank that are looked at: as many as show whether they are what the classifier was trained on."""


@dataclass(frozen=True, kw_only=True)
class FitAccuracy:
    """How often the classifier is right, and how else it could be."""

    calibration: float
    """Share of the calibration rows that it puts in their class."""
    bank: float
    """The same of the bank's rows."""
    bank_fares_worse: bool
    """Whether that is lower than on new rows, by more than chance explains: rows or labels are then not those that the
    classifier was trained on."""
    largest_class: float
    """Share of the largest class among the calibration rows: the accuracy of whoever always names that."""
    reordered: tuple[tuple[int, ...], float] | None
    """The label that most calibration rows of each column have, where that is another order of the classes, and the
    accuracy in it."""


def accuracy_on(network: Network, bank_rows: Rows, calibration_rows: Rows) -> FitAccuracy:
    """How often a classifier is right on rows of the bank and on all that calibrate."""
    logits = network.run(calibration_rows.x)[LOGITS]
    predicted, right = logits.argmax(axis=1), calibration_rows.y
    calibration = float((predicted == right).mean())
    n = min(len(bank_rows), JUDGED_ROWS)
    judged = bank_rows.take(np.linspace(0, len(bank_rows) - 1, n).astype(np.int64))
    bank = float((network.run(judged.x)[LOGITS].argmax(axis=1) == judged.y).mean())
    return FitAccuracy(
        calibration=calibration,
        bank=bank,
        # Three standard errors of the difference of two shares, where these are largest.
        bank_fares_worse=bool(calibration - bank > 1.5 * np.sqrt(1 / n + 1 / len(calibration_rows))),
        largest_class=float(np.bincount(right).max() / len(right)),
        reordered=_other_order(predicted, right, logits.shape[1]),
    )


def _other_order(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int
) -> tuple[tuple[int, ...], float] | None:
    """The label of more than half of the rows of each column, where these are all the classes in another order."""
    order = []
    for column in range(num_classes):
        counts = np.bincount(labels[predicted == column], minlength=num_classes)
        if 2 * counts.max() <= counts.sum():
            return None
        order.append(int(counts.argmax()))
    if order == list(range(num_classes)) or len(set(order)) < num_classes:
        return None
    return tuple(order), float((np.array(order)[predicted] == labels).mean())
