"""What is said of the layers of an exposed classifier: names, widths, metrics and reducers, each for itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import CLASSES, classifier, reference, rows, tensor
from softkin.errors import InvalidInputError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.expose import Exposed, ExposedLayer, expose
from softkin_training.projection import projection_matrix

node, value = helper.make_node, helper.make_tensor_value_info


def exposed(proto, x, **options) -> Exposed:
    """`expose`, squared distances where nothing else is said."""
    return expose(proto, x, **({"metric": "squared_euclidean", "max_dim": 256, "seed": 0} | options))


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def unit(z):
    """Rows of length 1."""
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def maps_model(shape):
    """The input itself, negated, as maps, and a classifier of its sum."""
    return classifier(
        start=[
            node("Neg", ["x"], ["maps"]),
            node("Flatten", ["x"], ["flat"], axis=1),
            node("MatMul", ["flat", "ones"], ["scores"]),
        ],
        inputs=[value("x", TensorProto.FLOAT, ["batch", *shape])],
        initializers=[tensor(np.ones((int(np.prod(shape)), 2)), "ones")],
    )


def test_maps_are_averaged_over_squares_of_two_and_projected_from_what_is_left(tmp_path):
    """Smaller squares at the far edges by their own size; the reducer tells both steps, and the layer its widths."""
    x = np.random.default_rng(0).normal(size=(9, 2, 5, 4)).astype(np.float32)
    means = np.empty((9, 2, 3, 2))
    for i in range(3):
        for j in range(2):
            means[:, :, i, j] = -x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(2, 3))

    whole = exposed(maps_model(x.shape[1:]), x, layers=["maps"], max_side=3, max_dim=12, seed=4)  # no wider
    projected = exposed(maps_model(x.shape[1:]), x, layers=["maps"], max_side=3, max_dim=11, seed=4)

    assert whole.layers == (ExposedLayer(name="maps", tensor="maps", width=40, dim=12, reducer="average-pool(2x2)"),)
    steps = "average-pool(2x2) + gaussian-projection(12->11, seed=4)"
    assert projected.layers == (ExposedLayer(name="maps", tensor="maps", width=40, dim=11, reducer=steps),)
    expected = means.reshape(9, -1)
    name = representation_output("maps")
    np.testing.assert_allclose(run(whole, x, tmp_path)[name], expected, atol=1e-6)
    np.testing.assert_allclose(run(projected, x, tmp_path)[name], expected @ projection_matrix(12, 11, 4), atol=1e-5)


@pytest.mark.parametrize(("shape", "axes"), [((3, 5, 5), (2, 3)), ((5, 5, 3), (1, 2)), ((4, 4, 4), (2, 3))])
def test_maps_become_their_means_wherever_their_channels_are(tmp_path, shape, axes):
    """The axes that are alike are a map's; of three alike the first one counts channels, as ONNX has it."""
    x = np.random.default_rng(0).normal(size=(9, *shape)).astype(np.float32)

    found = exposed(maps_model(shape), x, layers=["maps"], max_side=1, max_dim=20)

    name = representation_output("maps")
    np.testing.assert_allclose(run(found, x, tmp_path)[name], -x.mean(axis=axes), atol=1e-6)
    [layer] = found.layers
    assert (layer.width, layer.dim) == (int(np.prod(shape)), 3 if 3 in shape else 4)


@pytest.mark.parametrize("shape", [(16, 6, 6), (6, 6, 16)])
def test_squares_go_by_rows_and_columns_however_many_channels_there_are(tmp_path, shape):
    """Deep maps are small and of many channels."""
    x = np.random.default_rng(0).normal(size=(9, *shape)).astype(np.float32)

    [layer] = exposed(maps_model(shape), x, layers=["maps"], max_side=3).layers

    assert (layer.dim, layer.reducer) == (16 * 3 * 3, "average-pool(2x2)")


def test_a_layer_has_the_metric_of_the_name_that_it_was_given_by(tmp_path):
    """That of a node, though its tensor is called otherwise; each layer its own."""
    x = rows(9)
    metric = {"act": "cosine", "before": "squared_euclidean"}

    found = exposed(classifier(), x, layers=["act", "before"], metric=metric)

    assert [(layer.name, layer.tensor) for layer in found.layers] == [("act", "hidden"), ("before", "before")]
    outputs = run(found, x, tmp_path)
    hidden = reference(x)[0]
    np.testing.assert_allclose(outputs[representation_output("act")], unit(hidden), atol=1e-5)
    before = outputs[representation_output("before")]
    np.testing.assert_allclose(np.maximum(before, 0), hidden, atol=1e-5)


@pytest.mark.parametrize("name", ["scores", "hidden"])
def test_the_output_may_be_a_layer_too(tmp_path, name):
    """It is computed once, and yields both; so is a layer that lies before it."""
    x = rows(9)
    scores = reference(x)[1]

    found = exposed(classifier(), x, layers=["scores", "hidden"], output="scores")

    outputs = run(found, x, tmp_path)
    assert found.num_classes == CLASSES
    np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)
    expected = dict(zip(("hidden", "scores"), reference(x), strict=True))[name]
    np.testing.assert_allclose(outputs[representation_output(name)], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["logits", "class_mass", "representation.hidden", "expose/Cast_0_0", "softkin/x"])
def test_weights_called_as_one_of_our_tensors_is_stay_what_they_are(tmp_path, name):
    """As a layer called so does."""
    proto = classifier()
    for tensor_proto in proto.graph.initializer:
        if tensor_proto.name == "w1":
            tensor_proto.name = name
    for n in proto.graph.node:
        n.input[:] = [name if i == "w1" else i for i in n.input]
    x = rows(9)

    found = exposed(proto, x, layers=["hidden"])

    hidden, scores = reference(x)
    outputs = run(found, x, tmp_path)
    np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)
    np.testing.assert_allclose(outputs[representation_output("hidden")], hidden, atol=1e-5)
    onnx.checker.check_model(onnx.load_from_string(found.model))


@pytest.mark.parametrize(("spread", "has_energy"), [(3e-3, True), (3e-4, False)])
def test_an_energy_that_only_rounding_moves_is_none(spread, has_energy):
    """Log-probabilities, here less what a row's first number makes of a spread; exact ones would differ by 1e-6."""
    x = rows(50)
    x[:, 0, 0] = np.linspace(0, spread, len(x))
    nodes = [
        node("LogSoftmax", ["scores"], ["lp"], axis=1),
        node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        node("Sub", ["lp", "first"], ["out"]),
    ]
    proto = classifier(nodes, ["out"], initializers=[tensor(np.array([0]), "zero"), tensor(np.array([1]), "one")])

    found = exposed(proto, x, layers=["hidden"])

    assert (found.output_kind, found.has_energy) == ("logits", has_energy)


@pytest.mark.parametrize(
    ("layers", "output", "field"),
    [(["hidden"], "mean", "output"), (["mean"], "scores", "layers")],
    ids=["output", "layer"],
)
def test_what_is_one_for_all_rows_is_refused_as_what_it_was_named_for(layers, output, field):
    """A mean over the batch, of which a single row shows nothing."""
    proto = classifier([node("ReduceMean", ["scores", "axis"], ["mean"])], initializers=[tensor(np.array([0]), "axis")])

    with pytest.raises(InvalidInputError) as e:
        exposed(proto, rows(9), layers=layers, output=output)

    assert str(e.value) == (
        f"{field}: 'mean' has shape [1, 4] for a batch of 7, which must be its first axis; name another tensor or node"
    )
