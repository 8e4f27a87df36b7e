"""The p-values of a calibration, against loops over its rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from softkin.calibration import Calibration

CLASSES = 4
"""The last one has no calibration rows, neither predicted nor true."""


def make(seed, n=60, levels=12):
    """A calibration with ties, and rows to test: scores, predicted classes, nonconformity."""
    rng = np.random.default_rng(seed)
    calibration = Calibration(
        outlier_scores=np.sort(rng.integers(0, levels, n).astype(float)),
        predicted_classes=rng.integers(0, CLASSES - 1, n).astype(np.int32),
        true_class_scores=np.sort(rng.integers(0, levels, n).astype(float)),
        true_classes=rng.integers(0, CLASSES - 1, n).astype(np.int32),
    )
    a = rng.integers(-1, levels + 1, (25, CLASSES)).astype(float)
    a[0] = np.inf
    predicted = rng.integers(0, CLASSES, 25).astype(np.int32)
    return calibration, a[np.arange(25), predicted], predicted, a, rng.random(25)


def p_value(score, scores, u):
    """The definition, smoothed where u is given."""
    above, equal = sum(c > score for c in scores), sum(c == score for c in scores)
    return (above + (1 if u is None else u) * (1 + equal)) / (len(scores) + 1)


@pytest.mark.parametrize("smooth", [False, True], ids=["plain", "smoothed"])
@pytest.mark.parametrize("seed", range(5))
def test_marginal_p_values_count_all_calibration_rows(seed, smooth):
    """The row's among label-free scores; each class's among scores at the true class, whatever that class is."""
    c, score, _, a, u = make(seed)

    p, class_p = c.marginal(score, a, u if smooth else None)

    us = u if smooth else [None] * len(score)
    assert p.tolist() == [p_value(s, c.outlier_scores, v) for s, v in zip(score, us, strict=True)]
    assert class_p.tolist() == [[p_value(s, c.true_class_scores, v) for s in row] for row, v in zip(a, us, strict=True)]


@pytest.mark.parametrize("smooth", [False, True], ids=["plain", "smoothed"])
@pytest.mark.parametrize("seed", range(5))
def test_class_conditional_p_values_count_the_rows_of_one_class(seed, smooth):
    """The row's among calibration rows of its predicted class; each class's among rows of that true class."""
    c, score, predicted, a, u = make(seed)

    p, class_p = c.class_conditional(score, predicted, a, u if smooth else None)

    us = u if smooth else [None] * len(score)
    for i, v in enumerate(us):
        same = c.outlier_scores[c.predicted_classes == predicted[i]].tolist()
        assert p[i] == p_value(score[i], same, v)
        for j in range(CLASSES):
            assert class_p[i, j] == p_value(a[i, j], c.true_class_scores[c.true_classes == j].tolist(), v)


def test_a_class_without_calibration_rows_is_never_strange():
    """One possible value, 1: nothing can be flagged there, which `check_rule` tells the caller."""
    c, score, _, a, _ = make(0)
    predicted = np.full(len(score), CLASSES - 1, np.int32)

    p, class_p = c.class_conditional(score, predicted, a, None)

    assert (p == 1).all()
    assert (class_p[:, -1] == 1).all()


def test_rows_are_counted_by_predicted_class():
    """Every class has its place, those without rows too."""
    c = make(0)[0]

    assert len(c) == 60
    assert c.rows_by_predicted_class(CLASSES) == tuple((c.predicted_classes == j).sum() for j in range(CLASSES))
    assert c.rows_by_predicted_class(CLASSES)[-1] == 0


def test_a_changed_copy_does_not_remember_how_the_old_scores_were_split():
    """Scores are split by class once for each calibration, and again for another."""
    c, score, predicted, a, _ = make(0)
    before = c.class_conditional(score, predicted, a, None)
    moved = dataclasses.replace(c, outlier_scores=c.outlier_scores + 1000, true_class_scores=c.true_class_scores + 1000)

    p, class_p = moved.class_conditional(score, predicted, a, None)

    has_rows = predicted < CLASSES - 1
    assert (p[np.isfinite(score)] == 1).all()
    assert (p[np.isinf(score) & has_rows] < 1).all()
    assert (class_p[1:] == 1).all()
    again = c.class_conditional(score, predicted, a, None)
    assert all((x == y).all() for x, y in zip(before, again, strict=True))
