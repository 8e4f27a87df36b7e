"""Distances to decision boundaries in a model's graph, against fDBD and against a loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin import Detector
from softkin.errors import DataError
from softkin.scorer import BOUNDARY, LOGITS, Network
from softkin_training.boundary import MEAN_ROWS, with_boundary
from softkin_training.build import build
from softkin_training.feature_baselines import FDBD
from softkin_training.rows import Rows

WIDTH, CLASSES = 6, 4


def classifier(weight_CD, bias_C, *, extra=()):
    """`relu(x) -> Gemm -> logits`, opset 21; `extra` nodes stand between the Gemm and the logits."""
    last = "gemm" if extra else LOGITS
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "b"], [last], transB=1),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight_CD.shape[1]])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n", len(weight_CD)])],
        [numpy_helper.from_array(a.astype(np.float32), k) for k, a in {"w": weight_CD, "b": bias_C}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def passing_on():
    """A model whose logits are its input."""
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["n", CLASSES])], [value(LOGITS, TensorProto.FLOAT, ["n", CLASSES])]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], [LOGITS])], "passing on", *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def rows(n, seed=0, width=WIDTH):
    """Training rows."""
    x = np.random.default_rng(seed).normal(1, 2, size=(n, width)).astype(np.float32)
    return Rows(x, np.zeros(n, np.int64), np.arange(n))


def outputs_of(model, x, tmp_path):
    """All outputs of a model."""
    (tmp_path / "model.onnx").write_bytes(model)
    return Network(tmp_path / "model.onnx", device="cpu").run(x)


@pytest.fixture
def head():
    """Weights, of which classes 0 and 3 have equal ones, and biases that share a large number."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(CLASSES, WIDTH)), 1000 + rng.normal(size=CLASSES)
    weight[3] = weight[0]
    return weight.astype(np.float32).astype(np.float64), bias


def test_every_class_by_hand_and_the_predicted_one_as_fdbd(head, tmp_path):
    """Eq. 4 to 7 of the paper; classes of equal weights have no boundary between them."""
    weight, bias = head
    bank, x = rows(300), rows(40, seed=2).x
    found = outputs_of(with_boundary(classifier(weight, bias), bank), x, tmp_path)
    h, mean = np.maximum(x, 0).astype(np.float64), np.maximum(bank.x, 0).mean(axis=0, dtype=np.float64)
    logits = h @ weight.T + bias

    for i in range(len(x)):
        for j in range(CLASSES):
            total = 0.0
            for c in range(CLASSES):
                apart = np.linalg.norm(weight[j] - weight[c])
                total += (logits[i, j] - logits[i, c]) / apart if apart else 0.0
            expected = total / (CLASSES - 1) / np.linalg.norm(h[i] - mean)
            assert found[BOUNDARY][i, j] == pytest.approx(expected, rel=2e-3, abs=1e-3)
    fdbd = FDBD(mean=mean, weight=weight, bias=bias)
    top = found[LOGITS].argmax(axis=1)
    np.testing.assert_allclose(-found[BOUNDARY][np.arange(len(x)), top], fdbd.score(h), rtol=2e-3, atol=1e-3)


def test_what_the_model_yielded_before_stays(head, tmp_path):
    """The logits, bit for bit."""
    plain, x = classifier(*head), rows(20).x
    before = outputs_of(plain, x, tmp_path)

    after = outputs_of(with_boundary(plain, rows(30)), x, tmp_path)

    assert set(after) == {LOGITS, BOUNDARY}
    np.testing.assert_array_equal(after[LOGITS], before[LOGITS])


def test_a_row_at_the_mean_is_finite(head, tmp_path):
    """Where the divisor would be zero."""
    bank = Rows(np.full((3, WIDTH), 2.0, np.float32), np.zeros(3, np.int64), np.arange(3))

    found = outputs_of(with_boundary(classifier(*head), bank), bank.x, tmp_path)[BOUNDARY]

    assert not np.isnan(found).any()
    assert found.max() > 1e6


def test_a_row_at_the_mean_whose_classes_are_alike_is_at_every_boundary(tmp_path):
    """Distance 0, where 0 would be divided by 0; two classes are enough."""
    bank = Rows(np.full((3, WIDTH), 2.0, np.float32), np.zeros(3, np.int64), np.arange(3))

    found = outputs_of(with_boundary(classifier(np.eye(2, WIDTH), np.zeros(2)), bank), bank.x, tmp_path)[BOUNDARY]

    assert found.tolist() == [[0, 0]] * 3


