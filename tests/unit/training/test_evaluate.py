"""The detection report: what is measured, beside what, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.stats import betabinom

from softkin import DataError, Detector, InvalidInputError, conformal, mass
from softkin.certificate import certify
from softkin_training.build import build
from softkin_training.calibration_metrics import accuracy_by_bin
from softkin_training.corruptions import CORRUPTIONS, corrupt
from softkin_training.detection_metrics import auroc, rate
from softkin_training.evaluate import evaluate, markdown, write_report
from softkin_training.rows import Rows

pytestmark = pytest.mark.training

OTHERS = [
    "posterior",
    "posterior_hidden",
    "density",
    "density_last",
    "joint_energy_density",
    "joint_class_density_boundary_distance",
    "kth_neighbor",
    "kth_neighbor_all",
    "dknn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
    "fdbd",
    "react",
    "energy",
    "max_logit",
    "gen",
    "max_softmax",
]


FITTED_TO_CALIBRATION_ROWS = ("joint_energy_density", "joint_class_density_boundary_distance", "fdbd", "react")


def true_classes(tiny):
    """Of `tiny.inliers`."""
    return np.arange(len(tiny.inliers)) % 3


@pytest.fixture(scope="module")
def report(tiny):
    """The tiny bundle against three outlier sets, one of them near."""
    return evaluate(
        tiny.path,
        inliers=tiny.inliers,
        labels=true_classes(tiny),
        outliers={"far": tiny.outliers, "zero": np.zeros((5, 12), np.float32), "close": tiny.inliers * 1.3},
        calibration=tiny.calibration,
        near=["close"],
    )


def test_the_bundles_own_row_is_what_the_detector_answers(report, tiny):
    """Scores, p-values, classes and credibility, though the scorer runs once for all scores."""
    detector = Detector.load(tiny.path)
    own, served = report.scores["softkin"], detector.score(tiny.inliers)

    assert own.false_alarms == rate(served.is_outlier)
    assert own.outliers["far"].caught == rate(detector.score(tiny.outliers).is_outlier)
    assert own.outliers["far"].auroc == auroc(served.outlier_score, detector.score(tiny.outliers).outlier_score)
    assert report.accuracy == (served.predicted_class == true_classes(tiny)).mean()
    low = served.credibility <= 0.1
    assert (report.credibility[0].rows, sum(b.rows for b in report.credibility)) == (low.sum(), 500)
    assert report.digest == detector.digest
    assert report.certificate == certify(0.05, 300)


def test_accuracy_is_told_by_the_credibility_that_is_served(tiny):
    """No p-value, which is the same as long as nobody doubts the predicted class."""
    between = (tiny.inliers[:50] + tiny.inliers[50:100]) / 2  # often nearer to another class than to the predicted one
    x = np.concatenate([tiny.outliers, between])
    served, y = Detector.load(tiny.path).score(x), np.arange(len(x)) % 3

    found = evaluate(tiny.path, inliers=x, labels=y, outliers={"inliers": tiny.inliers}, compare=False).credibility

    correct = served.predicted_class == y
    assert found == accuracy_by_bin(served.credibility, correct, 10) != accuracy_by_bin(served.p_value, correct, 10)


def test_every_score_is_there_and_calibrated(report):
    """Each with false alarms near alpha or, for DkNN, below it."""
    assert list(report.scores) == ["softkin", *OTHERS]
    assert report.scores["softkin"].title == "softkin (joint: posterior + density + density last)"
    for name, r in report.scores.items():
        assert r.false_alarms.low <= (0.05 if name == "dknn" else 0.08), name
        assert r.title
        assert r.source


def test_every_score_is_calibrated_by_the_same_rows(report, tiny):
    """All of them but for half where a score is fitted to that; energy by hand."""
    sizes = {name: r.calibration_size for name, r in report.scores.items()}
    assert [sizes.pop(name) for name in ("softkin", *FITTED_TO_CALIBRATION_ROWS)] == [300] * 5
    assert sizes.pop("dknn") is None
    assert set(sizes.values()) == {600}

    detector = Detector.load(tiny.path)
    found = {k: mass.energy(detector.outputs(x).logits) for k, x in (("c", tiny.calibration.x), ("i", tiny.inliers))}
    p = conformal.p_values(found["i"], np.sort(found["c"]))
    assert report.scores["energy"].false_alarms == rate(p <= 0.05)


def test_without_calibration_rows_only_rankings_are_reported(tiny):
    """DkNN's credibility is monotone in its smallest count, so its AUROC needs no calibration; a joint score does."""
    plain = evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})

    assert (plain.accuracy, plain.classifier, plain.credibility) == (None, None, ())
    assert plain.scores["energy"].false_alarms is None
    assert plain.scores["energy"].outliers["far"].caught is None
    assert plain.scores["softkin"].false_alarms is not None
    assert 0 <= plain.scores["dknn"].mean_auroc <= 1
    assert list(plain.scores) == ["softkin", *(n for n in OTHERS if n not in FITTED_TO_CALIBRATION_ROWS)]
    assert any("joint scores, ReAct and fDBD, which are fitted to such rows, are left" in note for note in plain.notes)


