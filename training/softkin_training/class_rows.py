"""Which labelled rows class p-values rest on, where a calibration has rows without labels.

P-values, and with them verdicts and every guarantee, ask for no label: their calibration rows are scored at the class
that the network predicts, as every row is. A class p-value asks how a row compares with calibration rows *of* a class,
so that only labelled rows say anything of it; credibility and confidence are made of class p-values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from softkin.bundle import Bundle
from softkin.calibration import Calibration
from softkin.manifest import CLASS_P_VALUES

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """The labelled rows of a new calibration."""

    taken: Literal["old", "new", "both"]
    """Those of the bundle before, of the rows that came now, or both."""
    number: int
    kept_from: str = ""
    """The version whose inliers they are a sample of, where those have been replaced since: of inliers now class
    p-values promise nothing."""
    all_labelled: bool = False
    """Whether they are the rows behind p-values."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest's provenance says about class p-values; empty where all rows are labelled."""
        if self.all_labelled:
            return {}
        kept = {"kept_from_version": self.kept_from} if self.kept_from else {}
        return {CLASS_P_VALUES: {"labelled_rows": self.number, **kept}}


def class_rows(old: Bundle, rows: int, *, labelled: bool, grow: bool) -> ClassRows:
    """Choose the labelled rows of a new calibration: those of the bundle before, the new ones, or both.

    Labelled rows that are no sample of today's inliers are left out as soon as there are some that are.

    Args:
        old: the bundle before.
        rows: how many new rows there are.
        labelled: whether these have labels.
        grow: whether they are added to those of the bundle, or replace them.
    """
    said = old.manifest.provenance.get(CLASS_P_VALUES)
    said = said if isinstance(said, dict) else {}
    kept_from = str(said.get("kept_from_version", ""))
    known = len(old.calibration.true_classes)
    if not labelled:
        return ClassRows(taken="old", number=known, kept_from=kept_from or ("" if grow else old.manifest.version))
    if not grow:
        return ClassRows(taken="new", number=rows, all_labelled=True)
    if kept_from:
        return ClassRows(taken="new", number=rows)
    return ClassRows(taken="both", number=known + rows, all_labelled=not said)


def with_classes(new: Calibration, classes: ClassRows, old: Calibration) -> Calibration:
    """The calibration of the new rows, with the scores at true classes of the rows that `classes` names."""
    if classes.taken == "new":
        return new
    scores, true = old.true_class_scores, old.true_classes
    if classes.taken == "both":
        scores, true = merge_sorted(scores, new.true_class_scores, true, new.true_classes)
    return dataclasses.replace(new, true_class_scores=scores, true_classes=true)


def merge_sorted(
    a: NDArray[np.float64], b: NDArray[np.float64], a_values: NDArray[_Value], b_values: NDArray[_Value]
) -> tuple[NDArray[np.float64], NDArray[_Value]]:
    """Merge two sorted arrays and the values that belong to their entries; among equals those of `a` come first."""
    scores = np.concatenate([a, b])
    order = np.argsort(scores, kind="stable")
    return scores[order], np.concatenate([a_values, b_values])[order]
