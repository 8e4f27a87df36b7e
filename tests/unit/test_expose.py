"""Any ONNX classifier becomes a detector's network, unchanged in its values. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from foreign_models import CLASSES, SHAPE, WIDTH, body, classifier, reference, rows, tensor
from softkin.graph_builder import GraphBuilder
from softkin.scorer import Network, extend, reducer_key
from softkin.scorer_graph import OLDEST_OPSET, representation_output
from softkin_training.expose import EMBEDDING, Exposed, embedding_network, expose
from softkin_training.foreign import read_model
from softkin_training.projection import projection_matrix

value = helper.make_tensor_value_info
SOFTMAX = helper.make_node("Softmax", ["scores"], ["p"], axis=1)


def exposed(proto, x=None, **options) -> Exposed:
    """`expose` with the hidden layer of `classifier` where nothing else is said."""
    defaults = {"layers": ["hidden"], "metric": "cosine", "max_dim": 256, "seed": 0}
    return expose(proto, rows(20) if x is None else x, **(defaults | options))


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def reduced(activations, *, metric, max_dim, seed):
    """What a layer becomes, row by row in float64."""
    result = []
    for row in activations.reshape(len(activations), -1).astype(np.float32).astype(np.float64):
        z = row / max(np.sqrt((row**2).sum()), 1e-12) if metric == "cosine" else row
        matrix = projection_matrix(len(row), max_dim, seed)
        if matrix is not None:
            z = z @ matrix.astype(np.float64)
            z = z / max(np.sqrt((z**2).sum()), 1e-12) if metric == "cosine" else z
        result.append(z)
    return np.array(result)


def layer_model(shape, elem_type=TensorProto.FLOAT):
    """The input itself, negated, as a layer of any shape and number type; beside it a classifier of its sum."""
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=elem_type),
        helper.make_node("Neg", ["cast"], ["layer"]),
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "ones"], ["scores"]),
    ]
    return classifier(
        start=nodes,
        inputs=[value("x", TensorProto.FLOAT, ["batch", *shape])],
        initializers=[tensor(np.ones((int(np.prod(shape)), 2)), "ones")],
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    elem_type=st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE]),
    metric=st.sampled_from(["cosine", "squared_euclidean"]),
    max_dim=st.integers(1, 20),
    seed=st.integers(0, 100),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_representations_are_the_layer_flattened_normalised_and_projected(
    tmp_path_factory, shape, elem_type, metric, max_dim, seed, scale
):
    """Equal to NumPy for any layer, with a dead row in it, and alike for one row and for seven."""
    assume(metric != "cosine" or np.prod(shape) > 1)
    x = (scale * np.random.default_rng(seed).normal(size=(7, *shape))).astype(np.float32)
    x[3] = 0
    options = {"metric": metric, "max_dim": max_dim, "seed": seed}

    found = exposed(layer_model(shape, elem_type), x, layers=["layer"], **options)

    name = representation_output("layer")
    together = run(found, x, tmp_path_factory.mktemp("model"))[name]
    expected = reduced(-x, **options)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max() or 1))
    assert not together[3].any()
    for i in range(7):
        alone = run(found, x[i : i + 1], tmp_path_factory.mktemp("model"))[name]
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-6 * float(np.abs(expected).max() or 1))


def test_two_layers_have_seeds_of_their_own_and_the_model_says_so(tmp_path):
    """Layer i is projected with seed + i, and the metadata tell it in the words of the torch export."""
    found = exposed(classifier(), layers=["hidden", "flat"], max_dim=4, seed=7)

    assert [layer.reducer for layer in found.layers] == [
        "gaussian-projection(5->4, seed=7)",
        "gaussian-projection(6->4, seed=8)",
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(found.model)
    network = Network(path, device="cpu")
    assert network.metadata[reducer_key("flat")] == "gaussian-projection(6->4, seed=8)"
    x = rows(5)
    hidden, scores = reference(x)
    outputs = network.run(x)
    for i, (name, activations) in enumerate({"hidden": hidden, "flat": x}.items()):
        expected = reduced(activations, metric="cosine", max_dim=4, seed=7 + i)
        np.testing.assert_allclose(outputs[representation_output(name)], expected, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)


def test_what_a_model_says_of_another_detector_is_dropped():
    """The network of a bundle can be exposed again; its author's metadata stay."""
    proto = classifier()
    for key in (reducer_key("hidden"), "author"):
        proto.metadata_props.add(key=key, value="someone")

    model = onnx.load_from_string(exposed(proto, max_dim=2).model)

    assert [(p.key, p.value) for p in model.metadata_props] == [
        ("author", "someone"),
        (reducer_key("hidden"), "gaussian-projection(5->2, seed=0)"),
    ]


