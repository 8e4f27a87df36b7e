"""Classifiers whose graphs have more in them than nodes in a row: branches, functions, shapes that are written down."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import WIDTH, body, classifier, reference, rows, tensor, weights
from softkin.errors import InvalidInputError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.expose import Exposed, expose
from softkin_training.onnx_graphs import rename

node, value = helper.make_node, helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


def exposed(proto, x, **options) -> Exposed:
    """`expose` with the hidden layer of `classifier` where nothing else is said."""
    defaults = {"layers": ["hidden"], "metric": "squared_euclidean", "max_dim": 256, "seed": 0}
    return expose(proto, x, **(defaults | options))


def representation(found: Exposed, layer, x, tmp_path):
    """Of a layer on some rows."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)[representation_output(layer)]


def branch(*nodes, output):
    """A branch of an If."""
    return helper.make_graph(list(nodes), output, [], [value(output, FLOAT, None)])


def test_a_tensor_deep_inside_is_refused_by_what_holds_it_in_the_main_graph_or_the_function():
    """However many branches lie between."""
    inner = node("If", ["yes"], ["chosen"], then_branch=branch(node("Neg", ["hidden"], ["deep"]), output="deep"),
                 else_branch=branch(node("Neg", ["hidden"], ["low"]), output="low"))  # fmt: skip
    outer = node("If", ["yes"], ["top"], name="gate", then_branch=branch(inner, output="chosen"),
                 else_branch=branch(node("Neg", ["hidden"], ["other"]), output="other"))  # fmt: skip
    far = node("If", ["b"], ["c"], then_branch=branch(node("Neg", ["a"], ["far"]), output="far"),
               else_branch=branch(node("Neg", ["a"], ["near"]), output="near"))  # fmt: skip
    function = helper.make_function("my", "Choose", ["a", "b"], ["c"], [far], [helper.make_opsetid("", 21)])
    proto = classifier(
        [outer, node("Choose", ["hidden", "yes"], ["d"], domain="my")],
        initializers=[tensor(np.array(True), "yes")],
        domains=[("my", 1)],
        functions=[function],
    )

    for name, owner in {"deep": r"node 'gate' \(If\)", "far": "function 'Choose'"}.items():
        with pytest.raises(InvalidInputError, match=f"layers: '{name}' lies inside {owner}; only tensors"):
            exposed(proto, rows(9), layers=[name])


def test_an_output_that_a_node_leaves_out_is_no_output(tmp_path):
    """A node with one that is there, and one of no name, is called by its own; nor is an input that is left out one."""
    start = body()
    start[2:3] = [
        node("Clip", ["before", "", "top"], ["low"]),
        node("Relu", ["low"], ["hidden"]),
        node("MaxPool", ["deep"], ["pooled", ""], name="pool", kernel_shape=[1]),
    ]
    start.insert(4, node("Unsqueeze", ["hidden", "axis"], ["deep"]))
    x = rows(5)

    found = exposed(
        classifier(start=start, initializers=[tensor(np.array([1]), "axis"), tensor(np.float32(1), "top")]),
        x,
        layers=["pool"],
    )

    assert found.layers[0].tensor == "pooled"
    expected = np.minimum(reference(x)[0], 1)
    np.testing.assert_allclose(representation(found, "pool", x, tmp_path), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["w1", "logits", "representation.hidden"])
def test_weights_that_are_mostly_zero_may_be_stored_as_such(tmp_path, name):
    """Old models list them among the inputs, as they do other constants; they may be called as a tensor of ours is."""
    w = np.zeros((6, WIDTH), np.float32)
    w[[0, 4], [1, 3]] = 2.0, -1.0
    proto = classifier()
    del proto.graph.initializer[0]
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w1", FLOAT, [2], w[w != 0]),
        helper.make_tensor("at", TensorProto.INT64, [2], np.flatnonzero(w)),
        [6, WIDTH],
    )
    proto.graph.sparse_initializer.append(sparse)
    proto.graph.input.append(value("w1", FLOAT, [6, WIDTH]))
    rename(proto.graph, {"w1": name})
    x = rows(5)

    found = exposed(proto, x)

    expected = np.maximum(x.reshape(5, 6) @ w, 0)
    np.testing.assert_allclose(representation(found, "hidden", x, tmp_path), expected, atol=1e-5)


def test_a_reshape_of_rows_is_freed_wherever_it_stands_and_one_of_weights_is_not(tmp_path):
    """Both have the batch size of 1 first; of weights it says that there is one row of them."""
    start = [
        node("Neg", ["x"], ["negated"]),
        node("Reshape", ["negated", "row_shape"], ["flat"]),
        node("Neg", ["w1"], ["negated_weights"]),
        node("Reshape", ["negated_weights", "weight_shape"], ["all_weights"]),
        node("ReduceMean", ["all_weights", "axis"], ["mean"], keepdims=1),
        node("MatMul", ["flat", "w1"], ["before"]),
        node("Add", ["before", "mean"], ["hidden"]),
        node("MatMul", ["hidden", "w2"], ["scores"]),
    ]
    shapes = {"row_shape": [1, 6], "weight_shape": [1, -1], "axis": [1]}
    proto = classifier(start=start, batch=1, initializers=[tensor(np.array(v), k) for k, v in shapes.items()])
    x = rows(7)

    found = exposed(proto, x)

    w = weights()["w1"]
    np.testing.assert_allclose(
        representation(found, "hidden", x, tmp_path), -x.reshape(7, 6) @ w - w.mean(), rtol=1e-4, atol=1e-5
    )


def test_shapes_written_down_inside_a_branch_are_forgotten_too(tmp_path):
    """They are those of the old batch size, and onnxruntime computes with them."""
    longer = branch(
        node("Neg", ["hidden"], ["negated"]),
        node("Shape", ["negated"], ["shape"]),
        node("Slice", ["shape", "zero", "one"], ["length"]),
        node("Concat", ["length", "one"], ["token_shape"], axis=0),
        node("ConstantOfShape", ["token_shape"], ["token"]),
        node("Concat", ["negated", "token"], ["longer"], axis=1),
        output="longer",
    )
    longer.value_info.append(value("negated", FLOAT, [1, WIDTH]))
    other = branch(node("Concat", ["hidden", "hidden"], ["twice"], axis=1), output="twice")
    chosen = node("If", ["yes"], ["chosen"], then_branch=longer, else_branch=other)
    constants = {"yes": np.array(True), "zero": np.array([0]), "one": np.array([1])}
    proto = classifier([chosen], batch=1, initializers=[tensor(v, k) for k, v in constants.items()])
    x = rows(7)

    found = exposed(proto, x, layers=["chosen"])

    expected = np.pad(-reference(x)[0], ((0, 0), (0, 1)))
    np.testing.assert_allclose(representation(found, "chosen", x, tmp_path), expected, atol=1e-5)


def test_who_knows_no_name_is_shown_those_before_the_output():
    """In their order, without what the model holds as constants."""
    chain = [node("Neg", [f"t{i}" if i else "hidden"], [f"t{i + 1}"]) for i in range(60)]
    chain.append(node("Constant", [], ["one"], value_float=1.0))

    with pytest.raises(InvalidInputError) as e:
        exposed(classifier(chain), rows(9), layers=["?"])
    assert re.findall(r"'([^']*)'", str(e.value))[1:] == [f"t{i}" for i in range(41, 61)]