def test_calibration_rows_without_labels_calibrate_all_but_dknn(tiny):
    """Only DkNN looks at true labels."""
    found = evaluate(
        tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, calibration=tiny.calibration.x
    )

    assert found.scores["vim"].calibration_size == 600
    assert found.scores["dknn"].false_alarms is None
    assert found.scores["dknn"].outliers["far"].caught is None


def test_a_p_value_of_just_alpha_is_flagged(tiny):
    """As the detector has it: alpha is a p-value that inliers and outliers really got."""
    detector, close = Detector.load(tiny.path), tiny.inliers * np.float32(1.3)
    alpha = float(np.intersect1d(detector.score(tiny.inliers).p_value, detector.score(close).p_value)[5])
    found = evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"close": close}, alpha=alpha)

    assert found.scores["softkin"].false_alarms == rate(detector.score(tiny.inliers, alpha=alpha).is_outlier)
    assert found.scores["softkin"].outliers["close"].caught == rate(detector.score(close, alpha=alpha).is_outlier)


def test_means_are_over_all_near_and_far_sets(report):
    """Plain means, every set counting the same."""
    own = report.scores["softkin"]
    raw = report.to_dict()["scores"]["softkin"]

    assert report.groups == {"all": ("far", "zero", "close"), "near": ("close",), "far": ("far", "zero")}
    for metric in ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id"):
        values = {n: getattr(d, metric) for n, d in own.outliers.items()}
        assert raw["means"]["all"][metric] == pytest.approx(np.mean(list(values.values())))
        assert raw["means"]["far"][metric] == pytest.approx((values["far"] + values["zero"]) / 2)
        assert raw["means"]["near"][metric] == values["close"]
    assert raw["means"]["far"]["caught"] == pytest.approx(
        np.mean([own.outliers[n].caught.value for n in ("far", "zero")])
    )
    assert raw["mean_auroc"] == raw["means"]["all"]["auroc"] == own.mean_auroc
    assert dataclasses.replace(report, near=()).groups.keys() == {"all"}


def test_p_value_figures_are_of_the_served_p_values(report, tiny):
    """Histogram, shares at every alpha, and the chance of so many false alarms."""
    detector, found = Detector.load(tiny.path), report.p_values
    p, n = detector.score(tiny.inliers).p_value, detector.manifest.calibration_size
    k = int(0.05 * (n + 1))

    assert sum(found.inlier_histogram) == 500
    assert found.inlier_histogram[0] == (p < 0.05).sum()
    for alpha, share in zip(found.alphas, found.inliers_flagged, strict=True):
        assert share == (p <= alpha).mean()
    assert found.outliers_flagged["far"][-1] == 1.0
    assert found.chance_of_false_alarms == pytest.approx(betabinom.sf((p <= 0.05).sum() - 1, 500, k, n + 1 - k))
    assert sum(report.histogram.outliers["far"]) == 50


def test_rows_on_which_the_network_overflows_are_the_strangest_for_every_score(tiny):
    """Finite input, infinite logits: no NaN anywhere in the report, and all of them are caught."""
    huge = np.full((4, 12), 3e38, np.float32)
    found = evaluate(
        tiny.path, inliers=tiny.inliers, labels=None, outliers={"huge": huge}, calibration=tiny.calibration
    )

    for name, r in found.scores.items():
        assert r.outliers["huge"].auroc == 1.0, name
    json.dumps(found.to_dict(), allow_nan=False)


def test_inliers_on_which_the_network_overflows_do_not_spoil_what_its_probabilities_are_worth(tiny):
    """They are left out, and that is said."""
    labels = np.arange(len(tiny.inliers)) % 3
    with_huge = np.concatenate([np.full((2, 12), 3e38, np.float32), tiny.inliers])
    plain, found = (
        evaluate(tiny.path, inliers=x, labels=y, outliers={"far": tiny.outliers}, calibration=None)
        for x, y in ((tiny.inliers, labels), (with_huge, np.append([0, 0], labels)))
    )

    assert found.classifier == plain.classifier
    assert "The network overflows on 2 inliers; its calibration leaves them out." in found.notes


