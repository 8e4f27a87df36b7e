"""The detection report and the scores it compares with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from softkin import Detector, InvalidInputError
from softkin_training import baselines
from softkin_training.detection_metrics import auroc, fpr95, fpr95_id, rate
from softkin_training.evaluate import evaluate, markdown, write_report

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def report(tiny):
    """The tiny bundle against two outlier sets."""
    return evaluate(
        tiny.path,
        inliers=tiny.inliers,
        labels=np.arange(len(tiny.inliers)) % 3,
        outliers={"far": tiny.outliers, "zero": np.zeros((5, 12), np.float32)},
        calibration=tiny.calibration,
    )


def test_the_bundles_own_row_is_what_the_detector_answers(report, tiny):
    """False alarms and caught shares come from served p-values."""
    detector = Detector.load(tiny.path)
    own = report.scores["softkin"]

    assert own.false_alarms.value == detector.score(tiny.inliers).is_outlier.mean()
    assert own.outliers["far"].caught.value == detector.score(tiny.outliers).is_outlier.mean()
    assert report.accuracy == (detector.score(tiny.inliers).predicted_class == np.arange(500) % 3).mean()


def test_every_baseline_is_there_and_calibrated(report):
    """Each with false alarms near alpha or, for DkNN, below it."""
    expected = ["softkin", "posterior", "density", "density_last", "kth_neighbor", "dknn", "energy", "max_softmax"]

    assert list(report.scores) == expected
    for name, r in report.scores.items():
        assert r.false_alarms.low <= (0.05 if name == "dknn" else 0.08), name


def test_without_calibration_rows_only_rankings_are_reported(tiny):
    """DkNN's credibility is monotone in its smallest count, so its AUROC needs no calibration."""
    plain = evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})

    assert plain.accuracy is None
    assert plain.scores["energy"].false_alarms is None
    assert plain.scores["softkin"].false_alarms is not None
    assert 0 <= plain.scores["dknn"].mean_auroc <= 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.001])
def test_an_alpha_that_cannot_be_honoured_is_refused(tiny, alpha):
    """Zero too: it is not the same as leaving alpha out."""
    with pytest.raises(InvalidInputError, match=f"alpha: got {alpha:g}"):
        evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, alpha=alpha)


def test_the_report_is_written_as_json_and_markdown(report, tmp_path):
    """Both hold the same figures."""
    write_report(report, tmp_path / "out")

    raw = json.loads((tmp_path / "out" / "report.json").read_text())
    assert raw["scores"]["softkin"]["mean_auroc"] == report.scores["softkin"].mean_auroc
    text = (tmp_path / "out" / "report.md").read_text()
    assert text == markdown(report)
    assert f"{report.scores['softkin'].mean_auroc:.4f}" in text
    assert "k-th neighbour" in text


def test_rates_carry_exact_binomial_intervals():
    """Clopper-Pearson for 5 of 100: [.0164, .1128]."""
    found = rate(np.arange(100) < 5)

    assert (found.value, found.count, found.rows) == (0.05, 5, 100)
    assert (found.low, found.high) == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_auroc_counts_ties_half():
    """Against all pairs."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40).astype(float), rng.integers(2, 7, 30).astype(float)

    pairs = (b[:, None] > a[None]).mean() + (b[:, None] == a[None]).mean() / 2
    assert auroc(a, b) == pytest.approx(pairs)


def test_the_two_fpr95_are_told_apart():
    """Outliers positive: inliers flagged when 95 % of outliers are caught; inliers positive: outliers accepted."""
    inliers, outliers = np.arange(100.0), np.arange(50.0, 150.0)

    assert fpr95(inliers, outliers) == pytest.approx(0.46, abs=0.01)
    assert fpr95_id(inliers, outliers) == pytest.approx(0.46, abs=0.01)
    assert fpr95(inliers, np.r_[outliers, [-1.0] * 10]) > fpr95_id(inliers, np.r_[outliers, [-1.0] * 10])


def test_kth_neighbor_is_the_distance_between_normalised_rows():
    """Against a sort."""
    rng = np.random.default_rng(0)
    z, bank = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)

    def unit(v):
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    expected = np.sort(np.linalg.norm(unit(z)[:, None] - unit(bank)[None], axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(baselines.kth_neighbor(z, bank, k=5), expected, rtol=1e-4)


def test_dknn_counts_neighbours_of_other_classes_over_layers():
    """Against a loop over layers, rows and neighbours."""
    rng = np.random.default_rng(0)
    z = {n: rng.normal(size=(5, 3)).astype(np.float32) for n in "ab"}
    bank = {n: rng.normal(size=(40, 3)).astype(np.float32) for n in "ab"}
    labels = rng.integers(0, 3, 40)

    found = baselines.dknn_nonconformity(z, bank, labels, 3, k=7)

    for i in range(5):
        for j in range(3):
            count = 0
            for n in "ab":
                cos = [z[n][i] @ b / np.linalg.norm(z[n][i]) / np.linalg.norm(b) for b in bank[n]]
                count += sum(labels[r] != j for r in np.argsort(cos)[::-1][:7])
            assert found[i, j] == count
