"""What `softkin_training.expose` refuses, in full sentences. Needs no torch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import CLASSES, SHAPE, WIDTH, body, classifier, rows, tensor
from softkin import InvalidInputError
from softkin_training import representation_graph
from softkin_training.expose import expose

value, node = helper.make_tensor_value_info, helper.make_node
FLOAT = TensorProto.FLOAT
SOFTMAX = node("Softmax", ["scores"], ["p"], axis=1)
REMEDY = (
    "; export it again in evaluation mode, with opset 18 or newer and a free batch axis (torch.onnx.export: "
    "model.eval() and dynamic_shapes; tf2onnx and skl2onnx: None as the first axis)"
)


def inputs(*names, elem_type=FLOAT, axes=("batch", *SHAPE)):
    """Inputs of a model."""
    return [value(n, elem_type, axes) for n in names]


def branching():
    """A classifier with an If and a function, each with a tensor inside."""
    inner = helper.make_graph(
        [node("Neg", ["hidden"], ["secret"], name="n")], "then", [], [value("secret", FLOAT, None)]
    )
    other = helper.make_graph([node("Neg", ["hidden"], ["other"])], "else", [], [value("other", FLOAT, None)])
    function = helper.make_function(
        "my", "Twice", ["a"], ["c"], [node("Add", ["a", "a"], ["b"]), node("Identity", ["b"], ["c"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        node("If", ["yes"], ["chosen"], name="gate", then_branch=inner, else_branch=other),
        node("Twice", ["hidden"], ["twice"], domain="my"),
    ]
    return classifier(nodes, initializers=[tensor(np.array(True), "yes")], domains=[("my", 1)], functions=[function])


def with_op(op_type, attributes=None, more=(), extra=(), **options):
    """A classifier whose hidden layer goes through one more operator."""
    start = body()
    start[2].output[0] = "raw"
    start.insert(3, node(op_type, ["raw", *more], ["hidden"], **(attributes or {})))
    return classifier(start=start, initializers=extra, **options)


def dropping():
    """A classifier while it trains: of a row's hidden numbers, none of them 0, two runs hardly ever drop the same."""
    start = body()
    start[2] = node("Dropout", ["before", "r", "t"], ["hidden"])
    return classifier(start=start, initializers=[tensor(0.5, "r"), tensor(np.array(True), "t")])


def probabilities():
    """A classifier with both kinds of output."""
    return classifier([SOFTMAX], ["p", "scores"])


NOT_A_LAYER = {
    "unknown": (
        classifier(),
        "hiden",
        "layers: got 'hiden', which is no tensor or node of the model; it has 5 names, the closest are 'hidden', "
        "'scores', 'before', 'flat', 'act'",
    ),
    "no name": (  # which was taken for that of every node without one
        classifier(),
        ("hidden", ""),
        "layers: got '', which is no name; leave out the comma too many, or name a tensor or node: the last of the "
        "model are 'flat', 'before', 'hidden', 'scores'",
    ),
    "several outputs": (
        classifier([node("Split", ["hidden"], ["s1", "s2"], name="cut", axis=1, num_outputs=2)]),
        "cut",
        "layers: node 'cut' has 2 outputs, 's1', 's2'; name one of them",
    ),
    "inside a branch": (
        branching(),
        "secret",
        "layers: 'secret' lies inside node 'gate' (If); only tensors of the main graph can be read, name one of those",
    ),
    "node inside a branch": (
        branching(),
        "n",
        "layers: 'n' lies inside node 'gate' (If); only tensors of the main graph can be read, name one of those",
    ),
    "inside a function": (
        branching(),
        "b",
        "layers: 'b' lies inside function 'Twice'; only tensors of the main graph can be read, name one of those",
    ),
    "twice": (
        classifier(),
        ("hidden", "act"),
        "layers: 'act' is tensor 'hidden', which is among them already; leave it out",
    ),
    "no numbers": (
        classifier([node("Greater", ["hidden", "zero"], ["fires"])], initializers=[tensor(0.0, "zero")]),
        "fires",
        "layers: 'fires' holds bool where numbers are needed; name another tensor or node",
    ),
    "no tensor": (
        classifier([node("SequenceConstruct", ["hidden"], ["list"])]),
        "list",
        "layers: 'list' holds list where numbers are needed; name another tensor or node",
    ),
    "batch not first": (
        classifier([node("Transpose", ["hidden"], ["turned"], perm=[1, 0])]),
        "turned",
        "layers: 'turned' has shape [5, 1] for a batch of 1, which must be its first axis; name another tensor or node",
    ),
    "constant": (
        classifier([node("Neg", ["w1"], ["constant"])]),
        "constant",
        "layers: 'constant' has shape [6, 5] for a batch of 1, which must be its first axis; name another tensor or "
        "node",
    ),
    "batch not first, but for one row": (
        classifier([node("Unsqueeze", ["hidden", "axis"], ["time"])], initializers=[tensor(np.array([0]), "axis")]),
        "time",
        "layers: 'time' has shape [1, 7, 5] for a batch of 7, which must be its first axis; name another tensor or "
        "node",
    ),
    "not finite": (
        classifier([node("Log", ["hidden"], ["log"])]),
        "log",
        "layers: 'log' has NaN or infinity on 19 of 20 rows tried; name another tensor",
    ),
}


