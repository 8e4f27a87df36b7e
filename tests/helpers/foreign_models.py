"""Small ONNX classifiers as other tools make them, from `onnx.helper` alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE, WIDTH, CLASSES = (2, 3), 5, 4
"""Of an input row, of the hidden layer, of the output."""


def tensor(value, name):
    """An initializer; float64 becomes float32."""
    array = np.asarray(value)
    return numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)


def weights(seed=0):
    """Arrays of the two layers of `classifier`."""
    rng = np.random.default_rng(seed)
    return {"w1": rng.normal(size=(6, WIDTH)), "w2": rng.normal(size=(WIDTH, CLASSES))}


def body(flatten="Flatten"):
    """x -> flat -> hidden (ReLU; node `act`) -> scores, without an output node."""
    first = [helper.make_node("Flatten", ["x"], ["flat"], axis=1)]
    if flatten == "Reshape":
        first = [helper.make_node("Reshape", ["x", "shape"], ["flat"], allowzero=1)]  # as torch writes it
    return [
        *first,
        helper.make_node("MatMul", ["flat", "w1"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"], name="act"),
        helper.make_node("MatMul", ["hidden", "w2"], ["scores"]),
    ]


def classifier(
    nodes=(),
    outputs=("scores",),
    *,
    start=None,
    inputs=None,
    initializers=(),
    batch="batch",
    opset=21,
    ir_version=10,
    domains=(),
    functions=(),
):
    """The nodes of `body` and more; outputs are names (float, 2-D) or `ValueInfoProto`.

    Args:
        nodes: to append.
        outputs: of the graph.
        start: nodes in the place of `body()`.
        inputs: in the place of float32 `x`, `[batch, *SHAPE]`.
        initializers: beside the weights.
        batch: first axis of the input: a name, or a number that fixes it.
        opset: of the default domain; 0: it is not declared.
        ir_version: of the model.
        domains: (name, version) of other domains.
        functions: of the model.
    """
    values = [
        o if isinstance(o, onnx.ValueInfoProto) else helper.make_tensor_value_info(o, TensorProto.FLOAT, [batch, None])
        for o in outputs
    ]
    graph = helper.make_graph(
        [*(body() if start is None else start), *nodes],
        "foreign",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *SHAPE])],
        values,
        [*(tensor(v, k) for k, v in weights().items()), *initializers],
    )
    opsets = [*([("", opset)] if opset else []), *domains]
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*o) for o in opsets],
        ir_version=ir_version,
        functions=list(functions),
    )


def reference(x):
    """Hidden layer and scores of `classifier`, in NumPy."""
    w = weights()
    hidden = np.maximum(x.reshape(len(x), -1).astype(np.float32) @ w["w1"].astype(np.float32), 0)
    return hidden, hidden @ w["w2"].astype(np.float32)


def rows(n, seed=1):
    """`[n, *SHAPE]` random inputs."""
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)
