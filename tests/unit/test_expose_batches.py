"""Classifiers that were exported for batches of one size, or whose rows meet in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import WIDTH, body, classifier, reference, rows, tensor, weights
from softkin.errors import InvalidInputError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.expose import Exposed, expose

node = helper.make_node


def exposed(proto, layers=("hidden",)) -> Exposed:
    """`expose` by squared distances, on twenty rows."""
    return expose(proto, rows(20), layers=list(layers), metric="squared_euclidean", max_dim=256, seed=0)


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def assert_free(found: Exposed, layer, tmp_path):
    """In batches of any size every row has the numbers that it has in the reference."""
    for n in (1, 7):
        hidden, scores = reference(rows(n))
        outputs = run(found, rows(n), tmp_path)
        np.testing.assert_allclose(outputs[representation_output(layer)], hidden, atol=1e-5)
        np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("source", ["hidden", "line"])
@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_a_layer_whose_shape_holds_the_batch_is_freed_whether_or_not_others_do(tmp_path, batch, source, flatten):
    """Where the output does without, the model runs on other batches, and only the layer gives the rows elsewhere."""
    line = node("Reshape", ["hidden", "all"], ["line"])
    aside = node("Reshape", [source, "own"], ["aside"])
    own = [batch, -1] if source == "hidden" else [batch, WIDTH]
    shapes = {"own": own, "all": [-1], "shape": [batch, 6]}
    constants = [tensor(np.array(shape), name) for name, shape in shapes.items()]
    proto = classifier([line, aside], start=body(flatten), batch=batch, initializers=constants)

    found = exposed(proto, ["aside"])

    assert found.changes == (f"freeing the batch axis from {batch}",)
    assert_free(found, "aside", tmp_path)


def test_a_leading_axis_of_one_that_is_not_the_batch_stays(tmp_path):
    """The rows lie on the second axis for a while: in batches of any size, as the model came."""
    aside = [node("Reshape", ["hidden", "shape"], ["lifted"]), node("Squeeze", ["lifted", "first"], ["aside"])]
    constants = [tensor(np.array([1, -1, WIDTH]), "shape"), tensor(np.array([0]), "first")]

    found = exposed(classifier(aside, initializers=constants), ["aside"])

    assert found.changes == ()
    outputs = run(found, rows(7), tmp_path)
    np.testing.assert_allclose(outputs[representation_output("aside")], reference(rows(7))[0], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_only_shapes_that_begin_with_the_batch_are_freed(tmp_path, batch):
    """One that begins with the features has the rows behind them; the next one holds the batch."""
    start = body()
    start[:1] = [
        node("Transpose", ["x"], ["rows_last"], perm=[1, 2, 0]),
        node("Reshape", ["rows_last", "features_first"], ["features"]),
        node("Transpose", ["features"], ["rows_first"], perm=[1, 0]),
        node("Reshape", ["rows_first", "shape"], ["flat"]),
    ]
    constants = [tensor(np.array([6, -1]), "features_first"), tensor(np.array([batch, 6]), "shape")]

    found = exposed(classifier(start=start, batch=batch, initializers=constants))

    assert_free(found, "hidden", tmp_path)


def test_a_shape_without_axes_is_no_batch(tmp_path):
    """A number made of the rows' own shape, by which a layer is divided; beside it one shape that is freed."""
    more = [
        node("Shape", ["x"], ["axes"]),
        node("Gather", ["axes", "last"], ["length"]),
        node("Reshape", ["length", "none"], ["number"]),
        node("Cast", ["number"], ["divisor"], to=TensorProto.FLOAT),
        node("Div", ["hidden", "divisor"], ["share"]),
    ]
    shapes = {"last": [2], "none": [], "shape": [1, 6]}
    constants = [tensor(np.array(shape, np.int64), name) for name, shape in shapes.items()]

    found = exposed(classifier(more, start=body("Reshape"), batch=1, initializers=constants), ["share"])

    outputs = run(found, rows(7), tmp_path)
    expected = reference(rows(7))[0] / rows(7).shape[2]
    np.testing.assert_allclose(outputs[representation_output("share")], expected, atol=1e-5)


def mixing(*nodes, **options):
    """A classifier whose hidden layer is less its mean over the batch, with more nodes."""
    start = body()
    start[2].output[0] = "raw"
    start[3:3] = [node("ReduceMean", ["raw", "axis"], ["mean"], keepdims=1), node("Sub", ["raw", "mean"], ["hidden"])]
    extra = [tensor(np.array([0]), "axis"), *options.pop("initializers", ())]
    return classifier(list(nodes), start=start, initializers=extra, **options)


def test_static_quantisation_is_not_blamed_for_rows_that_meet():
    """Its scales are constants; only the export can be at fault."""
    more = [
        node("QuantizeLinear", ["scores", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["out"]),
    ]
    constants = [tensor(0.1, "scale"), tensor(np.array(128, np.uint8), "zero")]

    with pytest.raises(InvalidInputError, match=r"rows influence each other.*; export it again in evaluation mode"):
        exposed(mixing(*more, outputs=["out"], initializers=constants))


def test_operators_that_quantise_and_multiply_at_once_have_the_remedy_of_dynamic_quantisation():
    """As onnxruntime writes them when it saves what it has optimised."""
    weight = weights()["w1"]
    scale = np.abs(weight).max() / 127
    start = body()
    start[1] = node("DynamicQuantizeMatMul", ["flat", "b", "scale"], ["before"], domain="com.microsoft")
    constants = [tensor(np.round(weight / scale).astype(np.int8), "b"), tensor(np.array(scale, np.float32), "scale")]
    proto = classifier(start=start, initializers=constants, domains=[("com.microsoft", 1)])

    with pytest.raises(InvalidInputError, match=r"rows influence each other.*; it is quantised dynamically: quan"):
        exposed(proto)


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize(("outputs", "options"), [(1, {"training_mode": 1}), (3, {})], ids=["mode", "statistics"])
def test_batch_normalisation_left_in_training_is_refused_by_its_name(batch, outputs, options):
    """Before it runs: of a single row it would give what no classifier was trained for, and onnxruntime may crash."""
    names = ["scale", "bias", "mean", "var"]
    start = [
        node("BatchNormalization", ["x", *names], ["n", "m", "v"][:outputs], name="norm", **options),
        *body(),
    ]
    start[1].input[0] = "n"
    constants = [tensor(np.full(2, n == "scale", np.float32), n) for n in names]

    with pytest.raises(
        InvalidInputError, match=r"^onnx: BatchNormalization 'norm' takes the statistics of the batch, as"
    ):
        exposed(classifier(start=start, batch=batch, initializers=constants))


def test_batch_normalisation_in_evaluation_is_taken(tmp_path):
    """With the statistics that it was trained to."""
    names = ["scale", "bias", "mean", "var"]
    start = [node("BatchNormalization", ["x", *names], ["n"], epsilon=0.0, training_mode=0), *body()]
    start[1].input[0] = "n"
    constants = [tensor(np.full(2, n in ("scale", "var"), np.float32), n) for n in names]

    assert_free(exposed(classifier(start=start, initializers=constants)), "hidden", tmp_path)