@pytest.fixture(scope="module")
def pictured(tiny, tmp_path_factory):
    """A bundle whose rows are 4x4 pictures in uint8, and some rows."""
    rng = np.random.default_rng(5)
    centers = rng.integers(40, 200, size=(3, 4, 4))
    model = onnx.load_from_string(tiny.model)
    weight = (centers.reshape(3, 16) - 120).T / 1000
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
    for node in model.graph.node:
        node.input[0] = {"inputs": "x"}.get(node.input[0], node.input[0])
    cast = helper.make_node("Cast", ["inputs"], ["floats"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, helper.make_node("Flatten", ["floats"], ["x"]))
    model.graph.node.insert(0, cast)
    shape = helper.make_tensor_value_info("inputs", TensorProto.UINT8, ["batch", 4, 4])
    model.graph.input[0].CopyFrom(shape)
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 16

    def rows(n, first):
        y = np.arange(n) % 3
        return Rows((centers[y] + rng.integers(-30, 30, (n, 4, 4))).astype(np.uint8), y, np.arange(first, first + n))

    spec = dataclasses.replace(tiny.spec, nonconformity="density", parts=())
    path = tmp_path_factory.mktemp("pictured") / "bundle"
    calibration = rows(200, 1000)
    build(path, model.SerializeToString(), spec, bank_rows=rows(150, 0), calibration_rows=calibration)
    return path, calibration, rows(120, 5000), rng.integers(0, 255, (40, 4, 4)).astype(np.uint8)


@pytest.mark.parametrize("seed", [0, 3])
def test_corrupted_inliers_are_scored_like_any_rows(pictured, seed):
    """Share flagged and accuracy, on a seeded draw, at every severity of every kind."""
    path, _, inliers, noise = pictured
    found = evaluate(
        path, inliers=inliers.x, labels=inliers.y, outliers={"noise": noise}, corruption_rows=50, seed=seed
    ).corruptions

    assert (found.skipped, found.rows) == (None, 50)
    assert [(x.kind, x.severity) for x in found.levels] == [(k, s) for k in CORRUPTIONS for s in range(6)]
    drawn = np.random.default_rng(seed).permutation(120)[:50]
    limits = float(inliers.x.min()), float(inliers.x.max())
    worse = corrupt(inliers.x[drawn], "noise", 2, value_range=limits, seed=seed)
    served = Detector.load(path).score(worse)
    level = found.levels[2]
    assert (level.kind, level.severity, level.level) == ("noise", 2, 0.1)
    assert level.flagged == rate(served.is_outlier)
    correct = served.predicted_class == inliers.y[drawn]
    assert level.accuracy == correct.mean()
    assert level.accuracy_of_accepted == pytest.approx(correct[~served.is_outlier].mean())


def test_a_corrupted_row_whose_p_value_is_just_alpha_is_flagged(pictured):
    """As in every verdict; of a small calibration set, alpha is the p-value of many rows."""
    path, _, inliers, noise = pictured
    p = Detector.load(path).score(inliers.x).p_value
    alpha = float(np.sort(p)[len(p) // 4])

    report = evaluate(path, inliers=inliers.x, labels=None, outliers={"noise": noise}, alpha=alpha, compare=False)

    assert report.corruptions.levels[0].severity == 0
    assert report.corruptions.levels[0].flagged == rate(p <= alpha) != rate(p < alpha)


def test_corruption_repeats_and_is_skipped_where_it_makes_no_sense(pictured, report):
    """The same again from the same seed; vectors are no images; labels are not needed; 0 rows ask for none."""
    path, _, inliers, noise = pictured
    options = {"inliers": inliers.x, "outliers": {"noise": noise}, "labels": None}

    one, two = (evaluate(path, **options, corruption_rows=20).corruptions for _ in range(2))
    assert one == two
    assert {x.accuracy for x in one.levels} == {None}
    assert evaluate(path, **options, corruption_rows=0).corruptions.skipped == "not asked for"
    assert "no images" in report.corruptions.skipped
    assert report.corruptions.levels == []


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.001])
def test_an_alpha_that_cannot_be_honoured_is_refused(tiny, alpha):
    """Zero too: it is not the same as leaving alpha out."""
    with pytest.raises(InvalidInputError, match=f"alpha: got {alpha:g}"):
        evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, alpha=alpha)


