"""Classifiers in forms that other tools give them: one column for two classes, half floats, functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import CLASSES, SHAPE, WIDTH, body, classifier, reference, rows, tensor, weights
from softkin.errors import InvalidInputError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training import representation_graph
from softkin_training.expose import Exposed, embedding_network, expose
from softkin_training.network_head import find_head

node, value = helper.make_node, helper.make_tensor_value_info
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def exposed(proto, x, **options) -> Exposed:
    """`expose` with the hidden layer of `classifier` where nothing else is said."""
    return expose(proto, x, **({"layers": ["hidden"], "metric": "cosine", "max_dim": 256, "seed": 0} | options))


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def one_column(*, sigmoid, flat):
    """A classifier of two classes with one number for both, and that number in NumPy."""
    nodes = [node("ReduceMean", ["scores", "axis"], ["z"], keepdims=int(not flat))]
    if sigmoid:
        nodes.append(node("Sigmoid", ["z"], ["p"]))
    output = value("p" if sigmoid else "z", FLOAT, ["batch"] if flat else ["batch", 1])
    return classifier(nodes, [output], initializers=[tensor(np.array([1]), "axis")])


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("num_classes", [None, 2])
def test_one_column_is_the_second_of_two_classes(tmp_path, flat, sigmoid, num_classes):
    """Softmax of the logits gives what sigmoid gives, and the column's sign or half decides."""
    x = rows(20)
    z = reference(x)[1].mean(axis=1).astype(np.float64)

    found = exposed(one_column(sigmoid=sigmoid, flat=flat), x, num_classes=num_classes)

    assert (found.num_classes, found.output_kind) == (2, "probabilities" if sigmoid else "logits")
    assert found.has_energy is not sigmoid
    logits = run(found, x, tmp_path)["logits"].astype(np.float64)
    assert logits.argmax(axis=1).tolist() == (z > 0).astype(int).tolist()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-z)), atol=1e-6)


def test_whoever_knows_better_says_what_one_column_is(tmp_path):
    """Values in [0, 1] may be logits; values outside are no probabilities."""
    x = rows(20)
    assert exposed(one_column(sigmoid=True, flat=False), x, output_kind="logits").output_kind == "logits"
    with pytest.raises(InvalidInputError, match="output_kind: 'z' holds no probabilities"):
        exposed(one_column(sigmoid=False, flat=False), x, output_kind="probabilities")


def test_a_column_for_each_class_goes_before_one_for_two():
    """A number beside the logits, as an uncertainty, is not taken for them."""
    mean = node("ReduceMean", ["scores", "axis"], ["z"], keepdims=1)
    proto = classifier([mean], ["z", "scores"], initializers=[tensor(np.array([1]), "axis")])

    assert exposed(proto, rows(20)).output == "scores"
    with pytest.raises(InvalidInputError, match="no output is 2-D float with 3 columns"):
        exposed(proto, rows(20), num_classes=3)


def test_an_output_that_holds_no_numbers_is_refused_by_name():
    """The model runs: another tensor is the remedy, not another export."""
    proto = classifier([node("SequenceConstruct", ["scores"], ["list"])])

    with pytest.raises(InvalidInputError, match="output: 'list' holds list where numbers are needed; name another"):
        exposed(proto, rows(20), output="list")


@pytest.mark.parametrize("axes", [(-1, CLASSES, 1, 1), (-1, 1, CLASSES)], ids=str)
def test_axes_of_length_one_around_the_classes_are_left_out(tmp_path, axes):
    """As fully convolutional classifiers have them."""
    x = rows(20)
    shape = tensor(np.array(axes), "axes")
    proto = classifier(
        [node("Reshape", ["scores", "axes"], ["map"])], [value("map", FLOAT, None)], initializers=[shape]
    )

    found = exposed(proto, x)

    assert (found.output, found.num_classes) == ("map", CLASSES)
    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-5, atol=1e-5)


