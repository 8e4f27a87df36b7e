"""Bundles whose banks are condensed, in fewer bits, or both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from softkin import Detector
from softkin.bundle import read_bundle
from softkin_training.build import build


def rebuild(tiny, out, *, outliers=None, **changes):
    """The tiny bundle with something changed."""
    spec = dataclasses.replace(tiny.spec, **changes)
    build(out, tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration, outliers=outliers)
    return out


@pytest.mark.parametrize("form", ["density", "joint"])
@pytest.mark.parametrize(
    "changes",
    [{"precision": "float16"}, {"precision": "int8"}, {"condense": 10.0}, {"condense": 5.0, "precision": "int8"}],
    ids=["float16", "int8", "condensed", "condensed int8"],
)
def test_approximate_banks_are_calibrated_by_their_own_scorer(tiny, tmp_path, form, changes):
    """So the false-alarm rate stays exact; the manifest says what changed, and it is little."""
    parts = tiny.spec.parts if form == "joint" else ()
    outliers = {"far": tiny.outliers}
    path = rebuild(tiny, tmp_path / "b", nonconformity=form, parts=parts, outliers=outliers, **changes)
    bundle = read_bundle(path)
    m, n = bundle.manifest, len(bundle.calibration.outlier_scores)

    found = np.sort(Detector.load(path, device="cpu").score(tiny.calibration.x).outlier_score)

    if form == "density":  # all calibration rows, none set aside
        np.testing.assert_allclose(found, bundle.calibration.outlier_scores, rtol=1e-5, atol=1e-5)
    assert m.bank_precision == changes.get("precision", "float32")
    assert (m.bank_size, m.condensed_from) == (
        (round(300 / changes["condense"]), 300) if "condense" in changes else (300, 0)
    )
    a = m.approximation
    assert 1 / (n + 1) - 1e-12 <= a.max_p_value_change <= (0.6 if "condense" in changes else 0.1)
    assert 0 < a.mean_p_value_change < a.max_p_value_change
    assert 0 <= a.verdict_changes <= 0.1
    assert abs(a.auroc_changes["far"]) < 0.02


def test_a_condensed_bank_still_names_training_rows(tiny, tmp_path):
    """Each layer's prototypes have ids of their own, weights sum to the rows, and evidence leads to the class."""
    path = rebuild(tiny, tmp_path / "b", condense=10.0)
    bank = read_bundle(path).bank

    found = Detector.load(path, device="cpu").score(tiny.inliers[:50], num_neighbors=3)

    assert bank.class_weights.tolist() == [100, 100, 100]
    assert bank.weights.shape[0] == bank.ids.shape[0] == 2
    np.testing.assert_array_equal(tiny.bank.y[found.neighbors.ids], found.neighbors.labels)
    assert (found.neighbors.labels[:, 0, 0] == found.predicted_class).mean() > 0.95
