"""What a detector promises: every guarantee, smoothing and the network's own class, with a real bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.stats import beta

from networks import without_logits
from softkin import Detector, InvalidInputError
from softkin.bundle import read_bundle
from softkin.certificate import certified_rank, smoothed_bound, smoothed_certified
from softkin.conformal import row_uniforms
from softkin.selection import fewest_selectable, selection_threshold
from softkin.verdicts import GUARANTEES
from softkin_training.build import build

N = 300
SCORES = ("outlier_score", "p_value", "predicted_class", "credibility", "confidence", "class_p_values")


@pytest.fixture(scope="module")
def detector(tiny):
    """The tiny bundle on the CPU."""
    return Detector.load(tiny.path, device="cpu")


@pytest.fixture(scope="module")
def calibration(tiny):
    """Its calibration."""
    return read_bundle(tiny.path).calibration


@pytest.fixture(scope="module")
def mixed(tiny):
    """Inliers with some outliers among them."""
    return np.concatenate([tiny.inliers[:60], tiny.outliers[:10], tiny.inliers[60:90]])


def p_value(score, scores, u=None):
    """The definition, smoothed where u is given."""
    above, equal = sum(c > score for c in scores), sum(c == score for c in scores)
    return (above + (1 if u is None else u) * (1 + equal)) / (len(scores) + 1)


@pytest.mark.parametrize("seed", [None, 17], ids=["plain", "smoothed"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_p_values_are_those_of_the_calibration_rows(detector, calibration, mixed, guarantee, seed):
    """Among all of them, or for `class_conditional` among those of the predicted class; class p-values likewise."""
    scores = detector.score(mixed, guarantee=guarantee, smoothing_seed=seed)

    a = detector._nonconformity(detector.outputs(mixed))
    u = [None] * len(mixed) if seed is None else row_uniforms(seed, mixed)
    for i in range(len(mixed)):
        j = scores.predicted_class[i]
        assert scores.outlier_score[i] == a[i, j]
        own, by_true = calibration.outlier_scores, [calibration.true_class_scores] * 3
        if guarantee == "class_conditional":
            own = own[calibration.predicted_classes == j]
            by_true = [calibration.true_class_scores[calibration.true_classes == k] for k in range(3)]
        class_p = [p_value(a[i, k], by_true[k].tolist(), u[i]) for k in range(3)]
        assert scores.p_value[i] == p_value(a[i, j], own.tolist(), u[i])
        assert scores.class_p_values[i].tolist() == class_p
        assert scores.credibility[i] == max(class_p)
        assert scores.confidence[i] == 1 - sorted(class_p)[1]


@pytest.mark.parametrize("smooth", [False, True], ids=["plain", "smoothed"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_verdicts_and_budget_follow_from_the_guarantee(detector, mixed, guarantee, smooth):
    """The threshold, what it is bounded by, how few rows could be flagged; verdicts are p <= threshold."""
    sizes = detector.manifest.predicted_class_rows
    scores = detector.score(mixed, alpha=0.1, guarantee=guarantee, confidence=0.9, smoothing_seed=3 if smooth else None)

    def bound(flagged, n):
        return smoothed_bound(flagged, n, 0.9) if smooth else beta.ppf(0.9, int(flagged), n + 1 - int(flagged))

    k = (smoothed_certified if smooth else certified_rank)(0.1, N, 0.9)
    fewest = None if smooth else fewest_selectable(100, N, 0.1)
    expected = {
        "marginal": (0.1, bound(0.1 * (N + 1), N), None),
        "certified": (k / (N + 1), bound(k, N), None),
        "class_conditional": (0.1, max(bound(0.1 * (n + 1), n) for n in sizes), None),
        "false_discovery_rate": (selection_threshold(scores.p_value, 0.1), None, fewest),
    }[guarantee]
    b = scores.budget
    assert b.p_value_threshold == expected[0]
    assert b.false_alarm_bound == (None if expected[1] is None else pytest.approx(expected[1], rel=1e-9))
    assert b.fewest_selectable == expected[2]
    assert (b.guarantee, b.alpha, b.confidence, b.smoothed) == (guarantee, 0.1, 0.9, smooth)
    assert (b.detector, b.version, b.digest, b.device) == ("tiny", "1", detector.digest, "cpu")
    assert b.calibration_size == N
    assert b.smallest_p_value == 1 / ((min(sizes) if guarantee == "class_conditional" else N) + 1)
    assert scores.is_outlier.tolist() == [p <= b.p_value_threshold for p in scores.p_value]
    assert 8 <= scores.is_outlier.sum() < 30


def test_certified_verdicts_are_a_subset_of_marginal_ones(detector, tiny):
    """The price of a promise about this very calibration set."""
    marginal, certified = (
        detector.score(tiny.inliers, alpha=0.1, guarantee=g).is_outlier for g in ("marginal", "certified")
    )

    assert (certified <= marginal).all()
    assert certified.sum() < marginal.sum()


def test_the_defaults_are_marginal_at_the_manifests_alpha_and_confidence_95(detector, mixed):
    """A caller who says nothing gets what the manifest's certificate describes."""
    b = detector.score(mixed).budget

    assert (b.guarantee, b.alpha, b.confidence, b.smoothed) == ("marginal", 0.05, 0.95, False)
    assert b.false_alarm_bound == detector.manifest.certificate.false_alarm_bound


