"""A bundle's next version from new calibration rows: same scores, new p-values. Needs no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from fresh_rows import calibrating, inliers, joined, load, write_npz
from softkin import DataError, certificate, conformal
from softkin import bundle as bundles
from softkin.detector import nonconformity_of
from softkin.drift import DriftWatch
from softkin_training.build import build
from softkin_training.cli import main
from softkin_training.recalibrate import recalibrate
from softkin_training.row_contents import digests64, fingerprint
from softkin_training.rows import Rows

LEVEL = 1e-4
"""Chance that a correct implementation fails a statistical test."""


def without_digest(version):
    """A version up to the eight digits that tell what the bundle is made of."""
    return re.fullmatch(r"(.+)-[0-9a-f]{8}", version)[1]


def nonconformity(path, x):
    """`[B, C]` of raw inputs, and the classes predicted."""
    bundle, outputs = bundles.read_bundle(path), load(path).outputs(x)
    function = nonconformity_of(bundle.manifest, bundle.bank, bundle.calibration.references)
    a_BC = function(outputs)
    return a_BC, function.predict(outputs, a_BC)


def pairs(*sorted_arrays):
    """Scores with their classes as a sorted list, whatever the order among equals."""
    return sorted(zip(*(a.tolist() for a in sorted_arrays), strict=True))


def test_p_values_follow_from_the_new_rows_by_definition(tiny, tmp_path):
    """p = (1 + #{i : s(x_i) >= s(x)}) / (n + 1) over the new rows alone, and per class with a(x_i, y_i) >= a(x, j)."""
    rows = inliers(tiny, 60, seed=1)
    rows = dataclasses.replace(rows, y=(rows.y + (rows.ids % 4 == 0)) % 3)  # outlier scores ask for no label
    recalibrate(tiny.path, tmp_path / "b", rows)
    x = np.concatenate([tiny.inliers[:40], tiny.outliers[:10]])

    found = load(tmp_path / "b").score(x)

    a_nC, predicted_n = nonconformity(tiny.path, rows.x)
    a_BC, predicted_B = nonconformity(tiny.path, x)
    for row in range(len(x)):
        score = a_BC[row, predicted_B[row]]
        at_least = sum(a_nC[i, predicted_n[i]] >= score for i in range(60))
        assert found.p_value[row] == (1 + at_least) / 61
        for j in range(3):
            at_least = sum(a_nC[i, rows.y[i]] >= a_BC[row, j] for i in range(60))
            assert found.class_p_values[row, j] == (1 + at_least) / 61


@pytest.mark.parametrize("form", ["posterior", "density", "joint"])
def test_the_rows_that_calibrated_a_build_give_its_p_values_again(tiny, tmp_path, form):
    """Same references, same scores: p-values of every kind are the same in the two bundles."""
    parts = tiny.spec.parts if form == "joint" else ()
    spec = dataclasses.replace(tiny.spec, nonconformity=form, parts=parts)
    build(tmp_path / "a", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    recalibrate(tmp_path / "a", tmp_path / "b", calibrating(tiny, tmp_path / "a"))

    a, b = load(tmp_path / "a"), load(tmp_path / "b")
    x = np.concatenate([tiny.inliers, tiny.outliers])
    for guarantee in ("marginal", "class_conditional"):
        built, found = (d.score(x, guarantee=guarantee, alpha=0.1) for d in (a, b))
        assert np.array_equal(found.p_value, built.p_value)
        assert np.array_equal(found.class_p_values, built.class_p_values)
    np.testing.assert_allclose(b.calibration_scores, a.calibration_scores, rtol=1e-6)
    assert b.manifest.predicted_class_rows == a.manifest.predicted_class_rows


def test_a_grown_calibration_is_the_union_of_old_and_new(tiny, tmp_path):
    """Scores with their classes, digests and sizes; p-values count both."""
    rows = inliers(tiny, 50, seed=2)
    replaced = recalibrate(tiny.path, tmp_path / "new", rows)
    grown = recalibrate(tiny.path, tmp_path / "grown", rows, grow=True)

    old, new, both = (bundles.read_bundle(p) for p in (tiny.path, tmp_path / "new", tmp_path / "grown"))
    for keys in (("outlier_scores", "predicted_classes"), ("true_class_scores", "true_classes")):
        parts = [pairs(*(getattr(b.calibration, k) for k in keys)) for b in (old, new, both)]
        assert parts[2] == sorted(parts[0] + parts[1])
    assert (replaced.calibration_size, grown.calibration_size) == (50, 350)
    assert new.used_rows.calibration.tolist() == digests64(rows.x).tolist()
    assert set(both.used_rows.calibration.tolist()) == {
        *old.used_rows.calibration.tolist(),
        *digests64(rows.x).tolist(),
    }
    for b in (new, both):
        assert np.array_equal(b.used_rows.seen, old.used_rows.seen)
        assert np.array_equal(b.used_rows.references, old.used_rows.references)
        assert {k: v.tolist() for k, v in b.calibration.references.items()} == {
            k: v.tolist() for k, v in old.calibration.references.items()
        }

    score = load(tiny.path).score(tiny.inliers[:1]).outlier_score[0]
    at_least = sum(s >= score for b in (old, new) for s in b.calibration.outlier_scores)
    assert load(tmp_path / "grown").score(tiny.inliers[:1]).p_value[0] == (1 + at_least) / 351


def test_the_terms_of_layers_are_those_of_the_rows_that_calibrate(tiny, tmp_path):
    """Replaced, or old and new together: what is strange in a layer is said against the same rows as p-values."""
    spec = dataclasses.replace(tiny.spec, nonconformity="density", parts=())
    build(tmp_path / "a", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    rows = inliers(tiny, 50, seed=2)
    recalibrate(tmp_path / "a", tmp_path / "new", rows)
    recalibrate(tmp_path / "a", tmp_path / "grown", rows, grow=True)

    old, new, grown = (bundles.read_bundle(tmp_path / name).calibration.layer_terms for name in ("a", "new", "grown"))
    outputs = load(tmp_path / "a").outputs(rows.x)
    at = np.arange(50), outputs.logits.argmax(axis=1)
    for i, layer in enumerate(("wide", "narrow")):
        expected = np.sort(np.log(len(tiny.bank.y) / 3) - outputs.masses[:, i].astype(np.float64)[at])
        np.testing.assert_allclose(new[layer], expected, rtol=1e-5)
        assert grown[layer].tolist() == sorted([*old[layer].tolist(), *new[layer].tolist()])
    assert list(new) == list(grown) == list(old) == ["wide", "narrow"]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_no_outlier_score_changes(tiny, tmp_path, precision):
    """Bit for bit: network, bank and golden rows are the old files."""
    spec = dataclasses.replace(tiny.spec, precision=precision)
    build(tmp_path / "a", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    recalibrate(tmp_path / "a", tmp_path / "b", inliers(tiny, 50, seed=3))

    old, new = (load(tmp_path / name) for name in "ab")
    for x in (tiny.inliers, tiny.outliers, tiny.outliers[:1]):
        assert new.score(x).outlier_score.tobytes() == old.score(x).outlier_score.tobytes()
    for file in (bundles.MODEL, bundles.BANK, bundles.GOLDEN):
        assert new.manifest.files[file] == old.manifest.files[file]
    assert new.manifest.approximation == old.manifest.approximation


def test_false_alarms_hold_again_once_inliers_have_shifted(tiny, tmp_path):
    """Continuous scores: of m fresh rows BetaBinomial(m, k, n + 1 - k) are flagged, k = floor(alpha (n + 1)); exact."""
    n, m, alpha = 399, 2000, 0.05
    fresh = inliers(tiny, m, seed=5, spread=2.0).x
    recalibrate(tiny.path, tmp_path / "b", inliers(tiny, n, seed=4, spread=2.0))

    before = int(load(tiny.path).score(fresh, alpha=alpha).is_outlier.sum())
    after = int(load(tmp_path / "b").score(fresh, alpha=alpha).is_outlier.sum())

    def interval(n):
        k = conformal.rank(alpha, n)
        return betabinom.interval(1 - LEVEL, m, k, n + 1 - k)

    assert before > 3 * interval(300)[1]
    low, high = interval(n)
    assert low <= after <= high
    bound = bundles.read_manifest(tmp_path / "b").certificate.false_alarm_bound
    assert after <= binom.ppf(1 - LEVEL, m, bound)


def test_a_drift_alarm_ends_with_the_new_calibration(tiny, tmp_path):
    """The old detector's watch finds the shift; the new one's, at a level of 1e-4 by Ville's inequality, does not."""
    recalibrate(tiny.path, tmp_path / "b", inliers(tiny, 300, seed=6, spread=2.0))
    stream = inliers(tiny, 1000, seed=7, spread=2.0).x

    def alarm(path):
        detector = load(path)
        watch = DriftWatch(detector.calibration_scores, level=LEVEL, rng=np.random.default_rng(0))
        watch.observe(detector.score(stream).outlier_score)
        return watch.report().alarm

    assert alarm(tiny.path)
    assert not alarm(tmp_path / "b")


def test_the_manifest_says_what_it_was_made_from(tiny, tmp_path):
    """Everything about the network stays, everything about the calibration is new, and provenance leads back."""
    rows = inliers(tiny, 80, seed=8)
    written = recalibrate(tiny.path, tmp_path / "b", rows, alpha=0.1)

    old, new, before = bundles.read_bundle(tiny.path), bundles.read_bundle(tmp_path / "b"), load(tiny.path)
    assert new.manifest == written
    assert new.digest != old.digest
    changed = {f.name for f in dataclasses.fields(written) if getattr(written, f.name) != getattr(old.manifest, f.name)}
    assert changed - {"created"} == {
        "version",
        "default_alpha",
        "calibration_size",
        "predicted_class_rows",
        "certificate",
        "provenance",
        "files",
    }
    assert written.created >= old.manifest.created
    assert (without_digest(written.version), written.default_alpha, written.calibration_size) == ("1-r1", 0.1, 80)
    assert written.certificate == certificate.certify(0.1, 80)
    assert written.predicted_class_rows == tuple(np.bincount(nonconformity(tiny.path, rows.x)[1], minlength=3))
    assert written.provenance["recalibrated"] == {
        "from_digest": old.digest,
        "from_version": "1",
        "grown": False,
        "rows": 80,
        "fingerprint": fingerprint(rows.x),
        "flagged_before": float((before.score(rows.x, alpha=0.1).is_outlier).mean()),
        "accuracy": float((before.score(rows.x).predicted_class == rows.y).mean()),
    }
    prints = old.manifest.provenance["fingerprints"]
    assert written.provenance["fingerprints"] == {**prints, "calibration": fingerprint(rows.x)}
    assert written.provenance["seed"] == old.manifest.provenance["seed"]


def test_a_recalibrated_bundle_can_be_recalibrated(tiny, tmp_path):
    """Versions count on; rows that were added are known; the fingerprint of the first rows stays while it grows."""
    first, second = inliers(tiny, 40, seed=9), inliers(tiny, 30, seed=10)
    recalibrate(tiny.path, tmp_path / "b", first, grow=True)
    written = recalibrate(tmp_path / "b", tmp_path / "c", second, grow=True)

    assert (without_digest(written.version), written.calibration_size) == ("1-r2", 370)
    assert written.provenance["recalibrated"]["from_digest"] == bundles.digest(tmp_path / "b")
    assert written.provenance["recalibrated"]["grown"] is True
    assert written.provenance["fingerprints"] == bundles.read_manifest(tiny.path).provenance["fingerprints"]
    with pytest.raises(DataError, match=r"calibration has 40 rows .* the calibration rows of .*/c, .* example 0"):
        recalibrate(tmp_path / "c", tmp_path / "d", first, grow=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2024.1", "2024.1-r1"),
        ("1-r9", "1-r10"),
        ("1-r", "1-r-r1"),
        ("1-r9-01234567", "1-r10"),
        ("1-r9-0123456g", "1-r9-0123456g-r1"),
        ("1-r9-012345678", "1-r9-012345678-r1"),
        ("a" * 63, "a" * 51 + "-r1"),
        ("a" * 51 + "-r9-89abcdef", "a" * 50 + "-r10"),
        ("1-r" + "9" * 60, "1-r" + "9" * 48 + "-r1"),
    ],
)
def test_versions_count_on_within_the_allowed_length(tiny_copy, tmp_path, tiny, old, new):
    """-r1, then one more than the last, and a digest; cut to 63 characters, which every bundle name keeps."""
    raw = json.loads((tiny_copy / "manifest.json").read_text())
    (tiny_copy / "manifest.json").write_text(json.dumps({**raw, "version": old}))

    found = recalibrate(tiny_copy, tmp_path / "b", inliers(tiny, 20, seed=11)).version

    assert without_digest(found) == new
    assert len(found) <= 63


def test_two_recalibrations_of_one_bundle_share_a_version_only_if_they_are_the_same(tiny, tiny_copy, tmp_path):
    """Rows, labels, whether they are added, alpha, and the bundle tell them apart; the order of rows does not."""
    rows = inliers(tiny, 40, seed=22)
    raw = json.loads((tiny_copy / "manifest.json").read_text())
    (tiny_copy / "manifest.json").write_text(json.dumps({**raw, "created": "2024-01-01T00:00:00+00:00"}))
    other_labels = dataclasses.replace(rows, y=(rows.y + 1) % 3)
    different = [
        (tiny.path, rows, {}),
        (tiny.path, inliers(tiny, 40, seed=23), {}),
        (tiny.path, rows.take(np.arange(39)), {}),
        (tiny.path, other_labels, {}),
        (tiny.path, rows, {"grow": True}),
        (tiny.path, rows, {"alpha": 0.1}),
        (tiny_copy, rows, {}),
    ]
    same = [(tiny.path, rows.take(np.arange(40)[::-1]), {}), (tiny.path, rows, {"alpha": 0.05})]

    found = [
        recalibrate(path, tmp_path / str(i), rows, **options).version
        for i, (path, rows, options) in enumerate([*different, *same])
    ]

    assert len(set(found[: len(different)])) == len(different)
    assert set(found[len(different) :]) == {found[0]}


@pytest.mark.parametrize(("version", "alpha"), [("summer", None), (None, 0.2)])
def test_version_and_alpha_may_be_chosen(tiny, tmp_path, version, alpha):
    """What is not chosen follows from the old bundle."""
    written = recalibrate(tiny.path, tmp_path / "b", inliers(tiny, 20, seed=12), version=version, alpha=alpha)

    chosen = written.version if version else without_digest(written.version)
    assert (chosen, written.default_alpha) == (version or "1-r1", alpha or 0.05)
    assert load(tmp_path / "b").score(tiny.inliers[:5]).budget.alpha == (alpha or 0.05)


def test_without_growing_the_old_calibration_rows_may_be_used_again(tiny, tmp_path):
    """The network has not seen them; beside new ones they are a calibration set like any other."""
    known = calibrating(tiny, tiny.path)

    written = recalibrate(tiny.path, tmp_path / "b", joined(inliers(tiny, 40, seed=14), known))

    assert written.calibration_size == 340


def test_the_command_prints_what_is_promised_now(tiny, tmp_path, capsys):
    """Path, name and version, n and the certificate; and what the version before makes of the rows."""
    rows = inliers(tiny, 200, seed=17)
    file, out = write_npz(tmp_path / "rows.npz", rows), tmp_path / "b"
    flagged = load(tiny.path).score(rows.x).is_outlier.mean()

    status = main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(out), "--grow"])

    bound, version = certificate.certify(0.05, 500).false_alarm_bound, bundles.read_manifest(out).version
    assert (status, capsys.readouterr().out) == (
        0,
        f"{out}: tiny {version}, 500 calibration rows; at alpha 0.05 false alarms are at most {bound:.4g} at "
        "confidence 0.95\n"
        f"1 flags {flagged:.1%} of these rows at alpha 0.05; the classifier's accuracy on them is 100.0%\n",
    )
    assert load(out).score(tiny.inliers).is_outlier.mean() < 0.2


def test_vectors_without_labels_recalibrate_without_labels(tmp_path):
    """As they were fitted."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", x_train=rng.normal(size=(300, 6)).astype(np.float32))
    np.savez(tmp_path / "c.npz", x_test=rng.normal(size=(100, 6)).astype(np.float32))
    assert main(["fit", "--embeddings", str(tmp_path / "v.npz"), "--out", str(tmp_path / "e")]) == 0

    bundle, out = str(tmp_path / "e" / "bundle"), str(tmp_path / "r")
    assert main(["recalibrate", bundle, "--data", str(tmp_path / "c.npz"), "--out", out]) == 0

    assert load(out).manifest.calibration_size == 100


def test_the_command_takes_version_and_alpha(tiny, tmp_path, capsys):
    """And replaces the calibration when it is not told to grow; labels of any integer dtype will do."""
    rows = inliers(tiny, 100, seed=18)
    file = write_npz(tmp_path / "rows.npz", rows, y_test=rows.y.astype(np.uint8))

    arguments = ["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]
    assert main([*arguments, "--version", "summer", "--alpha", "0.1"]) == 0

    assert ": tiny summer, 100 calibration rows; at alpha 0.1 false alarms" in capsys.readouterr().out
    assert bundles.read_manifest(tmp_path / "b").default_alpha == 0.1


def test_no_torch_is_imported(tiny, tmp_path):
    """The whole command, in a process of its own: neither torch nor scikit-learn."""
    file = write_npz(tmp_path / "rows.npz", inliers(tiny, 40, seed=21))
    code = (
        "import sys, softkin_training.recalibrate\n"
        "from softkin_training.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, sorted({'torch', 'sklearn'} & set(sys.modules)))"
    )
    arguments = ["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]

    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)

    assert ran.stdout.splitlines()[-1:] == ["0 []"], ran.stderr
    assert bundles.digest(tmp_path / "b") == hashlib.sha256((tmp_path / "b" / "manifest.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "questions"),
    [
        (lambda rows: rows, (False, False)),
        (lambda rows: Rows(rows.x + 9, rows.y, rows.ids), (True, False)),
        (lambda rows: Rows(rows.x, (rows.y + 1) % 3, rows.ids), (False, True)),
    ],
    ids=["as they are", "scaled otherwise", "labels off by one"],
)
def test_the_command_asks_when_rows_can_hardly_be_inliers(tiny, tmp_path, capsys, change, questions):
    """A version that was calibrated on the wrong rows promises as much as another, and misses outliers."""
    file = write_npz(tmp_path / "rows.npz", change(inliers(tiny, 200, seed=17)))

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]) == 0

    text = capsys.readouterr().out
    assert ("\nare they inliers, and prepared as the detector takes them? " in text) == questions[0]
    assert ("\nalways naming the largest class would do as well: are y_test the indices " in text) == questions[1]
