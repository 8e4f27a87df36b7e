"""Rows of one source into a bank and a calibration that share none. Needs no torch."""

from __future__ import annotations

import math

import numpy as np

from softkin import conformal
from softkin.errors import InvalidInputError
from softkin.nonconformity import Form
from softkin_training.row_contents import originals
from softkin_training.rows import Rows, members_of_each

REFERENCE_SHARE = 0.5
"""Part of the calibration rows that puts the parts of the joint form on one scale; the rest calibrates the sum."""
FEWEST_REFERENCES = 2


def first_of_each(rows: Rows, taken: Rows | None = None) -> Rows:
    """Drop rows whose content came before or is `taken`; the rows themselves where none has to go.

    A calibration row that the bank holds too looks less strange than new rows do, so more of these would be flagged.

    Args:
        rows: of one source.
        taken: rows that are used elsewhere already.
    """
    keep = np.flatnonzero(originals(rows, before=taken) == np.arange(len(rows)))
    return rows if len(keep) == len(rows) else rows.take(keep)


def split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Bank and calibration rows by a seeded plain permutation, which leaves calibration rows exchangeable.

    Args:
        rows: of distinct content.
        share: part of the rows that calibrates, in (0, 1).
        seed: of the permutation.

    Raises:
        InvalidInputError: the share is out of range, or so small or large that one of the parts is empty.
    """
    if not 0 < share < 1:
        raise InvalidInputError(
            "calibration_share", f"got {share:g}; must lie strictly in (0, 1), for instance 0.2 for a fifth of the rows"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = round(len(rows) * share)
    if not 0 < cut < len(rows):
        raise InvalidInputError(
            "calibration_share",
            f"got {share:g}, which is {cut} of {len(rows)} distinct rows; some must calibrate, and "
            "some be left for the bank",
        )
    return rows.take(np.sort(order[cut:])), rows.take(np.sort(order[:cut]))


def reference_size(num_rows: int) -> int:
    """How many of the calibration rows the joint form sets aside."""
    return round(num_rows * REFERENCE_SHARE)


def rows_for_alpha(alpha: float, form: Form) -> int:
    """The fewest calibration rows that can give a p-value of alpha after the joint form has set its part aside."""
    needed = conformal.rows_needed(max(alpha, 1e-9))  # of less, no bank of rows comes near
    if form != "joint":
        return needed
    rows = math.floor(needed / (1 - REFERENCE_SHARE)) - 2  # just below: from 0 a tiny alpha would count for hours
    while rows - reference_size(rows) < needed or reference_size(rows) < FEWEST_REFERENCES:
        rows += 1
    return rows


def choose_bank_rows(rows: Rows, num_rows: int, seed: int) -> Rows:
    """A random sample of about `num_rows`, stratified by class with at least one row each; all rows where fewer."""
    if num_rows >= len(rows):
        return rows
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(members, max(1, round(num_rows * len(members) / len(rows))), replace=False)
        for members in members_of_each(rows.y)
    ]
    return rows.take(np.sort(np.concatenate(chosen)))