@pytest.mark.parametrize(("proto", "layers", "message"), NOT_A_LAYER.values(), ids=NOT_A_LAYER)
def test_what_can_be_no_layer_is_refused(proto, layers, message):
    """With what there is instead."""
    refused(proto, message, layers=[layers] if isinstance(layers, str) else layers)


def test_at_most_twenty_names_are_listed():
    """Closest first: a model has thousands."""
    chain = [node("Neg", [f"t{i}" if i else "hidden"], [f"t{i + 1}"]) for i in range(60)]

    with pytest.raises(InvalidInputError) as e:
        expose(classifier(chain), rows(9), layers=["t600"], metric="cosine", max_dim=4, seed=0)
    listed = re.findall(r"'([^']*)'", str(e.value))[1:]
    assert len(listed) == 20
    assert listed[0] == "t60"
    assert "it has 65 names" in str(e.value)


UNFIT_MODELS = {
    "several inputs": (
        classifier([node("Add", ["x", "y"], ["z"])], inputs=inputs("x", "y")),
        "onnx: the model has 2 inputs, ['x', 'y']; a detector takes one array: fix the others as constants of the "
        "model, have it compute them (a mask of padding from the ids), or give the vectors that it makes to fit "
        "--embeddings",
    ),
    "an input a column": (
        classifier(
            [node("Add", ["y", "y"], ["z"])], inputs=[*inputs("x", axes=[None, 1]), *inputs("y", axes=[None, 1])]
        ),
        "onnx: the model has 2 inputs, ['x', 'y']; a detector takes one array: convert the pipeline with one input of "
        "all columns, categories as numbers",
    ),
    "no input": (
        classifier(start=[node("Neg", ["w1"], ["hidden"])], outputs=["hidden"], inputs=inputs("w1", axes=[6, WIDTH])),
        "onnx: the model has no input; a detector takes one array: export it with its rows free",
    ),
    "narrow input": (
        classifier(inputs=inputs("x", elem_type=TensorProto.INT8)),
        "onnx: input 'x' is int8; a detector takes one of uint8, int32, int64, float32, float64: export "
        "the model with such an input",
    ),
    "list input": (
        classifier(inputs=[helper.make_tensor_sequence_value_info("x", FLOAT, None)]),
        "onnx: input 'x' is no tensor; a detector takes one of uint8, int32, int64, float32, float64: "
        "export the model with such an input",
    ),
    "dtype": (
        classifier(inputs=inputs("x", elem_type=TensorProto.UINT8)),
        "data: x_train is float32 [rows, 2, 3], input 'x' of the model takes uint8 [rows, 2, 3]; store the rows as the "
        "model takes them, scaled as it was trained",
    ),
    "shape": (
        classifier(inputs=inputs("x", axes=["batch", None, 4])),
        "data: x_train is float32 [rows, 2, 3], input 'x' of the model takes float32 [rows, any, 4]; store the rows as "
        "the model takes them, scaled as it was trained",
    ),
    "axes": (
        classifier(inputs=inputs("x", axes=["batch", 6])),
        "data: x_train is float32 [rows, 2, 3], input 'x' of the model takes float32 [rows, 6]; store the rows as the "
        "model takes them, scaled as it was trained",
    ),
    "random numbers": (
        with_op("RandomNormalLike"),
        r"onnx: run twice on the same rows, the model gives two answers: '(hidden|scores)' differs by "
        r"\d\.\de[+-]\d\d of its largest value; it draws random numbers, as dropout does while training: export it in "
        r"evaluation mode",
    ),
    "dropout while training": (
        dropping(),
        r"onnx: run twice on the same rows, the model gives two answers: '(hidden|scores)' differs by "
        r"\d\.\de[+-]\d\d of its largest value; it draws random numbers, as dropout does while training: export it in "
        r"evaluation mode",
    ),
}


