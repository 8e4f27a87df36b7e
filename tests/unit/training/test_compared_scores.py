"""Which scores a bundle allows beside its own, and that they see its network, its bank and its calibration rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from softkin import bundle as bundles
from softkin import conformal, mass
from softkin.nonconformity import fit_references, outlier_score
from softkin_training import baselines, feature_baselines
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.compared_scores import compared_scores
from softkin_training.detection_metrics import auroc, fpr95, rate
from softkin_training.evaluate import evaluate, write_report
from softkin_training.fitted_baselines import RelativeMahalanobis, summed_distances
from softkin_training.subject import Subject

pytestmark = pytest.mark.training


def test_baselines_see_the_banks_rows(tiny):
    """K-th neighbour and DkNN from the representations of the bank rows, computed afresh."""
    subject = Subject(bundles.read_bundle(tiny.path))
    bank = subject._network.run(tiny.bank.x)
    z = {k: subject.run(x) for k, x in (("i", tiny.inliers), ("o", tiny.outliers), ("c", tiny.calibration.x))}

    report = evaluate(
        tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, calibration=tiny.calibration
    )
    last = bank["representation.narrow"]
    kth = [baselines.kth_neighbor(z[k].z["narrow"], last) for k in "io"]
    assert report.scores["kth_neighbor"].outliers["far"].auroc == pytest.approx(auroc(*kth))

    layers = {n: bank[f"representation.{n}"] for n in ("wide", "narrow")}
    counts = {k: baselines.dknn_nonconformity(p.z, layers, tiny.bank.y, 3) for k, p in z.items()}
    true = np.take_along_axis(counts["c"], tiny.calibration.y[:, None], axis=1)[:, 0]
    credibility = {k: conformal.credibility(conformal.p_values(counts[k], np.sort(true))) for k in "io"}
    dknn = report.scores["dknn"]
    assert dknn.false_alarms == rate(credibility["i"] <= 0.05)
    assert dknn.outliers["far"].fpr95 == fpr95(1 - credibility["i"], 1 - credibility["o"])


def test_vim_is_fitted_to_the_layer_that_logits_are_made_of(tiny):
    """In the tiny network that is its input, which the layer `wide` holds at unit norm."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)

    assert subject.head.features == "inputs"
    inliers, far = (subject.run(x) for x in (tiny.inliers, tiny.outliers))
    np.testing.assert_allclose(inliers.features, tiny.inliers)
    assert auroc(scores["vim"].score(inliers), scores["vim"].score(far)) > 0.9


def test_vim_of_a_cosine_bank_takes_directions_from_it_and_lengths_from_the_probe_rows(tiny):
    """The bank has lost the lengths, which set the scale of the virtual logit."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)

    unit, probe, x = subject.neighbors["wide"].astype(float), subject.golden.features, tiny.outliers
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-5)
    weight = subject.head.weight  # there is no bias, and so the origin is 0
    residual = np.linalg.eigh(unit.T @ unit)[1][:, :6]
    alpha = (probe @ weight.T).max(axis=1).mean() / np.linalg.norm(probe @ residual, axis=1).mean()
    expected = alpha * np.linalg.norm(x @ residual, axis=1) + mass.energy(x @ weight.T)
    np.testing.assert_allclose(scores["vim"].score(subject.run(x)), expected, rtol=1e-3)


def test_a_network_whose_head_cannot_be_read_is_told(tiny, tmp_path):
    """The rest of the report stays."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node[0].output[0] = "raw"
    model.graph.node.append(helper.make_node("LogSoftmax", ["raw"], ["logits"]))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})
    assert not {"vim", "fdbd", "react", "scale"} & found.scores.keys()
    assert {"mahalanobis", "energy"} <= found.scores.keys()
    assert any("ViM, fDBD, ReAct and SCALE are left out" in note for note in found.notes)