def test_a_node_name_means_its_only_output(tmp_path):
    """The representation is called as the user called it."""
    found = exposed(classifier(), layers=["act"], metric="squared_euclidean")

    assert (found.layers[0].name, found.layers[0].tensor, found.layers[0].width) == ("act", "hidden", WIDTH)
    x = rows(3)
    np.testing.assert_allclose(run(found, x, tmp_path)[representation_output("act")], reference(x)[0], atol=1e-5)


def test_a_tensor_goes_before_a_node_of_the_same_name():
    """Tensor names are unique, node names need not be."""
    proto = classifier()
    proto.graph.node[1].name = "hidden"

    assert exposed(proto).layers[0].tensor == "hidden"


def test_names_of_the_models_own_never_clash_with_the_scorers(tmp_path):
    """Tensors called logits, class_mass, representation.hidden or softkin/...: they stay what they are."""
    names = {"scores": "class_mass", "before": "representation.hidden", "flat": "softkin/Cast_0_0", "hidden": "logits"}
    proto = classifier([SOFTMAX], ["p"])
    for node in proto.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]

    found = exposed(proto, layers=["logits"], metric="squared_euclidean")

    x = rows(4)
    hidden, scores = reference(x)
    outputs = run(found, x, tmp_path)
    np.testing.assert_allclose(outputs[representation_output("logits")], hidden, atol=1e-5)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["logits"], np.log(p), atol=1e-4)
    composed = onnx.load_from_string(found.model)
    g = GraphBuilder()
    g.op("Cast", ["logits"], to=TensorProto.FLOAT)
    extend(composed, g, list(composed.graph.output))
    onnx.checker.check_model(composed)


def test_logits_stay_and_probabilities_become_their_log(tmp_path):
    """Told apart on the data; a probability of 0 becomes the log of the smallest normal float32."""
    sharp = [helper.make_node("Mul", ["scores", "k"], ["s"]), helper.make_node("Softmax", ["s"], ["p"], axis=1)]
    proto = classifier(sharp, ["p"], initializers=[tensor(np.float32(1000), "k")])

    found = exposed(proto)

    assert (found.output, found.output_kind, found.num_classes, found.has_energy) == (
        "p",
        "probabilities",
        CLASSES,
        False,
    )
    x = rows(10)
    logits = run(found, x, tmp_path)["logits"]
    assert logits.min() == np.log(np.finfo(np.float32).tiny)
    assert (logits.argmax(axis=1) == reference(x)[1].argmax(axis=1)).all()
    plain = exposed(classifier())
    assert (plain.output, plain.output_kind, plain.num_classes, plain.has_energy) == ("scores", "logits", CLASSES, True)


def test_whoever_knows_better_names_output_and_kind(tmp_path):
    """Any tensor or node can be the output; probabilities may be taken for logits."""
    proto = classifier([SOFTMAX], ["p", "scores"])

    assert exposed(proto, output="scores").output_kind == "logits"
    assert exposed(proto, output="p", output_kind="logits").output_kind == "logits"
    x = rows(3)
    softmax = exposed(classifier([SOFTMAX], ["p"]))
    assert softmax.before_softmax == "scores"
    renamed = classifier([SOFTMAX, helper.make_node("Identity", ["p"], ["probabilities"])], ["probabilities"])
    assert exposed(renamed).before_softmax == "scores"  # skl2onnx names what it gives out in this way
    before = exposed(classifier([SOFTMAX], ["p"]), output=softmax.before_softmax)
    assert (before.before_softmax, before.has_energy) == ("", True)
    logits = run(before, x, tmp_path)["logits"]
    np.testing.assert_allclose(logits, reference(x)[1], atol=1e-5)