@pytest.mark.parametrize(("proto", "message"), UNFIT_MODELS.values(), ids=UNFIT_MODELS)
def test_an_unfit_model_is_refused(proto, message):
    """With the input or the operator that is at fault, and the remedy."""
    refused(proto, message)


def test_random_numbers_that_the_first_row_hides_are_refused():
    """Dropout of zeros is zeros: one row shows nothing."""
    x = rows(20)
    x[0] = 0

    with pytest.raises(InvalidInputError, match="run twice on the same rows, the model gives two answers"):
        expose(dropping(), x, layers=["hidden"], metric="cosine", max_dim=4, seed=0)


def test_rows_that_influence_each_other_are_refused():
    """A score that depended on its batch mates would have no false-alarm rate: batch statistics are the usual case."""
    start = body()
    start.insert(3, node("ReduceMean", ["hidden", "axis"], ["mean"], keepdims=1))
    start.insert(4, node("Sub", ["hidden", "mean"], ["centred"]))
    proto = classifier(start=start, initializers=[tensor(np.array([0]), "axis")])

    refused(
        proto,
        r"onnx: the model cannot take batches of any size: alone and in a batch of 7, 'centred' differs by "
        r"\d\.\de[+-]\d\d of its largest value: rows influence each other, as in batch normalisation while training or "
        r"in dynamic quantisation" + re.escape(REMEDY),
        layers=["centred"],
    )


def test_a_batch_that_cannot_be_freed_is_refused():
    """A constant with a row for each input row, as class tokens of transformers are exported."""
    start = body()
    start.insert(3, node("Concat", ["hidden", "token"], ["longer"], axis=1))
    proto = classifier(start=start, batch=2, initializers=[tensor(np.ones((2, 1)), "token")])

    refused(
        proto,
        r"onnx: after freeing the batch axis from 2 the model cannot take batches of any size: onnxruntime fails on a "
        r"batch of 7 \(.*\)" + re.escape(REMEDY),
        layers=["longer"],
    )


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            "lengths",
            r"onnx: the model is of opset 8, the scorer needs 18 or newer, and onnx cannot convert it \(.*scan_8_9.*\)",
        ),
        (
            "",
            r"onnx: after conversion from opset 8 to 18 and freeing the batch axis from 1 the model cannot take "
            r"batches of any size: onnxruntime cannot load it \(.*\)",
        ),
    ],
    ids=["no converter", "the conversion fails"],
)
def test_operators_too_old_to_convert_are_refused(lengths, message):
    """Scan took batches up to opset 8; with lengths onnx has no converter for it, without them a wrong one."""
    loop = helper.make_graph(
        [node("Identity", ["i"], ["o"])], "body", [value("i", FLOAT, [3])], [value("o", FLOAT, [3])]
    )
    start = [node("Scan", [lengths, "x"], ["scanned"], body=loop, num_scan_inputs=1), *body()]
    start[1].input[0] = "scanned"
    extra = [tensor(np.array([2]), "lengths")]
    proto = classifier(start=start, batch=1, initializers=extra, opset=8, ir_version=4)

    refused(proto, message + re.escape(REMEDY))


def test_a_layer_that_is_the_same_for_every_row_is_refused():
    """As far from the origin as it is, the origin would be moved there, and it would be called zero."""
    proto = classifier([node("Mul", ["hidden", "zero"], ["none"]), node("Add", ["none", "one"], ["same"])])
    proto.graph.initializer.extend([tensor(np.float32(0), "zero"), tensor(np.float32(1), "one")])

    message = "layers: 'same' is the same for all 20 rows tried, so it cannot tell rows apart; name another tensor"
    refused(proto, message, layers=["hidden", "same"])


