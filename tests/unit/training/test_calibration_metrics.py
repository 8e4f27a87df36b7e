"""Calibration of probabilities against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from softkin_training.calibration_metrics import (
    accuracy_by_bin,
    adaptive_calibration_error,
    brier_score,
    classifier_calibration,
    expected_calibration_error,
)

pytestmark = pytest.mark.training


@pytest.fixture
def logits():
    """`[200, 4]`, some rows sure, some not."""
    return (np.random.default_rng(0).normal(size=(200, 4)) * 3).astype(np.float32)


@pytest.fixture
def labels():
    """`[200]`."""
    return np.random.default_rng(1).integers(0, 4, 200)


def softmax(logits):
    """Plain."""
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_accuracy_nll_and_brier_are_the_textbooks(logits, labels):
    """scikit-learn for the first two, a loop over rows and classes for the last."""
    found, p = classifier_calibration(logits, labels), softmax(logits)

    assert found.rows == 200
    assert found.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(axis=1)))
    assert found.nll == pytest.approx(log_loss(labels, p, labels=range(4)))
    loop = sum((p[i, c] - (labels[i] == c)) ** 2 for i in range(200) for c in range(4)) / 200
    assert found.brier == pytest.approx(loop)
    assert brier_score(np.eye(4)[labels], labels) == 0.0
    assert brier_score(np.eye(4)[(labels + 1) % 4], labels) == 2.0


def test_a_classifiers_errors_are_those_of_its_predicted_classes(logits, labels):
    """Both errors and the diagram over 15 bins of the largest probability, in float64 though the logits are float32."""
    found, p = classifier_calibration(logits, labels), softmax(logits)
    confidence, correct = p.max(axis=1), logits.argmax(axis=1) == labels

    assert found.ece == pytest.approx(expected_calibration_error(confidence, correct, 15), rel=1e-9)
    assert found.adaptive_ece == pytest.approx(adaptive_calibration_error(confidence, correct, 15), rel=1e-9)
    assert [b.rows for b in found.reliability] == [b.rows for b in accuracy_by_bin(confidence, correct, 15)]
    assert found.ece != pytest.approx(found.adaptive_ece)


def test_nll_stays_finite_where_a_probability_underflows():
    """exp(-2000) is zero, its logarithm is not."""
    found = classifier_calibration(np.array([[2000.0, 0.0]], np.float32), np.array([1]))

    assert found.nll == pytest.approx(2000.0)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_is_the_weighted_gap_over_equally_wide_bins(bins):
    """Against a loop over bins (low, high], the first with 0; on values at the edges too."""
    rng = np.random.default_rng(2)
    confidence = np.r_[rng.random(150), np.linspace(0, 1, bins + 1), [0.0, 1.0, 1.0]]
    correct = rng.random(len(confidence)) < 0.6

    edges, expected, rows = np.linspace(0, 1, bins + 1), 0.0, []
    for i in range(bins):
        inside = [j for j, c in enumerate(confidence) if edges[i] < c <= edges[i + 1] or (i == 0 and c == 0)]
        rows.append(len(inside))
        if inside:
            expected += abs(sum(correct[inside]) - sum(confidence[inside])) / len(confidence)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected)
    assert [b.rows for b in accuracy_by_bin(confidence, correct, bins)] == rows


def test_bins_say_what_is_in_them():
    """Mean and accuracy; None where a bin is empty."""
    found = accuracy_by_bin(np.array([0.1, 0.2, 0.9]), np.array([True, False, True]), 2)
    empty = accuracy_by_bin(np.array([0.9]), np.array([True]), 2)[0]

    assert [(b.low, b.high, b.rows) for b in found] == [(0.0, 0.5, 2), (0.5, 1.0, 1)]
    assert [b.mean for b in found] == pytest.approx([0.15, 0.9])
    assert [b.accuracy for b in found] == [0.5, 1.0]
    assert (empty.rows, empty.mean, empty.accuracy) == (0, None, None)


def test_adaptive_ece_has_bins_of_equally_many_rows():
    """Against array_split of the sorted rows, where nothing ties and the number divides."""
    rng = np.random.default_rng(3)
    confidence = rng.random(150)
    correct = rng.random(150) < confidence

    order = np.argsort(confidence)
    expected = sum(abs((correct[b].astype(float) - confidence[b]).sum()) for b in np.array_split(order, 15)) / 150
    assert adaptive_calibration_error(confidence, correct) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [3, 15])
def test_adaptive_ece_puts_ties_into_the_bin_of_the_first_of_them(bins):
    """Against a loop, where the number of rows does not divide."""
    rng = np.random.default_rng(6)
    confidence, correct = rng.random(40).round(1), rng.random(40) < 0.5

    gaps = [0.0] * bins
    for c, right in zip(confidence, correct, strict=True):
        gaps[sum(other < c for other in confidence) * bins // 40] += right - c
    assert adaptive_calibration_error(confidence, correct, bins) == pytest.approx(sum(map(abs, gaps)) / 40)


def test_adaptive_ece_does_not_depend_on_the_order_of_ties():
    """Most rows of a sure classifier have the same probability."""
    rng = np.random.default_rng(4)
    confidence = np.where(rng.random(200) < 0.7, 1.0, rng.random(200).round(1))
    correct = rng.random(200) < 0.8
    shuffled = rng.permutation(200)

    found = adaptive_calibration_error(confidence, correct)
    assert found == pytest.approx(adaptive_calibration_error(confidence[shuffled], correct[shuffled]))
    assert adaptive_calibration_error(np.ones(10), np.arange(10) < 8) == pytest.approx(0.2)


def test_a_calibrated_classifier_has_small_errors():
    """20,000 rows that are right as often as they say: only chance is left."""
    rng = np.random.default_rng(5)
    confidence = rng.random(20_000)
    correct = rng.random(20_000) < confidence

    assert expected_calibration_error(confidence, correct) < 0.02
    assert adaptive_calibration_error(confidence, correct) < 0.02
    assert expected_calibration_error(np.full(1000, 0.9), np.arange(1000) < 500) == pytest.approx(0.4)
