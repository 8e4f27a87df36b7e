"""The calibration that rows make: every score stands beside its own class, whatever the network takes the row for."""

from __future__ import annotations

import numpy as np
import pytest

from softkin.bank import pack
from softkin.nonconformity import Nonconformity, Outputs, fit_references
from softkin_training.calibrate import calibration_of, stored

ROWS, CLASSES = 40, 3
LAYERS = ("early", "late")


@pytest.fixture
def outputs():
    """Of rows that the network takes for any class."""
    rng = np.random.default_rng(0)
    masses = rng.uniform(0.1, 2.0, size=(ROWS, len(LAYERS), CLASSES)).astype(np.float32)
    return Outputs(masses=masses, logits=rng.normal(size=(ROWS, CLASSES)).astype(np.float32))


@pytest.fixture
def true_classes():
    """Most of which are not those that the network names."""
    return np.random.default_rng(1).integers(CLASSES, size=ROWS)


@pytest.fixture
def density():
    """Of unequal classes and layers."""
    return Nonconformity(form="density", class_weights=np.array([5.0, 3.0, 2.0]), layer_weights=np.array([2.0, 0.5]))


def test_scores_are_sorted_each_with_its_class(outputs, true_classes, density):
    """Guarantees per class look up a class's scores by it: at the wrong place the rate of another class would count."""
    calibration, scores = calibration_of(density, outputs, true_classes, LAYERS)

    every = np.arange(ROWS)
    a_BC, predicted = density(outputs), outputs.logits.argmax(axis=1)
    assert (predicted != true_classes).sum() > ROWS // 2
    np.testing.assert_array_equal(scores, a_BC[every, predicted])
    found = zip(calibration.outlier_scores, calibration.predicted_classes, strict=True)
    assert list(found) == sorted(zip(scores, predicted, strict=True))
    found = zip(calibration.true_class_scores, calibration.true_classes, strict=True)
    assert list(found) == sorted(zip(a_BC[every, true_classes], true_classes, strict=True))


def test_what_a_layer_adds_to_scores_is_sorted_under_its_name(outputs, true_classes, density):
    """Of the predicted class; a request is told by it which layer finds its row strange."""
    calibration, _ = calibration_of(density, outputs, true_classes, LAYERS)

    predicted = outputs.logits.argmax(axis=1)
    assert list(calibration.layer_terms) == list(LAYERS)
    for i, layer in enumerate(LAYERS):
        weight = density.layer_weights[i : i + 1]
        alone = Nonconformity(form="density", class_weights=density.class_weights, layer_weights=weight)
        of_layer = alone(Outputs(masses=outputs.masses[:, i : i + 1], logits=outputs.logits))
        expected = np.sort(of_layer[np.arange(ROWS), predicted])
        np.testing.assert_array_equal(calibration.layer_terms[layer], expected)


def test_the_joint_form_keeps_references_in_the_place_of_layers(outputs, true_classes, density):
    """Its parts are what a row is strange by."""
    parts = ("posterior", "energy")
    references = fit_references(density, parts, outputs)
    joint = Nonconformity(
        form="joint",
        class_weights=density.class_weights,
        layer_weights=density.layer_weights,
        parts=parts,
        references=references,
    )

    calibration, _ = calibration_of(joint, outputs, true_classes, LAYERS)

    assert calibration.layer_terms == {}
    assert calibration.references.keys() == references.keys()


def test_the_rows_of_a_stored_bank_are_in_its_file_alone(tmp_path):
    """The session maps them from there: in memory as well, a large bank would be held twice."""
    z, ids = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32), np.arange(100)
    metrics, temperatures = {"a": "squared_euclidean"}, {"a": 1.0}
    bank = pack({"a": z}, ids % 2, ids, num_classes=2, metrics=metrics, temperatures=temperatures)

    found, file = stored(bank, tmp_path)

    rows = found.layers["a"].rows
    assert isinstance(rows, np.memmap)
    assert rows.filename == file
    np.testing.assert_array_equal(rows, bank.layers["a"].rows)
