"""What rows a classifier takes and what they become: dtypes, operator sets, our names, rows far off."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import SHAPE, body, classifier, reference, rows, tensor
from softkin.errors import InvalidInputError
from softkin.manifest import INPUT_DTYPES
from softkin.scorer import Network
from softkin.scorer_graph import OLDEST_OPSET, representation_output
from softkin_training import representation_graph
from softkin_training.expose import EMBEDDING, Exposed, embedding_network, expose

node, value = helper.make_node, helper.make_tensor_value_info


def exposed(proto, x, **options) -> Exposed:
    """`expose` with the hidden layer of `classifier` where nothing else is said."""
    defaults = {"layers": ["hidden"], "metric": "squared_euclidean", "max_dim": 256, "seed": 0}
    return expose(proto, x, **(defaults | options))


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def centred(x, tmp_path, metric="squared_euclidean", **options):
    """What vectors become in a network of their own."""
    found = embedding_network(x, metric=metric, **({"max_dim": 256, "seed": 0} | options))
    return run(found, x, tmp_path)[representation_output(EMBEDDING)]


@pytest.mark.parametrize("half", [False, True])
def test_the_input_may_be_a_layer(tmp_path, half):
    """The rows themselves, reduced as any layer is; the bundle says where they come from."""
    to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    proto = classifier(inputs=[value("x", to, ["batch", *SHAPE])], start=[
        node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT), *body()])  # fmt: skip
    proto.graph.node[1].input[0] = "wide"
    x = rows(20).astype(np.float16).astype(np.float32)

    found = exposed(proto, x, layers=["x", "hidden"], metric="squared_euclidean")

    assert (found.layers[0].name, found.layers[0].tensor, found.layers[0].width) == ("x", "x", 6)
    outputs = run(found, x, tmp_path)
    np.testing.assert_allclose(outputs[representation_output("x")], x.reshape(20, 6), rtol=1e-6)
    np.testing.assert_allclose(outputs[representation_output("hidden")], reference(x)[0], atol=1e-2)
    assert "x" not in [o for n in proto.graph.node for o in n.output]  # the caller's model stays as it is


def test_a_model_of_trees_compares_rows(tmp_path):
    """There is no other layer, and no standard operator either."""
    trees = node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "p"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0, 0, 0],
        class_nodeids=[1, 1, 2, 2],
        class_ids=[0, 1, 0, 1],
        class_weights=[1.0000001, -1.2e-7, 0.25, 0.75],
        classlabels_int64s=[0, 1],
    )
    inputs = [value("x", TensorProto.FLOAT, [None, 3])]
    proto = classifier(start=[trees], outputs=["p"], inputs=inputs, opset=0, domains=[("ai.onnx.ml", 1)])
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)

    found = exposed(proto, x, layers=["x"], metric="squared_euclidean")

    assert found.output_kind == "probabilities"  # a forest's may round to just below 0
    outputs = run(found, x, tmp_path)
    np.testing.assert_allclose(outputs[representation_output("x")], x, rtol=1e-6)
    assert (outputs["logits"].argmax(axis=1) == (x[:, 0] > 0)).all()


def test_the_input_is_a_layer_once():
    """As any other."""
    with pytest.raises(InvalidInputError, match="'x' is the input, which is among them already; leave it out"):
        exposed(classifier(), rows(9), layers=["x", "hidden", "x"])


def test_squared_distances_of_rows_far_from_the_origin_keep_their_digits(tmp_path):
    """Computed as |a|^2 + |b|^2 - 2 a.b in float32, they would have none: the origin moves among the rows."""
    x = np.random.default_rng(0).normal(1e4, 1, size=(50, 8)).astype(np.float32)

    z = centred(x, tmp_path)

    squares = np.square(z).sum(axis=1)
    found = squares[:, None] + squares - 2 * z @ z.T
    expected = np.square(x[:, None] - x.astype(np.float64)).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(np.median(z, axis=0)).max() < 0.1


@pytest.mark.parametrize(("offset", "metric"), [(5, "squared_euclidean"), (0, "squared_euclidean"), (1e4, "cosine")])
def test_rows_stay_where_they_are_otherwise(tmp_path, offset, metric):
    """Near the origin there is nothing to gain, and a direction is one from the origin."""
    x = np.random.default_rng(0).normal(offset, 1, size=(50, 8)).astype(np.float32)

    expected = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    np.testing.assert_allclose(centred(x, tmp_path, metric), expected, rtol=1e-5)


def test_a_layer_far_from_the_origin_is_moved_and_then_projected(tmp_path):
    """As vectors are, whose distances a projection keeps in the mean."""
    start = body()
    start[2:3] = [node("Add", ["before", "far"], ["hidden"])]
    x = rows(50)
    proto = classifier(start=start, initializers=[tensor(np.float32(1e4), "far")])

    whole = run(exposed(proto, x), x, tmp_path)[representation_output("hidden")]
    projected = run(exposed(proto, x, max_dim=3), x, tmp_path)[representation_output("hidden")]

    assert whole.shape == (50, 5)
    assert np.abs(whole).max() < 100
    assert projected.shape == (50, 3)
    assert np.abs(projected).max() < 100


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_a_classifier_may_take_rows_of_every_dtype_that_a_detector_takes(tmp_path, dtype):
    """The input keeps its type."""
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    start = [node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT), *body()]
    start[1].input[0] = "wide"
    x = np.abs(10 * rows(20)).astype(dtype)

    found = exposed(classifier(start=start, inputs=[value("x", elem_type, ["batch", *SHAPE])]), x)

    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-4, atol=1e-4)
    assert onnx.load_from_string(found.model).graph.input[0].type.tensor_type.elem_type == elem_type


@pytest.mark.parametrize(
    ("opset", "domains", "changes"),
    [
        (OLDEST_OPSET, (), ()),
        (OLDEST_OPSET - 1, (), (f"conversion from opset {OLDEST_OPSET - 1} to {OLDEST_OPSET}",)),
        (0, [("ai.onnx", 21)], ()),
        (0, [("ai.onnx", OLDEST_OPSET - 1)], (f"conversion from opset {OLDEST_OPSET - 1} to {OLDEST_OPSET}",)),
    ],
    ids=["the oldest", "older", "by its other name", "older, by its other name"],
)
def test_operators_are_converted_where_they_are_too_old(tmp_path, opset, domains, changes):
    """The standard operators have two names."""
    x = rows(20)

    found = exposed(classifier(opset=opset, domains=domains), x)

    assert found.changes == changes
    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["huge", "-huge"])
def test_values_that_only_float64_holds_are_refused(layer):
    """Representations are float32, and would be infinite."""
    start = [
        *body(),
        node("Cast", ["hidden"], ["wide"], to=TensorProto.DOUBLE),
        node("Add", ["wide", "far"], ["huge"]),
        node("Neg", ["huge"], ["-huge"]),
    ]
    far = helper.make_tensor("far", TensorProto.DOUBLE, [], [1e300])

    with pytest.raises(InvalidInputError, match=f"layers: '{layer}' has NaN or infinity on 20 of 20 rows tried; name"):
        exposed(classifier(start=start, initializers=[far]), rows(20), layers=[layer])


@pytest.mark.parametrize(
    "name", ["boundary_distance", "outlier_score", "contribution.hidden", "row.hidden", "expose/Cast_0", "softkin/x"]
)
def test_an_input_may_not_be_called_as_what_a_detector_adds(tmp_path, name):
    """Now or where it is exported: it is called otherwise, and the change is told."""
    start = body()
    start[0].input[0] = name
    x = rows(20)

    found = exposed(classifier(start=start, inputs=[value(name, TensorProto.FLOAT, ["batch", *SHAPE])]), x)

    assert found.changes == (f"calling its input {name!r} 'inputs'",)
    assert [i.name for i in onnx.load_from_string(found.model).graph.input] == ["inputs"]
    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-5, atol=1e-5)


def test_a_projection_too_large_for_a_bundle_is_told_in_gigabytes(monkeypatch):
    """Of float32; one that just fits is made."""
    monkeypatch.setattr(representation_graph, "LARGEST_MODEL_BYTES", 2**24)
    x = np.ones((2, 2**12), np.float32)

    with pytest.raises(
        InvalidInputError, match=r"4096 numbers a row, .* take 0\.05 GiB; a .* at most 0\.02 GiB: lower"
    ):
        embedding_network(x, metric="cosine", max_dim=3000, seed=0)
    assert embedding_network(x, metric="cosine", max_dim=1000, seed=0).layers[0].width == 2**12
