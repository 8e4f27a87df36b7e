"""What the arrays of a bundle may hold."""

from __future__ import annotations

import dataclasses

import numpy as np

from softkin import Detector
from softkin import bundle as bundles
from softkin_training.build import build


def test_scores_of_a_class_may_spread_by_much_less_than_one(tiny, tmp_path):
    """As they do at high temperatures, where all rows are about as near; what counts is units of the spread."""
    spec = dataclasses.replace(tiny.spec, temperature_scale=100.0, parts=("density", "class_density"))
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    scale = bundles.read_bundle(tmp_path / "b").calibration.references["class_density.scale"]
    scores = Detector.load(tmp_path / "b", device="cpu").score(tiny.outliers)

    assert 0 < scale.min() < scale.max() < 0.5
    assert np.isfinite(scores.outlier_score).all()