def test_a_euclidean_bank_of_one_layer_gives_vim_as_published(tiny, tmp_path):
    """Such a bank holds the features themselves. Scores that need several layers are left out, not repeated."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[1:]
    del model.graph.output[1:]
    model.graph.node.append(helper.make_node("Identity", ["inputs"], ["representation.raw"]))
    model.graph.output.append(helper.make_tensor_value_info("representation.raw", TensorProto.FLOAT, ["batch", 12]))
    layers = (LayerSpec(name="raw", metric="squared_euclidean"),)
    spec = DetectorSpec(name="raw", version="1", classes=("a", "b", "c"), layers=layers, nonconformity="density")
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    subject = Subject(bundles.read_bundle(path))
    scores, _ = compared_scores(subject, None, None, 0)
    weight, bias = subject.head.weight, subject.head.bias
    np.testing.assert_array_equal(bias, 0.0)
    x, logits = tiny.bank.x.astype(np.float64), tiny.bank.x @ weight.T
    _, vectors = np.linalg.eigh(x.T @ x)
    off = np.linalg.norm(x @ vectors[:, :6], axis=1)
    expected = logits.max(axis=1).mean() / off.mean() * off + mass.energy(logits)
    np.testing.assert_allclose(scores["vim"].score(subject.run(tiny.bank.x)), expected, rtol=1e-3, atol=1e-3)
    assert not {"density_last", "kth_neighbor_all", "density"} & scores.keys()


def test_a_bank_of_prototypes_leaves_out_what_counts_or_fits_rows(tiny, tmp_path):
    """They are too few, and not all of equal weight."""
    spec = dataclasses.replace(tiny.spec, condense=5.0)
    path = tmp_path / "bundle"
    build(path, tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})
    assert not {"kth_neighbor", "kth_neighbor_all", "dknn", "mahalanobis", "vim"} & found.scores.keys()
    assert any("prototypes" in note for note in found.notes)


def test_bare_embeddings_have_no_scores_of_logits(tiny, tmp_path):
    """The class of smallest nonconformity stands for the prediction; there are no probabilities to calibrate."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[0]
    del model.graph.output[0]
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(
        path,
        inliers=tiny.inliers,
        labels=np.arange(len(tiny.inliers)) % 3,
        outliers={"far": tiny.outliers},
        calibration=tiny.calibration,
    )
    assert not {"energy", "max_logit", "gen", "max_softmax", "vim", "joint_energy_density"} & found.scores.keys()
    assert found.accuracy > 0.9
    assert found.classifier is None
    assert len(found.credibility) == 10
    write_report(found, tmp_path / "out")


def test_some_calibration_rows_are_fitted_to_and_the_others_calibrate(tiny):
    """A quarter, by the seed, the same for all such scores; ReAct's limit is a quantile of those rows alone."""
    subject = Subject(bundles.read_bundle(tiny.path))
    calibration = subject.run(tiny.calibration.x)
    scores, again, other = (compared_scores(subject, calibration, None, seed)[0] for seed in (7, 7, 8))

    fitted = ~scores["react"].calibrates
    assert (len(fitted), fitted.sum()) == (400, 100)
    for name in ("joint_energy_density", "fdbd"):
        assert (~scores[name].calibrates == fitted).all()
    assert (again["react"].calibrates == scores["react"].calibrates).all()
    assert (other["react"].calibrates != scores["react"].calibrates).any()
    assert {name for name, s in scores.items() if s.calibrates is None} == scores.keys() - {
        "joint_energy_density",
        "fdbd",
        "react",
    }
    head, x = subject.head, tiny.outliers * np.float32(3)
    clip = np.quantile(tiny.calibration.x[fitted], 0.9)
    expected = mass.energy(np.minimum(x, clip) @ head.weight.T + head.bias)
    np.testing.assert_allclose(scores["react"].score(subject.run(x)), expected, rtol=1e-5)


