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
        """What the manifest says of it."""
        if self.all_labelled:
            return {}
        kept = {"kept_from_version": self.kept_from} if self.kept_from else {}
        return {CLASS_P_VALUES: {"labelled_rows": self.number, **kept}}


def class_rows(old: Bundle, rows: int, *, labelled: bool, grow: bool) -> ClassRows:
    """Which labelled rows a calibration has that comes of a bundle's and of `rows` new ones.

    Labelled rows that are no sample of today's inliers are left out once labelled ones of today are there.

    Args:
        old: the bundle.
        rows: how many rows come.
        labelled: whether they have labels.
        grow: whether they are added to those of the bundle.
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
    """The calibration of the rows that came, with the scores at true classes that `classes` says."""
    if classes.taken == "new":
        return new
    scores, true = old.true_class_scores, old.true_classes
    if classes.taken == "both":
        scores, true = merge_sorted(scores, new.true_class_scores, true, new.true_classes)
    return dataclasses.replace(new, true_class_scores=scores, true_classes=true)


def merge_sorted(
    a: NDArray[np.float64], b: NDArray[np.float64], a_values: NDArray[_Value], b_values: NDArray[_Value]
) -> tuple[NDArray[np.float64], NDArray[_Value]]:
    """Two sorted arrays as one, with the value of each entry; `a` comes first among equals."""
    scores = np.concatenate([a, b])
    order = np.argsort(scores, kind="stable")
    return scores[order], np.concatenate([a_values, b_values])[order]