def test_the_last_linear_layer_of_an_exposed_model_can_still_be_read():
    """By ViM and others, which a report compares: nothing that need not be stands between it and the logits."""
    head = find_head(onnx.load_from_string(exposed(classifier(), rows(20)).model))

    assert head is not None
    np.testing.assert_allclose(head.weight, weights()["w2"].T, rtol=1e-6)


def test_the_network_of_a_bundle_is_a_classifier_like_any_other(tmp_path):
    """Its nodes are called as ours are, some of them."""
    x = rows(20)
    once = exposed(classifier(), x)

    again = exposed(onnx.load_from_string(once.model), x, layers=["model/before"], output="logits")

    np.testing.assert_allclose(run(again, x, tmp_path)["logits"], reference(x)[1], rtol=1e-5, atol=1e-5)
    assert exposed(onnx.load_from_string(again.model), x, layers=["act"], output="logits").layers[0].width == WIDTH


@pytest.mark.parametrize("name", ["logits", "class_mass", "representation.hidden", "model/hidden", "p_value"])
def test_an_input_called_as_one_of_our_tensors_is_called_otherwise(tmp_path, name):
    """A graph with two of one name does not load; the export would have refused the bundle."""
    start = body()
    start[0].input[0] = name
    x = rows(20)

    found = exposed(classifier(start=start, inputs=[value(name, FLOAT, ["batch", *SHAPE])]), x)

    assert found.changes == (f"calling its input {name!r} 'inputs'",)
    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-5, atol=1e-5)


def test_an_input_that_tells_no_shape_gets_that_of_the_rows():
    """ONNX's checker wants one, and with it the export of the detector."""
    found = onnx.load_from_string(exposed(classifier(inputs=[value("x", FLOAT, None)]), rows(20)).model)

    onnx.checker.check_model(found)
    axes = found.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in axes] == ["batch", *SHAPE]


def test_an_input_of_any_height_and_width_takes_those_of_the_rows(tmp_path):
    """As fully convolutional networks have them."""
    x = rows(20)

    found = exposed(classifier(inputs=[value("x", FLOAT, ["batch", "height", None])]), x)

    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], reference(x)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("max_dim", "dim"), [(3, 3), (256, WIDTH)])
def test_a_representation_is_declared_as_wide_as_it_is(max_dim, dim):
    """Of a classifier's layer and of bare vectors; whoever reads the graph sizes buffers by it."""
    vectors = np.random.default_rng(0).normal(size=(20, WIDTH)).astype(np.float32)
    both = (
        exposed(classifier(), rows(20), max_dim=max_dim),
        embedding_network(vectors, metric="cosine", max_dim=max_dim, seed=0),
    )

    for found in both:
        shape = onnx.load_from_string(found.model).graph.output[-1].type.tensor_type.shape
        assert found.layers[0].dim == shape.dim[1].dim_value == dim


def test_a_layer_too_wide_to_project_is_refused_before_its_projection_is_drawn(monkeypatch):
    """Numbers in the millions are what a convolution's first layer gives for a photograph."""
    monkeypatch.setattr(representation_graph, "LARGEST_MODEL_BYTES", 50)
    message = r"max_dim: got 4 for 'hidden', 5 numbers a row, whose projection would take 0\.00 GiB; .* narrower layer"

    with pytest.raises(InvalidInputError, match=message):
        exposed(classifier(), rows(20), max_dim=4)