UNFIT_OUTPUTS = {
    "none fits": (
        classifier(),
        {"num_classes": 7},
        "output: no output is 2-D float with 7 columns, one for each class name; the float outputs are 'scores' "
        "float32 [rows, 4]: name the tensor or node to take by --output (a scikit-learn model converted with "
        "zipmap='columns': convert it with zipmap=False); the last tensors of the model are 'flat', 'before', "
        "'hidden', 'scores'",
    ),
    "no float output": (
        classifier([node("ArgMax", ["scores"], ["top"], axis=1)], [value("top", TensorProto.INT64, ["batch", 1])]),
        {},
        "output: no output is 2-D float with a column for each class; the float outputs are none: name the tensor or "
        "node to take by --output (a scikit-learn model converted with zipmap='columns': convert it with "
        "zipmap=False); the last tensors of the model are 'flat', 'before', 'hidden', 'scores', 'top'",
    ),
    "no float output, and the input for a layer": (
        classifier([node("ArgMax", ["scores"], ["top"], axis=1)], [value("top", TensorProto.INT64, ["batch", 1])]),
        {"layers": ["x"]},
        r"output: no output is .*; the last tensors of the model are 'flat', 'before', 'hidden', 'scores', 'top'",
    ),
    "unknown output, and the input for a layer": (
        classifier(),
        {"layers": ["x"], "output": "score"},
        "output: got 'score', which is no tensor or node of the model; it has 5 names, the closest are 'scores', "
        "'before', 'act', 'hidden', 'flat'",
    ),
    "several fit": (
        probabilities(),
        {},
        "output: 2 outputs are 2-D float with a column for each class; the float outputs are 'p' float32 [rows, 4]; "
        "'scores' float32 [rows, 4]: name the tensor or node to take by --output (a scikit-learn model converted with "
        "zipmap='columns': convert it with zipmap=False)",
    ),
    "named, unfit": (
        probabilities(),
        {"output": "hidden", "num_classes": CLASSES},
        "output: 'hidden' float32 [rows, 5] is not 2-D float with 4 columns, one for each class name; name another "
        "tensor or node",
    ),
    "named, unknown": (
        classifier(),
        {"output": "score"},
        "output: got 'score', which is no tensor or node of the model; it has 5 names, the closest are 'scores', "
        "'before', 'act', 'hidden', 'flat'",
    ),
    "unknown kind": (
        classifier(),
        {"output_kind": "odds"},
        "output_kind: got 'odds'; must be one of ('auto', 'logits', 'probabilities')",
    ),
    "no probabilities": (
        classifier([node("Sigmoid", ["scores"], ["s"])], ["s"]),
        {"output_kind": "probabilities"},
        r"output_kind: 's' holds no probabilities: a row has 0\.\d+ to 0?\.?\d+ and sums to \d\.\d+, where each must "
        r"lie in \[0, 1\] and sum to 1; choose logits",
    ),
    "not finite": (
        classifier([node("Log", ["hidden"], ["log"])], [value("log", FLOAT, ["batch", None])]),
        {},
        "output: 'log' has NaN or infinity on 19 of 20 rows tried; name another tensor",
    ),
}


@pytest.mark.parametrize(("proto", "options", "message"), UNFIT_OUTPUTS.values(), ids=UNFIT_OUTPUTS)
def test_an_unfit_output_is_refused(proto, options, message):
    """With the shapes that there are."""
    refused(proto, message, **options)


def test_a_model_beyond_a_protobuf_is_refused(monkeypatch):
    """2 GiB: with a limit that a small model exceeds."""
    monkeypatch.setattr(representation_graph, "LARGEST_MODEL_BYTES", 100)

    refused(
        classifier(),
        r"onnx: the constants of the model take \d\.\d\d GiB, a bundle's network holds at most 0\.00 GiB; convert them "
        r"to float16, take a smaller model, or give the vectors that it makes to fit --embeddings",
    )


def refused(proto, message, **options):
    """The whole message, as plain text or as a pattern."""
    defaults = {"layers": ["hidden"], "metric": "cosine", "max_dim": 256, "seed": 0}
    with pytest.raises(InvalidInputError) as e:
        expose(proto, rows(20), **(defaults | options))
    assert str(e.value) == message or re.fullmatch(message, str(e.value)), str(e.value)
