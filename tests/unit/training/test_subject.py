"""A bundle under test: that what other scores share of it is what it serves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from softkin import Detector
from softkin import bundle as bundles
from softkin.bundle_arrays import Golden
from softkin.detector import nonconformity_of
from softkin.scorer import Network
from softkin.session import run_session
from softkin_training.build import build
from softkin_training.subject import Subject

pytestmark = pytest.mark.training


def test_a_bundles_own_numbers_are_those_that_its_detector_answers(tiny):
    """Row by row: the accuracy by credibility in a report is of the credibility that is served, no p-value."""
    between = (tiny.inliers[:50] + tiny.inliers[50:100]) / 2  # often nearer to another class than to the predicted one
    x = np.concatenate([tiny.inliers, tiny.outliers, 1.5 * tiny.inliers[:50], between])
    subject = Subject(bundles.read_bundle(tiny.path))

    own, served = subject.own(subject.detector.outputs(x)), Detector.load(tiny.path).score(x)

    for name in ("outlier_score", "p_value", "predicted_class", "credibility"):
        np.testing.assert_array_equal(getattr(own, name), getattr(served, name), err_msg=name)
    assert (own.credibility != own.p_value).any()


def test_scores_of_masses_count_classes_and_layers_as_the_bundle_does(tiny, tmp_path):
    """Where classes have unequal shares of the bank and layers unequal weights; fused by the joint form."""
    few_of_one = np.flatnonzero((tiny.bank.y > 0) | (np.arange(len(tiny.bank)) % 4 == 0))
    weighted = tuple(dataclasses.replace(s, weight=w) for s, w in zip(tiny.spec.layers, (2.0, 0.5), strict=True))
    spec = dataclasses.replace(tiny.spec, layers=weighted)
    path = tmp_path / "bundle"
    build(path, tiny.model, spec, bank_rows=tiny.bank.take(few_of_one), calibration_rows=tiny.calibration)
    loaded = bundles.read_bundle(path)
    subject = Subject(loaded)
    outputs = subject.detector.outputs(tiny.inliers)

    references = loaded.calibration.references
    expected = nonconformity_of(loaded.manifest, loaded.bank, references)
    found = subject.nonconformity(loaded.manifest.parts, references)
    np.testing.assert_array_equal(found(outputs), expected(outputs))
    plain = subject.nonconformity()
    assert (plain.form, plain.layer_weights.tolist()) == ("density", [2.0, 0.5])
    assert plain.class_weights.tolist() == np.bincount(tiny.bank.y[few_of_one]).tolist()


def test_a_bundle_without_probe_rows_has_none_to_run(tiny):
    """Scores that need some are then left out; of no rows there is no largest feature either."""
    loaded = bundles.read_bundle(tiny.path)
    none = Golden(inputs=loaded.golden.inputs[:0], outlier_scores=loaded.golden.outlier_scores[:0])

    assert Subject(dataclasses.replace(loaded, golden=none)).golden is None
    assert len(Subject(loaded).golden.outputs) == len(loaded.golden.inputs)


def test_rows_go_through_the_network_once(tiny, monkeypatch):
    """For the bundle's own scores and for the others' alike: it takes longest where the network is large."""
    subject, runs = Subject(bundles.read_bundle(tiny.path)), []

    def counted(session, outputs, feeds, *rest):
        runs.append(len(feeds[subject.detector.manifest.input_name]))
        return run_session(session, outputs, feeds, *rest)

    monkeypatch.setattr("softkin.session.run_session", counted)
    seen = subject.run(tiny.inliers[:7])

    assert runs == [7]
    network = Network(tiny.path / "model.onnx").run(tiny.inliers[:7])
    np.testing.assert_allclose(seen.z["wide"], network["representation.wide"], rtol=1e-6)
    np.testing.assert_allclose(seen.logits, network["logits"], rtol=1e-6)


def test_neighbours_of_a_layer_are_looked_for_once(tiny):
    """Three scores ask for them, and nothing in a report takes longer."""
    seen = Subject(bundles.read_bundle(tiny.path)).run(tiny.outliers)

    first = {name: seen.nearest(name) for name in ("wide", "narrow")}
    assert all(seen.nearest(name) is found for name, found in first.items())
    assert (first["wide"][1] != first["narrow"][1]).any()
