"""Bundles whose banks are condensed, in fewer bits, or both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

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
    [
        {"precision": "float16"},
        {"precision": "int8"},
        {"condense": 10.0},
        {"condense": 1.25},
        {"condense": 5.0, "precision": "int8"},
    ],
    ids=["float16", "int8", "condensed", "condensed a little", "condensed int8"],
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


def test_what_the_manifest_says_of_an_approximation_is_what_it_changes(tiny, tmp_path):
    """By the scores of both bundles: calibration rows' p-values, verdicts at default alpha; scikit-learn's AUROC."""
    plain = {"nonconformity": "density", "parts": (), "outliers": {"far": tiny.outliers, "near": 0.4 * tiny.outliers}}
    plain["alpha"] = 25 / (len(tiny.calibration) + 1)  # a p-value that rows have: at alpha itself they are outliers
    paths = rebuild(tiny, tmp_path / "a", **plain), rebuild(tiny, tmp_path / "b", **plain, condense=20.0)
    alpha = read_bundle(paths[0]).manifest.default_alpha
    p, areas = [], {name: [] for name in plain["outliers"]}
    for detector in (Detector.load(path, device="cpu") for path in paths):
        s = detector.score(tiny.calibration.x).outlier_score
        p.append((1 + (s >= s[:, None]).sum(axis=1)) / (len(s) + 1))
        for name, x in plain["outliers"].items():
            truth = np.repeat([0, 1], [len(s), len(x)])
            areas[name].append(roc_auc_score(truth, np.concatenate([s, detector.score(x).outlier_score])))

    found = read_bundle(paths[1]).manifest.approximation

    changes = np.abs(p[1] - p[0])
    assert found.max_p_value_change == pytest.approx(changes.max())
    assert found.mean_p_value_change == pytest.approx(changes.mean())
    assert found.verdict_changes == ((p[1] <= alpha) != (p[0] <= alpha)).mean() > 0
    assert found.verdict_changes != ((p[1] < alpha) != (p[0] < alpha)).mean()
    assert found.auroc_changes == pytest.approx({name: after - before for name, (before, after) in areas.items()})
    assert max(map(abs, found.auroc_changes.values())) > 0


def test_a_condensed_bank_still_names_training_rows(tiny, tmp_path):
    """Each layer's prototypes have ids of their own, weights sum to the rows, and evidence leads to the class."""
    path = rebuild(tiny, tmp_path / "b", condense=10.0)
    bank = read_bundle(path).bank

    found = Detector.load(path, device="cpu").score(tiny.inliers[:50], num_neighbors=3)

    assert bank.class_weights.tolist() == [100, 100, 100]
    assert bank.weights.shape[0] == bank.ids.shape[0] == 2
    np.testing.assert_array_equal(tiny.bank.y[found.neighbors.ids], found.neighbors.labels)
    assert (found.neighbors.labels[:, 0, 0] == found.predicted_class).mean() > 0.95