@pytest.mark.parametrize("guarantee", ["marginal", "class_conditional"])
def test_a_smoothed_p_value_depends_on_row_and_seed_alone(detector, mixed, guarantee):
    """In another order, another batch or alone: the same number; another seed: another one, below the same step."""

    def p(x, seed):
        return detector.score(x, guarantee=guarantee, smoothing_seed=seed).p_value

    order = np.random.default_rng(0).permutation(len(mixed))
    together = p(mixed, 5)
    shuffled = np.empty_like(together)
    shuffled[order] = p(mixed[order], 5)
    parts = np.concatenate([p(mixed[:33], 5), p(mixed[33:34], 5), p(mixed[34:], 5)])

    for other in (shuffled, parts):
        # A score that lies on a calibration score to the last bits may step over it.
        assert (np.abs(other - together) <= 1.0001 / (min(detector.manifest.predicted_class_rows) + 1)).all()
        assert (other == together).mean() >= 0.98
    assert p(mixed, 5).tolist() == together.tolist()
    plain, another = detector.score(mixed, guarantee=guarantee).p_value, p(mixed, 6)
    assert (another != together).all()
    assert ((together < plain) & (another < plain)).all()


def test_repeated_rows_are_smoothed_alike(detector, mixed):
    """The same input gets the same verdict within a batch too."""
    scores = detector.score(np.repeat(mixed[:5], 3, axis=0), smoothing_seed=1)

    assert (scores.p_value.reshape(5, 3) == scores.p_value[::3, None]).all()