def test_mistakes_are_refused(tiny):
    """Each with what is wrong and what to do."""
    options = {"inliers": tiny.inliers, "labels": None, "outliers": {"far": tiny.outliers}}

    with pytest.raises(InvalidInputError, match="outliers: got none"):
        evaluate(tiny.path, **{**options, "outliers": {}})
    with pytest.raises(InvalidInputError, match="near: got 'fra'; the outlier sets are 'far'"):
        evaluate(tiny.path, **options, near=["fra"])
    with pytest.raises(DataError, match="500 rows and 3 labels"):
        evaluate(tiny.path, **{**options, "labels": np.arange(3)})
    with pytest.raises(DataError, match=r"labels must lie in \[0, 3\)"):
        evaluate(tiny.path, **{**options, "labels": np.arange(500)})
    calibration = dataclasses.replace(tiny.calibration, y=tiny.calibration.y + 1)
    with pytest.raises(DataError, match=r"calibration: labels must lie in \[0, 3\); got \[1, 3\]"):
        evaluate(tiny.path, **options, calibration=calibration)
    with pytest.raises(InvalidInputError, match="calibration: dtype is float64"):
        evaluate(tiny.path, **options, calibration=tiny.calibration.x.astype(np.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inliers": lambda x: x[:0]}, "inliers: there are no rows"),
        ({"odd": lambda x: x[:0]}, "outliers 'odd': there are no rows"),
        ({"odd": lambda x: x.astype(np.float64)}, "outliers 'odd': dtype is float64"),
        ({"odd": lambda x: x * np.float32(np.nan)}, "outliers 'odd': row 0 has NaN"),
        ({"odd": lambda x: x[0, 0]}, r"outliers 'odd': shape is \[\]"),
    ],
)
def test_a_refusal_says_which_set_is_unfit(tiny, changes, message):
    """Of several files only one is to be mended."""
    odd, inliers = (changes.get(k, lambda x: x)(tiny.inliers) for k in ("odd", "inliers"))

    with pytest.raises(InvalidInputError, match=message):
        evaluate(tiny.path, inliers=inliers, labels=None, outliers={"far": tiny.outliers, "odd": odd})


@pytest.mark.filterwarnings("error")
def test_one_row_of_a_kind_is_enough_for_a_report(tiny, tmp_path):
    """No axis loses its length, nothing is divided by zero."""
    found = evaluate(tiny.path, inliers=tiny.inliers[:1], labels=None, outliers={"far": tiny.outliers[:1]})

    write_report(found, tmp_path)
    assert found.scores["softkin"].outliers["far"].auroc in (0.0, 0.5, 1.0)


def test_calibration_rows_that_were_used_before_are_refused(tiny):
    """They look too familiar; the inliers under test must not calibrate either."""
    options = {"inliers": tiny.inliers, "labels": None, "outliers": {"far": tiny.outliers}}

    with pytest.raises(DataError, match=r"calibration has 300 rows .* training or bank rows"):
        evaluate(tiny.path, **options, calibration=tiny.bank)
    one_too_many = np.r_[tiny.calibration.x, tiny.bank.x[:1]]  # beside the rows that the joint form sets aside
    with pytest.raises(DataError, match=r"calibration has 1 rows .* training or bank rows .* is example 600;"):
        evaluate(tiny.path, **options, calibration=one_too_many)
    with pytest.raises(DataError, match=r"calibration has 90 rows .* training or bank rows"):  # fewer than set aside
        evaluate(tiny.path, **options, calibration=tiny.bank.take(np.arange(90)))
    with pytest.raises(DataError, match=r"calibration has 500 rows .* the inliers"):
        evaluate(tiny.path, **options, calibration=tiny.inliers)


def test_inliers_that_made_the_bundle_are_told(tiny, report):
    """The figures look better than they are; twins are no reason to stop."""
    found = evaluate(
        tiny.path,
        inliers=np.r_[tiny.inliers, tiny.bank.x[:7], tiny.calibration.x],
        labels=None,
        outliers={"far": tiny.outliers},
    )

    assert found.notes[0].startswith("607 of the inliers have content that the bundle was trained, built or calibrated")
    assert not any("of the inliers" in note for note in report.notes)


def test_the_report_is_written_as_json_markdown_and_html(report, tmp_path):
    """All hold the same figures."""
    write_report(report, tmp_path / "deep" / "out")

    out = tmp_path / "deep" / "out"
    raw = json.loads((out / "report.json").read_text())
    assert raw["schema_version"] == 1
    assert raw["scores"]["softkin"]["mean_auroc"] == report.scores["softkin"].mean_auroc
    text, page = ((out / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert text == markdown(report)
    for found in (text, page):
        assert f"{report.scores['softkin'].mean_auroc:.4f}" in found
        assert "k-th neighbour" in found


def test_a_report_that_cannot_be_written_leaves_the_old_one_whole(report, tmp_path, monkeypatch):
    """As on a full disk: no file is cut off, and no temporary one stays."""
    write_report(report, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InvalidInputError, match="No space left"):
        write_report(dataclasses.replace(report, detector="another"), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused(report):
    """In one line."""
    with pytest.raises(InvalidInputError, match="out: cannot write to /dev/null/x"):
        write_report(report, Path("/dev/null/x"))
