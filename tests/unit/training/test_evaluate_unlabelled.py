"""What the report says of a bundle that was recalibrated without labels."""

from __future__ import annotations

import pytest

from fresh_rows import inliers
from softkin_training.evaluate import evaluate
from softkin_training.recalibrate import recalibrate

pytestmark = pytest.mark.training


def test_credibility_is_told_to_rest_on_other_rows_than_p_values(tiny, tmp_path):
    """And of a bundle whose rows are all labelled nothing is said."""
    recalibrate(tiny.path, tmp_path / "b", inliers(tiny, 40, seed=3).x)

    found, plain = (
        evaluate(path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, compare=False).notes
        for path in (tmp_path / "b", tiny.path)
    )

    [note] = [note for note in found if "credibility" in note]
    assert note.startswith("No labels: p-values, verdicts and every guarantee are those of the new rows; class ")
    assert note.endswith("they rest on 300 labelled rows of version 1, and promise nothing of inliers now.")
    assert not any("credibility" in note for note in plain)