def in_half(*, wide_output, batch="batch"):
    """The classifier of `foreign_models` in float16, with a float32 output where asked."""
    start = body("Reshape" if batch == 1 else "Flatten")
    start[0].input[0] = "same"
    start.insert(0, node("Identity", ["x"], ["same"]))
    proto = classifier(
        start=[*start, node("Cast", ["scores"], ["wide"], to=FLOAT)],
        inputs=[value("x", HALF, [batch, *SHAPE])],
        outputs=["wide"] if wide_output else [value("scores", HALF, [batch, CLASSES])],
        opset=21 if batch == 1 else 17,  # whose conversion would put nodes in order
        initializers=[tensor(np.array([1, 6]), "shape")],
    )
    for constant in proto.graph.initializer[:2]:
        halved = np.frombuffer(constant.raw_data, np.float32).astype(np.float16)
        constant.raw_data, constant.data_type = halved.tobytes(), HALF
    return proto


@pytest.mark.parametrize("wide_output", [True, False])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_model_that_takes_float16_takes_float32_rows(tmp_path, batch, wide_output):
    """No detector takes float16; the cast is the model's first node, and the change is told.

    A shape that fixes the batch size two nodes behind it is freed too.
    """
    x = rows(20)

    found = exposed(in_half(batch=batch, wide_output=wide_output), x, layers=["hidden", "before"])

    assert found.changes[0] == "taking float32 rows where it took float16"
    assert ("freeing the batch axis from 1" in found.changes) == (batch == 1)
    out = run(found, x, tmp_path)
    np.testing.assert_allclose(out["logits"], reference(x)[1], atol=2e-2)
    assert out[representation_output("hidden")].dtype == np.float32


def test_rounding_to_half_floats_is_no_difference_whatever_comes_out(tmp_path):
    """Converted, a model in float16 runs by other kernels; its outputs are often cast back to float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 300)).astype(np.float32)
    nodes = [
        node("Cast", ["x"], ["narrow"], to=HALF),
        node("MatMul", ["narrow", "v1"], ["before"]),
        node("Relu", ["before"], ["hidden"]),
        node("Softmax", ["hidden"], ["soft"], axis=-1),
        node("MatMul", ["soft", "v2"], ["scores"]),
        node("Cast", ["scores"], ["wide"], to=FLOAT),
    ]
    constants = [tensor(rng.normal(size=s).astype(np.float16), n) for s, n in (((300, 50), "v1"), ((50, 4), "v2"))]
    proto = classifier(
        start=nodes, inputs=[value("x", FLOAT, ["batch", 300])], outputs=["wide"], opset=13, initializers=constants
    )

    found = exposed(proto, x)

    assert run(found, x, tmp_path)["logits"].shape == (64, 4)


def test_shapes_that_a_conversion_wrote_down_are_forgotten(tmp_path):
    """They are those of the old batch size, and onnxruntime computes with them: of 7 rows 6 had no class token."""
    start = body()
    start[3:3] = [
        node("Shape", ["before"], ["shape"]),
        node("Slice", ["shape", "zero", "one"], ["length"]),
        node("Concat", ["length", "one"], ["token_shape"], axis=0),
        node("ConstantOfShape", ["token_shape"], ["token"]),
        node("Concat", ["hidden", "token"], ["longer"], axis=1),
    ]
    extra = [tensor(np.array([0]), "zero"), tensor(np.array([1]), "one")]
    x = rows(20)

    found = exposed(classifier(start=start, batch=1, opset=17, initializers=extra), x, layers=["longer"])

    assert len(found.changes) == 2
    assert run(found, x, tmp_path)[representation_output("longer")].shape == (20, WIDTH + 1)


@pytest.mark.parametrize(
    ("operator", "remedy"),
    [
        (node("Relu", ["x", "x"], ["image"]), "check it with onnx.checker and export it again"),
        (
            node("Mystery", ["x"], ["image"], domain="my"),
            "onnxruntime has no such operator: export the model with those of ONNX alone, or give the vectors that it "
            "makes to fit --embeddings",
        ),
        (node("Conv", ["wide", "kernel"], ["image"]), "export it in float32, which onnxruntime computes everything in"),
    ],
)
def test_a_model_that_does_not_load_is_refused(operator, remedy):
    """An operator with inputs too many, or that onnxruntime does not know, or not in float64."""
    start = [
        node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        operator,
        node("Cast", ["image"], ["y"], to=FLOAT),
        *body(),
    ]
    start[3].input[0] = "y"
    kernel = helper.make_tensor("kernel", TensorProto.DOUBLE, [2, 2, 1], [1.0] * 4)
    proto = classifier(start=start, initializers=[kernel], domains=[("my", 1)])

    with pytest.raises(InvalidInputError) as refusal:
        exposed(proto, rows(9))
    assert str(refusal.value).startswith("onnx: the model does not run: onnxruntime cannot load it (")
    assert str(refusal.value).endswith(f"); {remedy}")


@pytest.mark.parametrize(
    ("newer", "message"),
    [
        (
            {"ir_version": 99},
            r"Unsupported model IR version: 99, .*\); export it again for this onnxruntime, or install",
        ),
        ({"opset": 99}, r"ONNX Runtime only .* till opset \d+\); export it again with an opset that this onnxruntime"),
    ],
)
def test_a_model_newer_than_onnxruntime_is_refused(newer, message):
    """By what is too new, and without the place in onnxruntime's source code."""
    with pytest.raises(
        InvalidInputError, match=rf"^onnx: the model does not run: onnxruntime cannot load it \({message}"
    ):
        exposed(classifier(**newer), rows(9))


