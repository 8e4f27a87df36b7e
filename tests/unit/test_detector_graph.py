"""What follows the class masses, in ONNX operators, against the NumPy reference."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from softkin import conformal
from softkin.detector_graph import DetectorGraph, p_values, tail_surprise
from softkin.graph_builder import GraphBuilder
from softkin.nonconformity import CENTER, CLASS_PARTS, PARTS, SCALE, Nonconformity, Outputs, outlier_score


def run_graph(g, inputs, outputs):
    """Run the nodes of a builder on arrays by name."""
    dtypes = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE}
    graph = helper.make_graph(
        g.nodes,
        "piece",
        [helper.make_tensor_value_info(k, dtypes[v.dtype], v.shape) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), inputs)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize(("form", "parts"), [("posterior", ()), ("density", ()), ("joint", PARTS)])
def test_given_equal_masses_the_graph_is_the_reference(classes, layers, form, parts):
    """Everything after the masses against nonconformity.py and conformal.py: 1e-9, NaN and infinite rows included."""
    rng = np.random.default_rng(classes)
    masses = rng.normal(-20, 30, size=(200, layers, classes)).astype(np.float32)
    logits = rng.normal(0, 10, size=(200, classes)).astype(np.float32)
    boundary = rng.normal(0, 2, size=(200, classes)).astype(np.float32)
    masses[0, layers // 2, 0], masses[1, -1, -1], logits[2, -1], logits[3, 0] = np.nan, -np.inf, np.inf, np.nan
    boundary[4, -1], boundary[5, 0] = np.nan, -np.inf
    nonconformity = Nonconformity(
        form=form,
        class_weights=rng.uniform(5, 5000, classes),
        layer_weights=np.array([1.0, 0.25, 3.0])[:layers],
        parts=parts,
        references={p: np.sort(rng.normal(0, 60, 50)) for p in parts}
        | {CENTER.format(p): rng.normal(0, 30, classes) for p in CLASS_PARTS}
        | {SCALE.format(p): rng.uniform(1, 30, classes) for p in CLASS_PARTS},
    )
    outputs = Outputs(masses=masses, logits=logits, boundary=boundary)
    a = nonconformity(outputs)
    predicted = nonconformity.predict(outputs, a)
    score = outlier_score(a, predicted)
    finite = score[np.isfinite(score)]
    calibration = np.sort(finite) + 1e-6
    g = GraphBuilder()
    detector = DetectorGraph(
        graph=g, nonconformity=nonconformity, outlier_scores=calibration, true_class_scores=calibration
    )
    names = detector.outputs("masses", "logits", "boundary")
    inputs = {"masses": masses, "logits": logits, "boundary": boundary}

    found = dict(zip(names, run_graph(g, inputs, names.values()), strict=True))

    np.testing.assert_allclose(found["outlier_score"], score, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found["predicted_class"], predicted)
    np.testing.assert_array_equal(found["p_value"], conformal.p_values(score, calibration))
    class_p = conformal.p_values(a, calibration)
    np.testing.assert_array_equal(found["class_p_values"], class_p)
    np.testing.assert_array_equal(found["credibility"], conformal.credibility(class_p))
    np.testing.assert_array_equal(found["confidence"], conformal.confidence(class_p))


def test_of_rows_deep_in_their_class_the_graph_finds_the_same_posterior():
    """It is all but 0 there, and found to 1e-8 of itself; and 0 for both where other classes have next to nothing."""
    gaps = np.array([0.0, 1e-9, 0.5, 5, 12, 14, 15.5, 16.5, 17, 25, 45, 90, 700], np.float32)
    masses = np.stack([-1000 - gaps, np.full_like(gaps, -1000), np.full_like(gaps, -5000)], axis=1)[:, None]
    detector = Nonconformity(form="posterior", class_weights=np.ones(3), layer_weights=np.ones(1))
    expected = detector(Outputs(masses=masses, logits=None))
    g = GraphBuilder()
    graph = DetectorGraph(graph=g, nonconformity=detector, outlier_scores=np.ones(1), true_class_scores=np.ones(1))
    name = graph.outputs("masses", None)["outlier_score"]

    (found,) = run_graph(g, {"masses": masses}, [name])

    assert ((found > 0) == (gaps < 16)).all()
    np.testing.assert_allclose(found, expected.min(axis=1), rtol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 1000])
def test_p_values_count_ties_exactly(n):
    """Scores on, between and beyond calibration scores that repeat, with +inf."""
    rng = np.random.default_rng(n)
    calibration = np.sort(rng.integers(0, 5, n) / 3)
    scores = np.concatenate([calibration, rng.normal(size=20), [-1e300, 1e300, np.inf]]).reshape(1, -1)
    g = GraphBuilder()

    (found,) = run_graph(g, {"s": scores}, [p_values(g, "s", calibration)])

    np.testing.assert_array_equal(found, conformal.p_values(scores, calibration))


@pytest.mark.parametrize("n", [2, 3, 11, 100])
@pytest.mark.parametrize("repeats", [False, True])
def test_tail_surprise_is_that_of_conformal(n, repeats):
    """On, between, before and past reference scores, with and without repeated ones."""
    rng = np.random.default_rng(n)
    reference = np.sort(rng.integers(0, 4, n).astype(float) if repeats else rng.normal(size=n))
    scores = np.concatenate([reference, rng.normal(size=50) * 3, [-1e6, 1e6]])
    g = GraphBuilder()

    (found,) = run_graph(g, {"s": scores}, [tail_surprise(g, "s", reference)])

    np.testing.assert_allclose(found, conformal.tail_surprise(scores, reference), rtol=1e-12, atol=1e-12)
