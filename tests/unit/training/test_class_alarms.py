"""Classes in which inliers are flagged more often than in others."""

from __future__ import annotations

import numpy as np
import pytest

from softkin import Detector
from softkin_training.class_alarms import uneven_classes
from softkin_training.evaluate import evaluate

pytestmark = pytest.mark.training

NAMES = ("ok", "fraud", "refund", "test", "other")


def inliers(*counts):
    """Verdicts and predicted classes of inliers, from flagged rows and all rows of each class."""
    flagged = [np.arange(rows) < flags for flags, rows in counts]
    return np.concatenate(flagged), np.repeat(np.arange(len(counts)), [rows for _, rows in counts])


def test_a_rare_class_that_is_flagged_is_named():
    """The share of all is what was asked for, and half of one class is flagged."""
    (remark,) = uneven_classes(*inliers((40, 980), (10, 20)), NAMES[:2], 0.05)

    assert remark == (
        "False alarms gather in some classes: flagged are, of inliers predicted to be 'fraud' 10 of 20 (50.0%). "
        "The guarantee class_conditional keeps the same rate in every predicted class."
    )


def test_one_of_five_classes_is_named_from_a_chance_of_one_in_500_on():
    """That 13 of 100 are flagged at 0.05 has a chance of 0.0015, which five classes bring below 0.01."""
    assert len(uneven_classes(*inliers((13, 100), (0, 1000), (0, 1000), (0, 1000), (0, 1000)), NAMES, 0.05)) == 1


def test_the_worst_three_are_named():
    """By their shares, not by their rows; the others are counted."""
    (remark,) = uneven_classes(*inliers((0, 5000), (40, 200), (20, 50), (20, 40), (60, 200)), NAMES, 0.05)

    named = "'test' 20 of 40 (50.0%); 'refund' 20 of 50 (40.0%); 'other' 60 of 200 (30.0%)"
    assert f"{named}; and more in 1 other. " in remark


@pytest.mark.parametrize(
    "counts",
    [
        [(50, 1000), (2, 20)],
        [(0, 1000), (0, 0)],
        [(5, 100), (5, 100), (0, 0)],
        [(300, 1000), (9, 30)],
        [(55, 1000), (60, 1000)],
        [(0, 1000), (4, 100)],
        [(12, 100), (0, 1000), (0, 1000), (0, 1000), (0, 1000)],
    ],
    ids=[
        "luck",
        "none of a class",
        "none of the last of three",
        "all have drifted alike",
        "alike",
        "no more than asked for",
        "one of five",
    ],
)
def test_what_luck_or_a_drift_of_all_explains_is_no_remark(counts):
    """A class is compared with all inliers where more of these are flagged than alpha, and else with alpha.

    That 12 of 100 are flagged at 0.05 has a chance of 0.0043 in one class, and of five times that in one of five.
    """
    assert uneven_classes(*inliers(*counts), NAMES[: len(counts)], 0.05) == []


def test_a_report_has_it_and_the_guarantee_that_it_names_mends_it(tiny):
    """Of this bundle's classes one is wider than the others."""
    found = evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})
    detector = Detector.load(tiny.path)
    marginal, even = (detector.score(tiny.inliers, guarantee=g) for g in ("marginal", "class_conditional"))

    def remark(scores):
        return uneven_classes(scores.is_outlier, scores.predicted_class, detector.manifest.classes, 0.05)

    assert remark(marginal)
    assert remark(even) == []
    assert found.notes[:1] == tuple(remark(marginal))