def test_a_model_without_an_axis_for_several_rows_is_refused():
    """Its only axes are those of a row, whose first is no batch."""
    row = helper.make_tensor_value_info("x", FLOAT, SHAPE)
    with pytest.raises(
        InvalidInputError, match=r"onnx: input 'x' takes a single row \[2, 3\], without an axis for several"
    ):
        exposed(classifier(inputs=[row]), rows(9))


def test_dynamic_quantisation_has_a_remedy_of_its_own():
    """One scale for a whole batch makes rows depend on each other, however the model is exported."""
    start = body()
    start[2].output[0] = "raw"
    start[3:3] = [
        node("DynamicQuantizeLinear", ["raw"], ["q", "scale", "zero"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["hidden"]),
    ]

    with pytest.raises(InvalidInputError) as refusal:
        exposed(classifier(start=start), rows(20))
    assert "rows influence each other" in str(refusal.value)
    assert str(refusal.value).endswith(
        "; it is quantised dynamically: quantise it statically, or give it as it was before"
    )


def test_functions_of_an_old_opset_are_put_in_their_place(tmp_path):
    """onnx's converter of opsets drops them."""
    function = helper.make_function(
        "my", "Twice", ["a"], ["c"], [node("Add", ["a", "a"], ["b"]), node("Identity", ["b"], ["c"])],
        [helper.make_opsetid("", 13)],
    )  # fmt: skip
    twice = node("Twice", ["scores"], ["twice"], domain="my")
    proto = classifier([twice], ["twice"], opset=13, domains=[("my", 1)], functions=[function])
    x = rows(20)

    found = exposed(proto, x)

    np.testing.assert_allclose(run(found, x, tmp_path)["logits"], 2 * reference(x)[1], rtol=1e-5, atol=1e-5)


def test_one_number_a_row_has_no_direction():
    """By cosine all positive numbers are alike."""
    proto = classifier([node("ReduceMax", ["hidden", "axis"], ["top"])], initializers=[tensor(np.array([1]), "axis")])
    message = "^metric: cosine compares .*'top' is one number a row, which has none; choose squared_euclidean for it$"

    with pytest.raises(InvalidInputError, match=message):
        exposed(proto, rows(20), layers=["top"])
    with pytest.raises(InvalidInputError, match=r"^metric: cosine compares .*'embedding' is one number"):
        embedding_network(rows(5).reshape(-1, 1), metric="cosine", max_dim=4, seed=0)
    assert exposed(proto, rows(20), layers=["top"], metric="squared_euclidean").layers[0].width == 1
