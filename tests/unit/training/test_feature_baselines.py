"""ReAct, SCALE and fDBD against their equations, row by row; pytorch-ood's are in test_baselines_peers.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from softkin_training.feature_baselines import FDBD, react, scale

pytestmark = pytest.mark.training


@pytest.fixture
def rows():
    """Features after a ReLU, and a last layer of three classes."""
    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(size=(6, 10)), 0.0), rng.normal(size=(3, 10)), rng.normal(size=3)


def energy(logits):
    """Of one row."""
    return -math.log(sum(math.exp(v) for v in logits))


def test_react_is_the_energy_of_clipped_features(rows):
    """Every feature above the threshold becomes the threshold."""
    h, w, b = rows

    expected = [energy(w @ np.array([min(v, 0.7) for v in row]) + b) for row in h]
    np.testing.assert_allclose(react(h, 0.7, w, b), expected)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_scale_multiplies_by_the_share_of_the_largest(rows, size):
    """Of ten features the largest two make the divisor, however small they are."""
    h, w, b = rows
    h = h * size

    expected = [energy(w @ row * math.exp(row.sum() / sum(sorted(row)[-2:])) + b) for row in h]
    np.testing.assert_allclose(scale(h, w, b, quantile=0.8), expected)


def test_scale_finds_the_largest_of_many_features():
    """At the default quantile, whichever columns they are in."""
    h = np.random.default_rng(1).random((20, 400))
    w = np.random.default_rng(2).normal(size=(3, 400)) / 100

    expected = [energy(w @ row * math.exp(row.sum() / sum(sorted(row)[-60:]))) for row in h]
    np.testing.assert_allclose(scale(h, w, np.zeros(3)), expected)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_scale_of_few_features_divides_by_the_largest(rows, width):
    """By the sum of all of them, which a share that rounds to none of them came to, every row is scaled alike."""
    h, w, b = rows
    h, w = h[:, :width] + 0.1, w[:, :width]

    expected = [energy(w @ row * math.exp(row.sum() / row.max()) + b) for row in h]
    np.testing.assert_allclose(scale(h, w, b), expected)


def test_scale_leaves_a_row_of_zeros_as_it_is(rows):
    """Nothing divided by nothing is no number."""
    _, w, b = rows

    np.testing.assert_allclose(scale(np.zeros((1, 10)), w, b), [energy(b)])


@pytest.mark.parametrize(("size", "features"), [(1.0, 1.0), (1e-4, 1.0), (1.0, 1e-5)])
def test_fdbd_is_the_mean_distance_to_boundaries_over_that_to_the_mean(rows, size, features):
    """The predicted class has no boundary with itself. Small weights and small features have what others have."""
    h, w, b = rows
    h, w, b = h * features, w * size, b * size
    mean = h.mean(axis=0)

    expected = []
    for row in h:
        logits = w @ row + b
        f = int(logits.argmax())
        distances = [(logits[f] - logits[c]) / np.linalg.norm(w[f] - w[c]) for c in range(3) if c != f]
        expected.append(-sum(distances) / 2 / np.linalg.norm(row - mean))
    np.testing.assert_allclose(FDBD(mean=mean, weight=w, bias=b).score(h), expected)


def test_fdbd_takes_classes_of_equal_weights_and_a_row_at_the_mean(rows):
    """Both distances are 0, and so is the first one's share; the second makes the row the most ordinary of all."""
    h, w, b = rows
    w[2], b[2] = w[1], b[1]

    found = FDBD(mean=h[0], weight=w, bias=b).score(h)
    assert not np.isnan(found).any()
    assert found.argmin() == 0


def test_fdbd_has_a_ratio_for_every_class_in_the_place_of_the_predicted_one(rows):
    """Boundaries of the wrong side count as negative distances; joint scores are made of these."""
    h, w, b = rows
    mean = h.mean(axis=0)

    expected = []
    for row in h:
        logits, off = w @ row + b, np.linalg.norm(row - mean)
        apart = [[np.linalg.norm(w[j] - w[c]) for c in range(3)] for j in range(3)]
        of_class = [[(logits[j] - logits[c]) / apart[j][c] for c in range(3) if c != j] for j in range(3)]
        expected.append([sum(distances) / 2 / off for distances in of_class])
    fdbd = FDBD(mean=mean, weight=w, bias=b)
    found = [fdbd.of_class(h, np.full(len(h), j)) for j in range(3)]
    np.testing.assert_allclose(np.stack(found, axis=1), expected)
