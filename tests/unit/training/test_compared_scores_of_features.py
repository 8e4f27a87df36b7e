"""Compared scores of the features before the last linear layer: what they read, and what they are fitted to."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin import bundle as bundles
from softkin import mass
from softkin_training import feature_baselines
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.compared_scores import compared_scores
from softkin_training.detection_metrics import auroc
from softkin_training.evaluate import evaluate
from softkin_training.rows import Rows
from softkin_training.subject import Subject

pytestmark = pytest.mark.training


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


@pytest.mark.parametrize(
    ("layers", "wide", "found"),
    [
        pytest.param(("narrow", "wide"), "inputs", True, id="not the first layer"),
        pytest.param(("narrow",), "inputs", False, id="of another width"),
        pytest.param(("wide",), "passed", False, id="of equal width"),
    ],
)
def test_vim_looks_for_the_layer_that_logits_are_made_of(tiny, tmp_path, layers, wide, found):
    """Among all of the bank; where it is not there, that is told."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node.insert(0, helper.make_node("Relu", ["inputs"], ["passed"]))
    next(n for n in model.graph.node if n.output[0] == "representation.wide").input[0] = wide
    outputs = [o for o in model.graph.output if o.name.removeprefix("representation.") in ("logits", *layers)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    spec = dataclasses.replace(tiny.spec, layers=tuple(LayerSpec(name=n, metric="cosine") for n in layers))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    subject = Subject(bundles.read_bundle(path))
    scores, notes = compared_scores(subject, None, None, 0)
    assert ("vim" in scores) == found
    assert any("ViM is left out: the bank does not hold the layer" in note for note in notes) != found
    if found:
        expected, _ = compared_scores(Subject(bundles.read_bundle(tiny.path)), None, None, 0)
        seen = subject.run(tiny.outliers)
        np.testing.assert_allclose(scores["vim"].score(seen), expected["vim"].score(seen), rtol=1e-4)


def test_a_network_whose_head_cannot_be_read_is_told(tiny, tmp_path):
    """The rest of the report stays."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node[0].output[0] = "raw"
    model.graph.node.append(helper.make_node("Selu", ["raw"], ["logits"]))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})
    assert not {"vim", "fdbd", "react", "scale"} & found.scores.keys()
    assert {"mahalanobis", "energy"} <= found.scores.keys()
    assert any("ViM, fDBD, ReAct and SCALE are left out" in note for note in found.notes)


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_probe_rows_do_not_show_that_a_network_has_no_energy(tiny, rows):
    """One has the same energy as itself."""
    scores, notes = compared_scores(Subject(with_probe_rows(tiny, rows)), None, None, 0)

    assert {"mahalanobis", "energy", "max_logit"} <= scores.keys()
    assert not any("Energy" in note for note in notes)


def test_a_bundle_without_probe_rows_is_not_said_to_lack_a_linear_layer(tiny):
    """Its network ends in one."""
    scores, notes = compared_scores(Subject(with_probe_rows(tiny, 0)), None, None, 0)

    assert not {"vim", "fdbd", "react", "scale"} & scores.keys()
    assert any("left out: the bundle has no probe rows" in note for note in notes)
    assert not any("linear layer" in note for note in notes)


def with_probe_rows(tiny, rows):
    """The bundle with so many of its probe rows."""
    loaded = bundles.read_bundle(tiny.path)
    golden = dataclasses.replace(
        loaded.golden, inputs=loaded.golden.inputs[:rows], outlier_scores=loaded.golden.outlier_scores[:rows]
    )
    return dataclasses.replace(loaded, golden=golden)


def test_a_euclidean_bank_of_one_layer_gives_vim_as_published(tiny, tmp_path):
    """Such a bank holds the features themselves. Scores that need several layers are left out, not repeated."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[1:]
    del model.graph.output[1:]
    bias = np.array([1.0, -2.0, 3.0], np.float32)
    model.graph.node[0].output[0] = "product"
    model.graph.node.append(helper.make_node("Add", ["product", "bias"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    model.graph.node.append(helper.make_node("Identity", ["inputs"], ["representation.raw"]))
    model.graph.output.append(helper.make_tensor_value_info("representation.raw", TensorProto.FLOAT, ["batch", 12]))
    layers = (LayerSpec(name="raw", metric="squared_euclidean"),)
    spec = DetectorSpec(name="raw", version="1", classes=("a", "b", "c"), layers=layers, nonconformity="density")
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    subject = Subject(bundles.read_bundle(path))
    scores, _ = compared_scores(subject, None, None, 0)
    weight = subject.head.weight
    x = tiny.bank.x.astype(np.float64)
    logits, off = x @ weight.T + bias, x + np.linalg.pinv(weight) @ bias
    _, vectors = np.linalg.eigh(off.T @ off)
    residual = np.linalg.norm(off @ vectors[:, :6], axis=1)
    expected = logits.max(axis=1).mean() / residual.mean() * residual + mass.energy(logits)
    np.testing.assert_allclose(scores["vim"].score(subject.run(tiny.bank.x)), expected, rtol=1e-3, atol=1e-3)
    assert not {"density_last", "kth_neighbor_all", "density"} & scores.keys()


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


def test_scale_is_left_out_where_features_are_hardly_negative(tiny, tmp_path):
    """As those of a GELU: it takes what a ReLU has passed."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node[0].input[0] = "h"
    model.graph.node.insert(0, helper.make_node("LeakyRelu", ["inputs"], ["h"], alpha=0.001))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    scores, notes = compared_scores(Subject(bundles.read_bundle(path)), None, None, 0)

    assert "scale" not in scores
    assert any("SCALE is left out: it takes features that a ReLU has passed" in note for note in notes)


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


def test_features_in_half_precision_are_still_the_features(tiny, tmp_path):
    """To a thousandth of the largest of them: a network may pass its representations on in fewer bits."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[1:]
    del model.graph.output[1:]
    model.graph.node.append(helper.make_node("Cast", ["inputs"], ["rounded"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["rounded"], ["representation.raw"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("representation.raw", TensorProto.FLOAT, ["batch", 12]))
    layers = (LayerSpec(name="raw", metric="squared_euclidean"),)
    spec = DetectorSpec(name="raw", version="1", classes=("a", "b", "c"), layers=layers, nonconformity="density")
    bank, calibration = (Rows(rows.x * 100, rows.y, rows.ids) for rows in (tiny.bank, tiny.calibration))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), spec, bank_rows=bank, calibration_rows=calibration)

    assert "vim" in compared_scores(Subject(bundles.read_bundle(path)), None, None, 0)[0]


def test_a_single_class_has_no_decision_boundary(tiny, tmp_path):
    """So no fDBD; what else is made of its logit stays."""
    model = onnx.load_from_string(tiny.model)
    weight = numpy_helper.to_array(model.graph.initializer[0])[:, :1]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    spec = dataclasses.replace(tiny.spec, classes=("a",))
    bank, calibration = (dataclasses.replace(rows, y=0 * rows.y) for rows in (tiny.bank, tiny.calibration))
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), spec, bank_rows=bank, calibration_rows=calibration)
    subject = Subject(bundles.read_bundle(path))

    scores, _ = compared_scores(subject, subject.run(calibration.x), None, 0)
    assert "fdbd" not in scores
    assert [name for name in scores if name.startswith("joint")] == ["joint_energy_density"]  # which compares none
    clip = np.quantile(calibration.x[~scores["react"].calibrates], 0.9)
    expected = -np.minimum(tiny.outliers, clip) @ weight[:, 0]
    np.testing.assert_allclose(scores["react"].score(subject.run(tiny.outliers)), expected, rtol=1e-4, atol=1e-4)
