"""Classifiers whose batch of 1 is baked into them where it cannot be freed: they run row by row."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import CLASSES, WIDTH, body, classifier, reference, rows, tensor
from softkin.errors import InvalidInputError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.expose import Exposed, expose

node, value = helper.make_node, helper.make_tensor_value_info
CHANGES = ("freeing the batch axis from 1", "running a batch row by row")


def exposed(proto, layers=("hidden",), **options) -> Exposed:
    """`expose` by squared distances, on twenty rows."""
    return expose(proto, rows(20), layers=list(layers), metric="squared_euclidean", max_dim=256, seed=0, **options)


def run(found: Exposed, x, tmp_path) -> dict:
    """Outputs of an exposed model."""
    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    return Network(path, device="cpu").run(x)


def with_token(batch=1, more=(), **options):
    """Before the hidden layer a constant row of the batch's size is joined to what there is, as a class token is."""
    start = body()
    start[1:1] = [
        node("Concat", ["flat", "token"], ["longer"], axis=1),
        node("Slice", ["longer", "from", "to", "axis"], ["again"]),
    ]
    start[3].input[0] = "again"
    constants = {"token": np.ones((batch, 2)), "from": np.array([0]), "to": np.array([6]), "axis": np.array([1])}
    extra = [*(tensor(v, k) for k, v in constants.items()), *options.pop("initializers", ())]
    return classifier(list(more), start=start, batch=batch, initializers=extra, **options)


@pytest.mark.parametrize("layers", [["hidden"], ["hidden", "x"], ["act", "scores"]])
def test_a_batch_of_one_that_cannot_be_freed_is_run_row_by_row(tmp_path, layers):
    """In batches of any size every row has the numbers that the model gives it alone; the input can be a layer, too."""
    found = exposed(with_token(), layers)

    assert found.changes == CHANGES
    for n in (1, 7):
        hidden, scores = reference(rows(n))
        expected = {"hidden": hidden, "act": hidden, "scores": scores, "x": rows(n).reshape(n, -1)}
        outputs = run(found, rows(n), tmp_path)
        np.testing.assert_allclose(outputs["logits"], scores, atol=1e-5)
        for layer in layers:
            np.testing.assert_allclose(outputs[representation_output(layer)], expected[layer], atol=1e-5)


def test_branches_and_functions_are_run_row_by_row_too(tmp_path):
    """A branch reads what lies outside of it, by the name that this has inside the loop."""
    branch = helper.make_graph([node("Neg", ["hidden"], ["minus"])], "b", [], [value("minus", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Exp", ["hidden"], ["exp"])], "o", [], [value("exp", TensorProto.FLOAT, None)])
    twice = helper.make_function(
        "my", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    more = [
        node("If", ["yes"], ["either"], then_branch=branch, else_branch=other),
        node("Twice", ["either"], ["aside"], domain="my"),
    ]
    proto = with_token(more=more, domains=[("my", 1)], functions=[twice], initializers=[tensor(np.array(True), "yes")])

    found = exposed(proto, ["aside"])

    assert found.changes == CHANGES
    hidden, _ = reference(rows(5))
    np.testing.assert_allclose(run(found, rows(5), tmp_path)[representation_output("aside")], -2 * hidden, atol=1e-5)


def test_a_model_that_normalises_its_only_row_is_run_as_in_production(tmp_path):
    """By the row's own numbers, whatever rows come beside it; of a free batch that is refused."""

    def normalising(batch):
        more = [node("ReduceMean", ["scores"], ["mean"], keepdims=1), node("Sub", ["scores", "mean"], ["centered"])]
        return classifier(more, ["centered"], batch=batch)

    found = exposed(normalising(1))

    assert found.changes == CHANGES
    scores = reference(rows(6))[1]
    expected = scores - scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(run(found, rows(6), tmp_path)["logits"], expected, atol=1e-5)
    with pytest.raises(InvalidInputError, match="rows influence each other"):
        exposed(normalising("batch"))


def test_a_larger_batch_that_cannot_be_freed_is_refused():
    """What it makes of a row may rest on the others."""
    with pytest.raises(InvalidInputError, match="after freeing the batch axis from 4 the model cannot take batches of"):
        exposed(with_token(batch=4))


def test_maps_and_names_like_ours_come_through(tmp_path):
    """A map is averaged as outside of a loop, and a tensor may be called as the loop calls its own."""
    more = [
        node("Unsqueeze", ["hidden", "axes"], ["column"]),
        node("Expand", ["column", "square"], ["one_row/map"]),
        node("Conv", ["one_row/map", "kernel"], ["map"]),
    ]
    constants = {
        "axes": np.array([2, 3]),
        "square": np.array([1, WIDTH, 4, 4]),
        "kernel": np.eye(WIDTH)[:, :, None, None],
    }
    proto = with_token(more=more, initializers=[tensor(v, k) for k, v in constants.items()])

    found = exposed(proto, ["map"], max_side=1)

    assert (found.changes, found.layers[0].reducer, found.num_classes) == (CHANGES, "average-pool(4x4)", CLASSES)
    outputs = run(found, rows(3), tmp_path)
    np.testing.assert_allclose(outputs[representation_output("map")], reference(rows(3))[0], atol=1e-5)
