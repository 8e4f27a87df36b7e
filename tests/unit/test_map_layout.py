"""Channels first or last: what the graph around a tensor says of it. Needs no torch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import classifier, tensor
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.expose import expose
from softkin_training.map_layout import layout_of

node = helper.make_node
CHANNELS, HEIGHT, WIDTH = 5, 4, 6


def model(start, shape=(CHANNELS, HEIGHT, WIDTH), end="maps"):
    """Nodes from the input to maps, and a classifier of the sum of those."""
    rng = np.random.default_rng(0)
    nodes = [
        *start,
        node("Identity", [end], ["end"]),
        node("ReduceMean", ["end"], ["mean"], keepdims=1),
        node("Flatten", ["x"], ["flat"], axis=1),
        node("MatMul", ["flat", "signs"], ["scores"]),
    ]
    initializers = [
        tensor(rng.normal(size=(CHANNELS, CHANNELS, 1, 1)).astype(np.float32), "kernel"),
        tensor(rng.normal(size=(CHANNELS, CHANNELS)).astype(np.float32), "mix"),
        tensor(np.ones(CHANNELS, np.float32), "ones"),
        tensor(np.array(2.0, np.float32), "two"),
        tensor(rng.normal(size=(int(np.prod(shape)), 2)).astype(np.float32), "signs"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])]
    return classifier(start=nodes, inputs=inputs, initializers=initializers)


CONV = node("Conv", ["x", "kernel"], ["c"])
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
GRAPHS = {
    "a convolution": ([node("Conv", ["x", "kernel"], ["maps"])], "first"),
    "after it": ([CONV, node("Relu", ["c"], ["r"]), node("Mul", ["r", "two"], ["maps"])], "first"),
    "transposed": ([CONV, node("Transpose", ["c"], ["maps"], perm=TO_LAST)], "last"),
    "transposed, then more": (
        [
            CONV,
            node("Transpose", ["c"], ["t"], perm=TO_LAST),
            node("LayerNormalization", ["t", "ones"], ["n"]),
            node("MatMul", ["n", "mix"], ["m"]),
            node("Mul", ["m", "two"], ["maps"]),
        ],
        "last",
    ),
    "and back": (
        [
            CONV,
            node("Transpose", ["c"], ["t"], perm=TO_LAST),
            node("Transpose", ["t"], ["back"], perm=TO_FIRST),
            node("Add", ["back", "c"], ["maps"]),
        ],
        "first",
    ),
    "another transposition": ([CONV, node("Transpose", ["c"], ["maps"], perm=[0, 1, 3, 2])], None),
    "transposed in one direction twice": (
        [CONV, node("Transpose", ["c"], ["t"], perm=TO_LAST), node("Transpose", ["t"], ["maps"], perm=TO_LAST)],
        None,
    ),
    "transposed against a convolution": (
        [
            node("Neg", ["x"], ["maps"]),
            node("Transpose", ["maps"], ["t"], perm=TO_LAST),
            node("Conv", ["t", "kernel"], ["c"]),
        ],
        None,
    ),
    "transposed without a convolution": ([node("Transpose", ["x"], ["maps"], perm=TO_LAST)], None),
    "no convolution": ([node("Neg", ["x"], ["maps"])], None),
    "matmul of what has channels first": ([CONV, node("MatMul", ["c", "by_width"], ["maps"])], None),
    "a constant of both": (
        [
            CONV,
            node("Mul", ["c", "two"], ["d"]),
            node("Reshape", ["x", "shape"], ["other"]),
            node("Mul", ["other", "two"], ["maps"]),
        ],
        None,
    ),
}


@pytest.mark.parametrize(("start", "layout"), GRAPHS.values(), ids=GRAPHS)
def test_the_graph_tells_where_channels_are(start, layout):
    """Where nothing does, it says so; a constant that maps of both kinds take tells nothing of either."""
    assert layout_of(model(start), "maps") == layout


def test_a_convolution_in_a_function_of_the_model_tells_it_too():
    """As torch's exporter and onnxscript write modules."""
    proto = model([node("Block", ["x", "kernel"], ["maps"], domain="my")])
    inside = [node("Conv", ["a", "k"], ["c"]), node("Transpose", ["c"], ["t"], perm=TO_LAST)]
    opset = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("my", "Block", ["a", "k"], ["t"], inside, opset))
    proto.opset_import.append(helper.make_opsetid("my", 1))

    assert [layout_of(proto, name) for name in ("x", "maps")] == ["first", "last"]


def test_what_is_transposed_for_a_convolution_has_channels_last():
    """And so has the input, as of models that TensorFlow made."""
    start = [
        node("Neg", ["x"], ["maps"]),
        node("Transpose", ["maps"], ["t"], perm=TO_FIRST),
        node("Conv", ["t", "kernel"], ["c"]),
    ]
    proto = model(start, shape=(HEIGHT, WIDTH, CHANNELS))

    assert [layout_of(proto, name) for name in ("x", "maps", "t", "c")] == ["last", "last", "first", "first"]


@pytest.mark.parametrize(("channels", "height", "width"), [(5, 4, 6), (4, 4, 6), (6, 4, 6), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_maps_of_any_shape_are_averaged_over_their_places(tmp_path, channels, height, width, last):
    """Not over channels: by their shape alone those last were taken for rows, unless maps were squares."""
    start = [node("Conv", ["x", "kernel"], ["maps" if not last else "c"])]
    if last:
        start.append(node("Transpose", ["c"], ["maps"], perm=TO_LAST))
    proto = model(start, shape=(channels, height, width))
    kernel = np.random.default_rng(1).normal(size=(channels, channels, 1, 1)).astype(np.float32)
    next(t for t in proto.graph.initializer if t.name == "kernel").CopyFrom(tensor(kernel, "kernel"))
    x = np.random.default_rng(2).normal(size=(9, channels, height, width)).astype(np.float32)

    found = expose(proto, x, layers=["maps"], metric="squared_euclidean", max_dim=256, max_side=1, seed=0)

    (tmp_path / "m.onnx").write_bytes(found.model)
    z = Network(tmp_path / "m.onnx", device="cpu").run(x)[representation_output("maps")]
    side, means = max(height, width), np.einsum("oc,bchw->bo", kernel[:, :, 0, 0], x) / (height * width)
    assert (found.layers[0].dim, found.layers[0].reducer) == (channels, f"average-pool({side}x{side})")
    np.testing.assert_allclose(z, means, rtol=1e-4, atol=1e-5)