def test_only_the_verdicts_of_a_selection_depend_on_the_batch(detector, tiny):
    """The same inliers beside other inliers, and beside outliers: equal scores; flagged more easily beside outliers."""
    x = tiny.inliers[:50]
    quiet = detector.score(np.concatenate([x, tiny.inliers[100:150]]), guarantee="false_discovery_rate", alpha=0.1)
    loud = detector.score(np.concatenate([x, tiny.outliers]), guarantee="false_discovery_rate", alpha=0.1)
    marginal = detector.score(np.concatenate([x, tiny.outliers]), alpha=0.1)

    for name in SCORES:
        a, b = getattr(quiet, name)[:50], getattr(loud, name)[:50]
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1.0001 / (N + 1), err_msg=name)
        assert (getattr(loud, name) == getattr(marginal, name)).all(), name
    assert quiet.budget.p_value_threshold < loud.budget.p_value_threshold <= 0.1
    assert quiet.is_outlier.sum() == 0
    assert loud.is_outlier[50:].mean() > 0.8
    assert dataclasses.replace(quiet.budget, p_value_threshold=0) == dataclasses.replace(
        loud.budget, p_value_threshold=0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": "most"}, "guarantee: got 'most'; allowed: marginal, certified, class_conditional, false_dis"),
        ({"confidence": 1.0}, r"confidence: got 1; it must lie strictly in \(0, 1\)"),
        ({"guarantee": "certified", "alpha": 0.005}, "alpha: got 0.005, but 300 .* or at least 598 calibration rows"),
        ({"guarantee": "class_conditional", "alpha": 0.004}, "alpha: got 0.004, but class '[abc]' has only [0-9]+ "),
        ({"alpha": "0.1"}, r"^alpha: got '0\.1'; must be a number strictly in \(0, 1\)$"),
        ({"alpha": [0.1]}, r"^alpha: got \[0\.1\]; must be a number strictly in \(0, 1\)$"),
        ({"alpha": 10**400}, r"^alpha: got 10+\.\.\.0+; must be a number strictly in \(0, 1\)$"),
        ({"confidence": "0.9"}, r"^confidence: got '0\.9'; must be a number strictly in \(0, 1\)$"),
        ({"guarantee": ["marginal"]}, r"^guarantee: got \['marginal'\]; allowed: marginal, certified, class_cond"),
        ({"smoothing_seed": "7"}, r"^smoothing_seed: got '7'; must be an integer in \[0, 2\^64\)$"),
        ({"num_neighbors": 1.5}, r"^num_neighbors: got 1\.5; must be an integer, 0 or more$"),
        ({"smoothing_seed": -1}, r"smoothing_seed: got -1; must lie in \[0, 2\^64\)"),
        ({"smoothing_seed": 2**64}, r"smoothing_seed: got 18446744073709551616; must lie in \[0, 2\^64\)"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(detector, mixed, options, message):
    """Before anything is computed; the argument is named."""
    with pytest.raises(InvalidInputError, match=message):
        detector.score(mixed, **options)


def test_the_calibration_scores_are_those_behind_p_values(detector, calibration):
    """Sorted, for the drift watch."""
    assert detector.calibration_scores.tolist() == sorted(calibration.outlier_scores.tolist())
    assert len(detector.calibration_scores) == N


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_predicted_class_is_the_networks_own(detector, tiny, guarantee):
    """The largest logit, whatever the class p-values say, which tie or disagree for outliers."""
    x = np.concatenate([tiny.inliers[:20], tiny.outliers])
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(tiny.model).graph.initializer}

    scores = detector.score(x, guarantee=guarantee)

    assert scores.predicted_class.tolist() == (x @ weights["w"]).argmax(axis=1).tolist()
    assert (scores.predicted_class != scores.class_p_values.argmax(axis=1)).sum() > 5


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_without_a_network_it_is_the_class_of_smallest_nonconformity(tiny, tmp_path, guarantee):
    """Also where all class p-values tie at the smallest, as a far outlier's do: never the first class of a tie."""
    spec = dataclasses.replace(tiny.spec, nonconformity="density", parts=())
    rows = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(tmp_path / "b", without_logits(tiny.model), spec, **rows)
    bare, bundle = Detector.load(tmp_path / "b", device="cpu"), read_bundle(tmp_path / "b")

    scores = bare.score(tiny.outliers, guarantee=guarantee)

    assert not bare.has_logits
    masses = bare.outputs(tiny.outliers).masses.astype(float)
    counts = [int((tiny.bank.y == j).sum()) for j in range(3)]
    expected = []
    for m in masses:
        a = [-sum(m[layer, j] - np.log(counts[j]) for layer in range(2)) for j in range(3)]
        expected.append(a.index(min(a)))
    assert scores.predicted_class.tolist() == expected
    c = bundle.calibration
    sizes = [int((c.true_classes == j).sum()) if guarantee == "class_conditional" else len(c) for j in range(3)]
    tied = (scores.class_p_values == [1 / (n + 1) for n in sizes]).all(axis=1)
    assert tied.sum() > 10
    assert {expected[i] for i in np.flatnonzero(tied)} == {0, 1, 2}


def test_numbers_may_be_those_of_numpy(detector, mixed):
    """They are what sweeps over alpha and loops over seeds yield; the answer tells Python's own."""
    expected = detector.score(mixed, alpha=0.25, confidence=0.5, smoothing_seed=7, num_neighbors=2)

    found = detector.score(
        mixed, alpha=np.float32(0.25), confidence=np.float64(0.5), smoothing_seed=np.uint8(7), num_neighbors=np.int64(2)
    )

    assert (found.budget, type(found.budget.alpha)) == (expected.budget, float)
    assert found.p_value.tolist() == expected.p_value.tolist()
    assert found.neighbors.ids.tolist() == expected.neighbors.ids.tolist()