def test_log_probabilities_are_logits_without_energy():
    """Their logsumexp is 0 for every row."""
    found = exposed(classifier([helper.make_node("LogSoftmax", ["scores"], ["lp"], axis=1)], ["lp"]))

    assert (found.output_kind, found.has_energy) == ("logits", False)


def test_the_class_names_single_out_an_output():
    """Of two 2-D float outputs, the one with as many columns."""
    proto = classifier(outputs=("hidden", "scores"))

    assert exposed(proto, num_classes=CLASSES).output == "scores"


@pytest.mark.parametrize("labels", [{"classlabels_int64s": range(CLASSES)}, {"classlabels_strings": list("abcd")}])
def test_a_zipmap_is_bypassed(labels):
    """scikit-learn's converters end in one: a list of dictionaries; the label beside it may be a string."""
    zipmap = helper.make_node("ZipMap", ["p"], ["output_probability"], domain="ai.onnx.ml", **labels)
    key = TensorProto.INT64 if "classlabels_int64s" in labels else TensorProto.STRING
    dictionary = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("output_probability", helper.make_sequence_type_proto(dictionary))
    top = helper.make_node("ArgMax", ["p"], ["top"], axis=1, keepdims=0)
    label = helper.make_node("LabelEncoder", ["top"], ["label"], domain="ai.onnx.ml", keys_int64s=range(4), **{
        "values_int64s": range(4)} if key == TensorProto.INT64 else {"values_strings": list("abcd")})  # fmt: skip
    proto = classifier(
        [SOFTMAX, zipmap, top, label], [value("label", key, ["batch"]), output], domains=[("ai.onnx.ml", 3)]
    )

    found = exposed(proto)

    assert (found.output, found.output_kind) == ("p", "probabilities")
    kept = {n.op_type for n in onnx.load_from_string(found.model).graph.node}
    assert not kept & {"ZipMap", "ArgMax", "LabelEncoder"}


def test_an_old_opset_is_converted_and_old_constants_are_no_inputs(tmp_path):
    """Opset 9, IR 3, where initializers stand among the inputs, before the real one too."""
    proto = classifier(opset=9, ir_version=3)
    proto.graph.input.insert(0, value("w2", TensorProto.FLOAT, [WIDTH, CLASSES]))
    proto.graph.input.append(value("w1", TensorProto.FLOAT, [6, WIDTH]))

    found = exposed(proto, metric="squared_euclidean")

    assert found.changes == (f"conversion from opset 9 to {OLDEST_OPSET}",)
    model = onnx.load_from_string(found.model)
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == ["x"]
    x = rows(6)
    hidden, scores = reference(x)
    outputs = run(found, x, tmp_path)
    np.testing.assert_allclose(outputs[representation_output("hidden")], hidden, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)


def test_a_model_of_another_operator_domain_alone_gets_the_standard_one(tmp_path):
    """Converters of tree ensembles and linear models declare ai.onnx.ml and nothing else."""
    scaler = helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[0.0] * 3, scale=[2.0] * 3)
    linear = helper.make_node(
        "LinearClassifier",
        ["scaled"],
        ["label", "p"],
        domain="ai.onnx.ml",
        coefficients=[1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0],
        intercepts=[0.0] * 3,
        classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    )
    inputs = [value("x", TensorProto.FLOAT, [None, 3])]
    proto = classifier(start=[scaler, linear], outputs=["p"], inputs=inputs, opset=0, domains=[("ai.onnx.ml", 1)])
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)

    found = exposed(proto, x, layers=["scaled"], metric="squared_euclidean")

    assert found.output_kind == "probabilities"
    np.testing.assert_allclose(run(found, x, tmp_path)[representation_output("scaled")], 2 * x, rtol=1e-6)
    onnx.checker.check_model(onnx.load_from_string(found.model))


