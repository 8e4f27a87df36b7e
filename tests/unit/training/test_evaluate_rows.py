"""What the report says where rows are not what they are given for."""

from __future__ import annotations

import numpy as np
import pytest

from softkin_training.evaluate import evaluate

pytestmark = pytest.mark.training

UNLIKE = "These inliers are not like the calibration rows: the chance that their scores differ so much by luck is "


def notes(tiny, inliers, **outliers):
    """Of a report on such rows."""
    sets = outliers or {"far": tiny.outliers}
    return evaluate(tiny.path, inliers=inliers, labels=None, outliers=sets, compare=False).notes


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (0.8, True), (1.4, True)])
def test_inliers_that_are_not_like_the_calibration_rows_are_told(tiny, factor, told):
    """Nearer to their class too: their rate of false alarms alone would look like a good one."""
    centers = np.stack([tiny.bank.x[tiny.bank.y == j].mean(axis=0) for j in range(len(tiny.spec.classes))])
    nearest = centers[np.square(tiny.inliers[:, None] - centers).sum(axis=2).argmin(axis=1)]

    found = notes(tiny, nearest + np.float32(factor) * (tiny.inliers - nearest))

    assert [note.startswith(UNLIKE) for note in found if "calibration rows" in note] == [True] * told


def test_outliers_that_the_detector_knows_for_inliers_are_told_by_set(tiny):
    """Of the bank, of the calibration rows or of the inliers: to flag these would be an error."""
    mixed = np.r_[tiny.bank.x[:2], tiny.calibration.x[:3], tiny.inliers[:4], tiny.outliers]

    found = [n for n in notes(tiny, tiny.inliers, far=tiny.outliers, mixed=mixed) if " outliers " in n]

    assert [n.split(" have content")[0] for n in found] == [f"9 of the {len(mixed)} outliers 'mixed'"]
