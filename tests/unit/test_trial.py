"""A model made by another tool, tried on a few rows: what counts as a difference, and what as a number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import SHAPE, WIDTH, body, classifier, rows, tensor
from softkin.errors import InvalidInputError
from softkin_training.expose import expose
from softkin_training.onnx_graphs import computes_in_half
from softkin_training.trial import difference_of, first_line

node, value = helper.make_node, helper.make_tensor_value_info
FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def exposed(proto, x=None, **options):
    """`expose` with the hidden layer of `classifier` where nothing else is said."""
    defaults = {"layers": ["hidden"], "metric": "squared_euclidean", "max_dim": 256, "seed": 0}
    return expose(proto, rows(20) if x is None else x, **(defaults | options))


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        ([1000.0, 1.0], [1000.0, 1.05], ""),
        ([1000.0, 1.0], [1000.0, 1.2], "'a' differs by 2.0e-04 of its largest value"),
        ([1e-9, 1e-9], [1e-9, 2e-9], "'a' differs by 5.0e-01 of its largest value"),
        ([np.nan, np.inf, -np.inf, 1.0], [np.nan, np.inf, -np.inf, 1.0], ""),
        ([np.inf, 1.0], [np.inf, 2.0], "'a' differs by 5.0e-01 of its largest value"),
        ([np.nan, 1.0], [1.0, 1.0], "'a' differs by nan of its largest value"),
        ([1.0, 1.0], [1.0], "'a' has shapes [2] and [1]"),
        ([[1.0]], [1.0], "'a' has shapes [1, 1] and [1]"),
        ([], [], ""),
    ],
)
def test_two_runs_differ_where_a_value_is_off_by_more_than_a_share_of_the_largest(found, expected, message):
    """Infinite values and NaN are equal to themselves, and hide no difference beside them."""
    a, b = ({"a": np.array(x)} for x in (found, expected))

    assert difference_of(a, b, 1e-4) == message


def test_the_tensor_that_differs_is_told_whichever_it_is():
    """The first of them."""
    expected = {name: np.ones(2) for name in "abc"}

    assert difference_of({**expected, "b": 3 * np.ones(2), "c": np.zeros(2)}, expected, 1e-4).startswith("'b' differs")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no such thing : x. \nmore"), "no such thing : x"),
        (ValueError("plain."), "plain"),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Node 'a': /onnxruntime_src/core/a_b.h:91 void ort::F::F(const int&, "
                "std::function<void(int)>) const size (7) was odd."
            ),
            "Node 'a': size (7) was odd",
        ),
        (RuntimeError("/onnxruntime_src/core/a_b.h:91 size was odd"), "size was odd"),
        (EOFError(), "EOFError"),
        (FileNotFoundError(2, "No such file or directory", "x.onnx"), "No such file or directory"),
        (OSError("short read"), "short read"),
    ],
)
def test_of_an_error_the_first_line_is_told(error, line):
    """Without the numbers before it, or the place in the source code; an error without a word by its kind."""
    assert first_line(error) == line


def branch(*nodes):
    """An If whose branches have these nodes."""
    graphs = [
        helper.make_graph([*nodes, node("Identity", ["hidden"], [f"{name}_out"])], name, [],
                          [value(f"{name}_out", FLOAT, None)])
        for name in ("then", "else")
    ]  # fmt: skip
    constant = node("Constant", [], ["yes"], value=tensor(np.array(True), "c"))
    return [constant, node("If", ["yes"], ["chosen"], then_branch=graphs[0], else_branch=graphs[1])]


IN_HALF = {
    "a constant": classifier(initializers=[tensor(np.zeros(2, np.float16), "h")]),
    "a constant node": classifier([node("Constant", [], ["h"], value=tensor(np.zeros(2, np.float16), "c"))]),
    "a cast": classifier([node("Cast", ["scores"], ["h"], to=HALF)]),
    "a cast in a branch": classifier(branch(node("Cast", ["scores"], ["h"], to=TensorProto.BFLOAT16))),
    "the input": classifier(inputs=[value("x", HALF, ["batch", *SHAPE])]),
}


@pytest.mark.parametrize("proto", IN_HALF.values(), ids=IN_HALF)
def test_half_floats_are_found_wherever_a_model_has_them(proto):
    """Whatever it takes and gives out, its rounding is theirs."""
    assert computes_in_half(proto)


def test_a_model_in_single_precision_has_no_half_floats():
    """Casts to other types and branches are none."""
    assert not computes_in_half(classifier([node("Cast", ["scores"], ["d"], to=DOUBLE), *branch()]))


@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_rows_will_do(count):
    """They are tried over again."""
    assert exposed(classifier(), rows(count)).num_classes == 4


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.UINT8, TensorProto.INT64, HALF, DOUBLE])
def test_a_layer_may_hold_numbers_of_any_kind(kind):
    """Counts and quantised activations among them."""
    proto = classifier([node("Abs", ["hidden"], ["a"]), node("Cast", ["a"], ["layer"], to=kind)])

    assert exposed(proto, layers=["layer"]).layers[0].width == WIDTH


def test_the_output_may_be_a_layer_too():
    """One tensor for both."""
    found = exposed(classifier(), layers=["scores"])

    assert (found.layers[0].tensor, found.output) == ("scores", "scores")


def test_one_number_for_a_whole_batch_is_no_layer():
    """It has no axis that could be that of the rows."""
    proto = classifier([node("ReduceSum", ["hidden"], ["total"], keepdims=0)])

    with pytest.raises(InvalidInputError, match=r"layers: 'total' has shape \[\] for a batch of 1, which must be"):
        exposed(proto, layers=["total"])


def test_each_layer_must_hold_numbers():
    """Whatever stands before it."""
    fires = [node("Greater", ["hidden", "zero"], ["fires"])]

    with pytest.raises(InvalidInputError, match="layers: 'fires' holds bool where numbers are needed"):
        exposed(classifier(fires, initializers=[tensor(0.0, "zero")]), layers=["hidden", "fires"])


def test_an_output_that_a_batch_has_but_once_is_refused_as_the_output():
    """For one row it looks like any other."""
    mean = node("ReduceMean", ["scores", "axis"], ["mean"], keepdims=1)
    proto = classifier([mean], ["mean"], initializers=[tensor(np.array([0]), "axis")])

    with pytest.raises(InvalidInputError, match=r"^output: 'mean' has shape \[1, 4\] for a batch of 7, which must be"):
        exposed(proto)


def test_numbers_that_float32_cannot_hold_are_not_finite():
    """A layer in float64 may have them."""
    big = helper.make_tensor("big", DOUBLE, [1], [1e200])
    nodes = [node("Cast", ["before"], ["wide"], to=DOUBLE), node("Mul", ["wide", "big"], ["layer"])]

    with pytest.raises(InvalidInputError, match="layers: 'layer' has NaN or infinity on 20 of 20 rows tried"):
        exposed(classifier(nodes, initializers=[big]), layers=["layer"])


def test_a_model_of_float64_takes_rows_of_float64():
    """As its input says."""
    start = [node("Cast", ["wide"], ["x"], to=FLOAT), *body()]
    proto = classifier(start=start, inputs=[value("wide", DOUBLE, ["batch", *SHAPE])])

    assert exposed(proto, rows(20).astype(np.float64)).layers[0].width == WIDTH
    with pytest.raises(InvalidInputError, match=r"x_train is float32 \[rows, 2, 3\], input 'wide' .* takes float64"):
        exposed(proto)


@pytest.mark.parametrize("axes", [["batch", 2], ["batch", 5, 3], ["batch", 2, 3, 1]], ids=str)
def test_rows_of_another_shape_are_refused_whichever_axis_differs(axes):
    """The first of a row, the last, or the number of them."""
    with pytest.raises(InvalidInputError, match=r"^data: x_train is float32 \[rows, 2, 3\], input 'x' of the model"):
        exposed(classifier(inputs=[value("x", FLOAT, axes)]))


def test_the_oldest_opset_that_the_scorer_takes_is_not_converted():
    """Nothing is changed that need not be; nor is anything carried along that nothing needs."""
    found = exposed(classifier(opset=18, initializers=[tensor(np.zeros(9), "unused")]), max_dim=3)

    assert found.changes == ()
    model = onnx.load_from_string(found.model)
    assert {t.name for t in model.graph.initializer if t.name.startswith("model/")} == {"model/w1", "model/w2"}
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes == {"logits": ["batch", 4], "representation.hidden": ["batch", 3]}


def test_the_cast_to_float16_comes_before_what_reads_it():
    """Nodes of a graph stand in the order of their use, or ONNX's checker refuses it."""
    start = [node("Cast", ["x"], ["wide"], to=FLOAT), *body()]
    start[1].input[0] = "wide"
    found = exposed(classifier(start=start, inputs=[value("x", HALF, ["batch", *SHAPE])]))

    onnx.checker.check_model(onnx.load_from_string(found.model))