def test_scores_of_features_are_those_of_what_the_last_layer_reads(tiny, tmp_path):
    """Behind a ReLU: SCALE by the largest two of 12, fDBD from the mean of the rows that it is fitted to."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node[0].input[0] = "h"
    model.graph.node.insert(0, helper.make_node("Relu", ["inputs"], ["h"]))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    subject = Subject(bundles.read_bundle(path))
    scores, notes = compared_scores(subject, subject.run(tiny.calibration.x), None, 0)

    seen, w = subject.run(tiny.outliers), subject.head.weight
    found = {name: scores[name].score(seen) for name in ("fdbd", "scale")}
    mean = np.maximum(tiny.calibration.x[~scores["fdbd"].calibrates], 0).mean(axis=0)
    for i, h in enumerate(np.maximum(tiny.outliers, 0).astype(float)):
        logits = w @ h
        f = logits.argmax()
        boundaries = [(logits[f] - logits[c]) / np.linalg.norm(w[f] - w[c]) for c in range(3) if c != f]
        fdbd = -np.mean(boundaries) / np.linalg.norm(h - mean)
        assert found["fdbd"][i] == pytest.approx(fdbd, rel=1e-4)
        scaled = logits * np.exp(h.sum() / np.sort(h)[-2:].sum())
        assert found["scale"][i] == pytest.approx(-np.logaddexp.reduce(scaled), rel=1e-4)
    assert not any("SCALE" in note for note in notes)


@pytest.mark.parametrize("all_of_them", [False, True])
def test_rows_on_which_the_network_overflows_are_not_fitted_to(tiny, all_of_them):
    """One would make ReAct's limit and fDBD's mean infinite; without any other neither can be fitted."""
    subject = Subject(bundles.read_bundle(tiny.path))
    x = tiny.calibration.x.copy()
    fitted = ~compared_scores(subject, subject.run(x), None, 0)[0]["react"].calibrates
    x[fitted if all_of_them else fitted.nonzero()[0][:20]] = 3e38

    scores, _ = compared_scores(subject, subject.run(x), None, 0)

    assert ({"react", "fdbd"} & scores.keys() == set()) == all_of_them
    if not all_of_them:
        seen, w = subject.run(tiny.outliers), subject.head.weight
        clip = np.quantile(x[fitted][20:], feature_baselines.REACT_QUANTILE)
        np.testing.assert_allclose(
            scores["react"].score(seen), feature_baselines.react(tiny.outliers, clip, w, np.zeros(3)), rtol=1e-5
        )
        fdbd = feature_baselines.FDBD(mean=x[fitted][20:].mean(axis=0), weight=w, bias=np.zeros(3))
        np.testing.assert_allclose(scores["fdbd"].score(seen), fdbd.score(tiny.outliers), rtol=1e-4)


@pytest.mark.parametrize(("rows", "enough"), [(5, False), (6, True)])
def test_the_fewest_calibration_rows_for_a_joint_score_are_those_that_are_told(tiny, rows, enough):
    """Two to fit to, and the note names the number that would do."""
    subject = Subject(bundles.read_bundle(tiny.path))

    scores, notes = compared_scores(subject, subject.run(tiny.calibration.x[:rows]), None, 0)

    assert ({"joint_energy_density", "react"} <= scores.keys()) == enough
    assert any("5 calibration rows are too few" in note and "need 6" in note for note in notes) == (not enough)


def test_parts_are_told_by_their_names_and_are_what_their_names_say(tiny):
    """Of the last layer by its name."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    titles = {name: scores[name].title for name in ("posterior", "posterior_hidden", "density", "density_last")}
    assert list(titles.values()) == ["posterior", "posterior hidden", "density", "density, narrow"]
    for name in titles:
        expected = subject.nonconformity().part_score(name, seen.outputs)
        np.testing.assert_array_equal(scores[name].score(seen), expected)


def test_joint_scores_put_their_parts_on_the_scale_of_the_reference_rows(tiny):
    """Those that do not calibrate them; at the class that the network predicts."""
    subject = Subject(bundles.read_bundle(tiny.path))
    calibration, seen = subject.run(tiny.calibration.x), subject.run(tiny.outliers)
    scores, _ = compared_scores(subject, calibration, None, 0)
    joint, parts = scores["joint_energy_density"], ("energy", "density")

    fitted = calibration.outputs.take(~joint.calibrates)
    form = subject.nonconformity(parts, fit_references(subject.nonconformity(), parts, fitted))
    expected = outlier_score(form(seen.outputs), seen.logits.argmax(axis=1))

    assert set(subject.detector.manifest.parts) == {"posterior", "density", "density_last"}  # so that is no other score
    assert joint.title == "joint: energy + density"
    np.testing.assert_allclose(joint.score(seen), expected)


def test_what_counts_neighbors_and_what_fits_gaussians_sees_the_layers_it_names(tiny):
    """All layers in units of their own typical distance: the median one of a row to its k-th nearest other row."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    typical = [np.median(baselines.kth_neighbor(z, z, baselines.KTH + 1)) for z in subject.neighbors.values()]
    each = np.stack([baselines.kth_neighbor(seen.z[n], z) for n, z in subject.neighbors.items()])
    gaussians = RelativeMahalanobis.fit(subject.neighbors["narrow"], subject.labels, 3)
    expected = {
        "kth_neighbor": each[-1],
        "kth_neighbor_all": summed_distances(each, np.array(typical)),
        "dknn": seen.dknn_nonconformity().min(axis=1),
        "mahalanobis": gaussians.classes.score(seen.z["narrow"]),
        "relative_mahalanobis": gaussians.score(seen.z["narrow"]),
        "max_logit": baselines.max_logit(seen.logits),
        "gen": baselines.gen(seen.logits),
        "max_softmax": baselines.max_softmax(seen.logits),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].score(seen), values, rtol=1e-5, err_msg=name)
    assert (scores["dknn"].p_values, list(subject.neighbors)) == ("none", ["wide", "narrow"])