def test_external_data_are_read_and_carried_along(tmp_path):
    """A bundle's network is one file."""
    (tmp_path / "a").mkdir()
    onnx.save(classifier(), tmp_path / "a" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)

    found = exposed(read_model(tmp_path / "a" / "m.onnx"))

    x = rows(3)
    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "start", "shape"),
    [
        (1, body(), None),
        (4, body(), None),
        (1, body("Reshape"), [1, -1]),
        (4, body("Reshape"), [4, 6]),
        ("batch", body("Reshape"), [1, 6]),
    ],
    ids=["axis of 1", "axis of 4", "and reshape", "and reshape without -1", "free axis, fixed reshape"],
)
def test_a_fixed_batch_is_freed_where_the_graph_allows(tmp_path, batch, start, shape):
    """One row and seven get the values that the model gave before."""
    extra = [tensor(np.array(shape, np.int64), "shape")] if shape else []
    proto = classifier(start=start, batch=batch, initializers=extra)

    found = exposed(proto, metric="squared_euclidean")

    assert found.changes == ((f"freeing the batch axis from {batch}",) if isinstance(batch, int) else ())
    for n in (1, 7):
        x = rows(n, seed=n)
        hidden, scores = reference(x)
        outputs = run(found, x, tmp_path)
        np.testing.assert_allclose(outputs[representation_output("hidden")], hidden, atol=1e-5)
        np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)


def test_a_shape_in_a_constant_node_is_freed_too(tmp_path):
    """As torch's older exporter writes it; the reshape of a weight keeps its 1."""
    start = [
        helper.make_node("Constant", [], ["shape"], value=tensor(np.array([1, 6]), "c")),
        helper.make_node("Reshape", ["w1", "weight_shape"], ["w"]),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Squeeze", ["w", "zero"], ["w_"]),
        helper.make_node("MatMul", ["flat", "w_"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["scores"]),
    ]
    extra = [tensor(np.array([1, 6, WIDTH]), "weight_shape"), tensor(np.array([0]), "zero")]
    proto = classifier(start=start, batch=1, initializers=extra)

    x = rows(7)
    outputs = run(exposed(proto, metric="squared_euclidean"), x, tmp_path)

    expected = x.reshape(7, 6) @ onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_allclose(outputs[representation_output("hidden")], expected, atol=1e-5)


def test_a_layer_may_depend_on_what_a_subgraph_captures(tmp_path):
    """Cutting off what is not needed, and renaming, reach into the branches of an If."""
    nodes = [
        helper.make_node("Add", ["hidden", "hidden"], ["double"]),
        helper.make_node("Constant", [], ["yes"], value=tensor(np.array(True), "c")),
        helper.make_node(
            "If",
            ["yes"],
            ["chosen"],
            then_branch=helper.make_graph(
                [helper.make_node("Neg", ["double"], ["a"])], "then", [], [value("a", TensorProto.FLOAT, None)]
            ),
            else_branch=helper.make_graph(
                [helper.make_node("Identity", ["flat"], ["b"])], "else", [], [value("b", TensorProto.FLOAT, None)]
            ),
        ),
    ]

    x = rows(4)
    found = exposed(classifier(nodes), layers=["chosen"], metric="squared_euclidean")

    np.testing.assert_allclose(
        run(found, x, tmp_path)[representation_output("chosen")], -2 * reference(x)[0], atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_vectors_are_a_network_of_their_own(tmp_path, dtype):
    """Normalised and reduced like a layer; no logits."""
    x = (10 * np.random.default_rng(0).normal(size=(7, 12))).astype(dtype)

    found = embedding_network(x, metric="cosine", max_dim=8, seed=3)

    outputs = run(found, x, tmp_path)
    assert list(outputs) == [representation_output(EMBEDDING)]
    expected = reduced(x, metric="cosine", max_dim=8, seed=3)
    np.testing.assert_allclose(outputs[representation_output(EMBEDDING)], expected, atol=1e-5)
    assert found.layers[0].reducer == "gaussian-projection(12->8, seed=3)"
    onnx.checker.check_model(onnx.load_from_string(found.model))


def test_shapes_of_a_model_are_those_of_its_input_rows():
    """The row axes of the input stay as they were, the batch axis is free."""
    model = onnx.load_from_string(exposed(classifier(batch=2)).model)

    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in axes] == ["batch", *SHAPE]
