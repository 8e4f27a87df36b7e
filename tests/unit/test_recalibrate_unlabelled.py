"""Recalibration by rows without labels: what it changes, and what it leaves as it was. Needs no torch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from fresh_rows import inliers, load, write_npz
from softkin import bundle as bundles
from softkin import conformal
from softkin_training.cli import main
from softkin_training.recalibrate import recalibrate

LEVEL = 1e-4
"""Chance that a correct implementation fails a statistical test."""
LABEL_FREE = ("outlier_score", "p_value", "is_outlier", "predicted_class")
OF_LABELS = ("class_p_values", "credibility", "confidence")


def calibration(path):
    """Of the bundle."""
    return bundles.read_bundle(path).calibration


def said(path):
    """Of class p-values, in the manifest."""
    return bundles.read_manifest(path).provenance.get("class_p_values")


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("guarantee", ["marginal", "certified", "class_conditional"])
def test_what_asks_for_no_label_is_as_with_labels(tiny, tmp_path, grow, guarantee):
    """P-values and verdicts of every guarantee; what asks for labels is as in the old bundle."""
    rows = inliers(tiny, 200, seed=1, spread=2.0)
    recalibrate(tiny.path, tmp_path / "labelled", rows, grow=grow)
    recalibrate(tiny.path, tmp_path / "bare", rows.x, grow=grow)
    x = np.concatenate([tiny.inliers, tiny.outliers])

    old, labelled, bare = (
        load(p).score(x, guarantee=guarantee, alpha=0.1) for p in (tiny.path, tmp_path / "labelled", tmp_path / "bare")
    )

    for name in LABEL_FREE:
        np.testing.assert_array_equal(getattr(bare, name), getattr(labelled, name))
    for name in OF_LABELS:
        np.testing.assert_array_equal(getattr(bare, name), getattr(old, name))
    assert (bare.class_p_values != labelled.class_p_values).any()
    assert bare.budget.calibration_size == labelled.budget.calibration_size


def test_false_alarms_hold_again_without_labels(tiny, tmp_path):
    """Continuous scores: of m fresh rows BetaBinomial(m, k, n + 1 - k) are flagged, k = floor(alpha (n + 1)); exact."""
    n, m, alpha = 399, 2000, 0.05
    recalibrate(tiny.path, tmp_path / "b", inliers(tiny, n, seed=4, spread=2.0).x)

    flagged = int(load(tmp_path / "b").score(inliers(tiny, m, seed=5, spread=2.0).x, alpha=alpha).is_outlier.sum())

    k = conformal.rank(alpha, n)
    low, high = betabinom.interval(1 - LEVEL, m, k, n + 1 - k)
    assert low <= flagged <= high


def test_the_manifest_says_which_rows_are_behind_class_p_values(tiny, tmp_path):
    """Nothing where all rows are labelled; what was kept goes on being named by the version whose inliers it was of."""
    first, second, third, fourth = (inliers(tiny, 40, seed=seed) for seed in (2, 3, 4, 5))
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    recalibrate(tiny.path, a, first.x)
    recalibrate(a, b, second.x)
    recalibrate(b, c, third, grow=True)
    recalibrate(c, d, fourth, grow=True)
    recalibrate(d, e, first)

    assert said(tiny.path) is None
    assert said(a) == said(b) == {"labelled_rows": 300, "kept_from_version": "1"}
    assert said(c) == {"labelled_rows": 40}  # those of other inliers are gone
    assert said(d) == {"labelled_rows": 80}
    assert said(e) is None
    assert [len(calibration(p)) for p in (a, b, c, d, e)] == [40, 40, 80, 120, 40]
    assert [len(calibration(p).true_classes) for p in (a, b, c, d, e)] == [300, 300, 40, 80, 40]


def test_growing_without_labels_keeps_class_p_values(tiny, tmp_path):
    """Of the same inliers, so that they hold as before; labelled rows that come later join them."""
    rows, more = inliers(tiny, 40, seed=6), inliers(tiny, 40, seed=7)
    recalibrate(tiny.path, tmp_path / "a", rows.x, grow=True)
    recalibrate(tmp_path / "a", tmp_path / "b", more, grow=True)
    recalibrate(tiny.path, tmp_path / "c", more, grow=True)

    assert said(tmp_path / "a") == {"labelled_rows": 300}
    assert said(tmp_path / "b") == {"labelled_rows": 340}
    for name in ("true_class_scores", "true_classes"):
        np.testing.assert_array_equal(
            getattr(calibration(tmp_path / "b"), name), getattr(calibration(tmp_path / "c"), name)
        )
    assert len(calibration(tmp_path / "b")) == 380


def test_a_single_labelled_row_is_enough_for_class_p_values(tiny, tmp_path):
    """The first that joins rows without labels: with it alone they are 1/2 or 1."""
    recalibrate(tiny.path, tmp_path / "a", inliers(tiny, 40, seed=12).x)
    recalibrate(tmp_path / "a", tmp_path / "b", inliers(tiny, 1, seed=13), grow=True)

    assert said(tmp_path / "b") == {"labelled_rows": 1}
    assert set(load(tmp_path / "b").score(tiny.inliers).class_p_values.ravel()) == {0.5, 1.0}


def test_labels_or_none_are_two_versions(tiny, tmp_path):
    """They give other class p-values, even where all labels are 0."""
    rows = inliers(tiny, 40, seed=8)
    rows = rows.labelled(np.zeros(40, np.int64))

    found = {recalibrate(tiny.path, tmp_path / str(i), r).version for i, r in enumerate([rows, rows.x])}

    assert len(found) == 2


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            [],
            [
                "no labels: p-values, verdicts and every guarantee are those of the new rows; class p-values, "
                "credibility and confidence are not:",
                "they rest on 300 labelled rows of version 1, and promise nothing of inliers now",
            ],
        ),
        (
            ["--grow"],
            [
                "class p-values, credibility and confidence rest on the 300 labelled calibration rows; p-values and "
                "verdicts ask for no label"
            ],
        ),
    ],
    ids=["replaced", "grown"],
)
def test_the_command_says_what_stays_from_before(tiny, tmp_path, capsys, options, lines):
    """Below the lines that it prints in any case."""
    file = tmp_path / "rows.npz"
    np.savez(file, x_test=inliers(tiny, 60, seed=9).x)

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b"), *options]) == 0

    assert capsys.readouterr().out.splitlines()[2:] == lines


def test_of_labels_the_command_says_nothing(tiny, tmp_path, capsys):
    """Where they are there."""
    file = write_npz(tmp_path / "rows.npz", inliers(tiny, 60, seed=10))

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b"), "--grow"]) == 0

    assert len(capsys.readouterr().out.splitlines()) == 2


def test_rows_of_a_detector_of_one_class_need_no_labels(tmp_path):
    """There is but one that they can have, so class p-values are of the new rows as well."""
    rng = np.random.default_rng(11)
    np.savez(tmp_path / "v.npz", x_train=rng.normal(size=(200, 4)).astype(np.float32))
    assert main(["fit", "--embeddings", str(tmp_path / "v.npz"), "--out", str(tmp_path)]) == 0
    x = rng.normal(size=(60, 4)).astype(np.float32)

    made = recalibrate(tmp_path / "bundle", tmp_path / "b", x)

    assert "class_p_values" not in made.provenance
    fresh = rng.normal(size=(20, 4)).astype(np.float32)
    scores = load(tmp_path / "b").score(fresh)
    np.testing.assert_array_equal(scores.class_p_values[:, 0], scores.p_value)
