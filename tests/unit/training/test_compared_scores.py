"""Which scores a bundle allows beside its own, and that they see its network, its bank and its calibration rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from softkin import bundle as bundles
from softkin import conformal, mass
from softkin_training import baselines
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.compared_scores import compared_scores
from softkin_training.detection_metrics import auroc, fpr95, rate
from softkin_training.evaluate import evaluate, write_report
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