def test_distances_of_a_row_do_not_depend_on_the_rows_beside_it(head, tmp_path):
    """Nor lose their digits where another row's logits are millions of times as large."""
    model, x = with_boundary(classifier(*head), rows(300)), rows(4, seed=2).x
    alone = outputs_of(model, x, tmp_path)[BOUNDARY]

    beside = outputs_of(model, np.concatenate([x, 1e7 * np.abs(x)]), tmp_path)[BOUNDARY]

    np.testing.assert_allclose(beside[:4], alone, rtol=1e-4, atol=1e-5)


def test_what_all_logits_have_in_common_costs_no_digits(tmp_path):
    """Small whole numbers beside four million are exact in float32, and so are their differences."""
    rng = np.random.default_rng(3)
    weight, bias = rng.integers(-3, 4, (CLASSES, WIDTH)).astype(float), rng.integers(-5, 6, CLASSES).astype(float)
    x = rng.integers(0, 5, (20, WIDTH)).astype(np.float32)
    expected = outputs_of(with_boundary(classifier(weight, bias), rows(30)), x, tmp_path)[BOUNDARY]

    found = outputs_of(with_boundary(classifier(weight, bias + 2**22), rows(30)), x, tmp_path)[BOUNDARY]

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turns", [False, True], ids=["one kind after the other", "classes that take turns"])
def test_the_mean_is_taken_over_all_of_many_rows(head, turns, tmp_path):
    """Not over the first ones, which may all be of one kind, nor over every n-th, which may all be of one class."""
    n = 2 * MEAN_ROWS
    x, y = np.zeros((n, WIDTH), np.float32), np.zeros(n, np.int64)
    if turns:
        y[1::2] = 1
        x[y == 1] = 10.0
    else:
        x[n // 2 :] = 10.0
    bank = Rows(x, y, np.arange(n))

    found = outputs_of(with_boundary(classifier(*head), bank), np.full((1, WIDTH), 5.0, np.float32), tmp_path)

    assert np.abs(found[BOUNDARY]).max() > 1e6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (classifier(np.ones((1, WIDTH)), np.ones(1)), "needs 2 classes or more"),
        (
            classifier(np.eye(CLASSES, WIDTH), np.ones(CLASSES), extra=[helper.make_node("Tanh", ["gemm"], [LOGITS])]),
            "needs a network whose logits are a linear layer's",
        ),
        (passing_on(), "needs a network whose logits are a linear layer's"),
    ],
    ids=["one class", "no linear layer", "no layer at all"],
)
def test_a_network_without_boundaries_is_refused(model, message):
    """With what it lacks."""
    with pytest.raises(DataError, match=message):
        with_boundary(model, rows(20))


@pytest.mark.parametrize("features", [slice(None), slice(1)], ids=["everywhere", "in one feature"])
def test_a_network_that_overflows_is_refused(head, features):
    """NaN would become part of every score."""
    bank = Rows(np.full((3, WIDTH), 2.0, np.float32), np.zeros(3, np.int64), np.arange(3))
    bank.x[:, features] = np.inf

    with pytest.raises(DataError, match="overflows on training rows"):
        with_boundary(classifier(*head), bank)


def test_a_detector_with_the_part_keeps_its_promise_and_says_how_strange_a_row_is_in_it(tiny, tmp_path):
    """Served as calibrated, whole and in shards: the part is the surprise of fDBD."""
    parts = ("boundary_distance", "density")
    spec = dataclasses.replace(tiny.spec, nonconformity="joint", parts=parts)
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    whole, sharded = (Detector.load(tmp_path / "b", device=device) for device in ("cpu", "cpu,cpu"))

    found = whole.score(tiny.inliers, num_neighbors=1)

    assert found.parts.names == parts
    np.testing.assert_allclose(np.linalg.norm(found.parts.values, axis=1), found.outlier_score, rtol=1e-9)
    np.testing.assert_allclose(sharded.score(tiny.inliers).outlier_score, found.outlier_score, rtol=1e-4, atol=1e-5)
    assert found.is_outlier.mean() < 0.1
    assert "boundary_distance" in [o.name for o in onnx.load(tmp_path / "b" / "model.onnx").graph.output]
