"""What `softkin-train fit` says of labels that are not those of the model's columns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from softkin_training.cli import main

NAMED = "             labels and columns differ in their order: "


def calibrated(folder, capsys, labels, noise=0.3):
    """What is printed of a model whose logits are its rows, calibrated on rows of so many columns labelled otherwise.

    Args:
        folder: for the files.
        capsys: pytest's.
        labels: the label that rows of each column are given.
        noise: share of the rows that get the label of the first row.
    """
    classes, rng = len(labels), np.random.default_rng(0)
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", ["x"], ["hidden"]), helper.make_node("Neg", ["hidden"], ["scores"])]
    shapes = [value(name, TensorProto.FLOAT, ["batch", classes]) for name in ("x", "scores")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "m.onnx")

    def sample(n):
        column = np.arange(n) % classes
        return (10 * np.eye(classes)[column] + rng.normal(size=(n, classes))).astype(np.float32), column

    x, column = sample(60)
    np.savez(folder / "train.npz", x_train=x, y_train=column)
    x, column = sample(100 * classes)
    y = np.asarray(labels)[column]
    y[rng.random(len(y)) < noise] = labels[0]
    np.savez(folder / "fresh.npz", x_test=x, y_test=y)
    files = ["--data", str(folder / "train.npz"), "--calibration", str(folder / "fresh.npz")]
    assert main(["fit", "--onnx", str(folder / "m.onnx"), "--layers", "hidden", *files, "--out", str(folder)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0, 2, 1], "column 1 has label 2, column 2 has label 1;\n"),
        ([1, 2, 3, 4, 0], "column 0 has label 1, column 1 has label 2, column 2 has label 3, ...;\n"),
    ],
)
def test_columns_in_another_order_than_labels_are_named(tmp_path, capsys, labels, named):
    """As those of folders sorted as text, 10 before 2; and how good the classifier is in theirs."""
    text = calibrated(tmp_path, capsys, labels)

    as_it_is = calibrated(tmp_path, capsys, list(range(len(labels))))
    reached = as_it_is.split("accuracy on them is ")[1].splitlines()[0]
    assert (
        f"{NAMED}{named}             give labels and class_names in that of the columns, where it is {reached}\n"
        in text
    )
    assert NAMED not in as_it_is


@pytest.mark.parametrize(("labels", "noise"), [([0, 1, 1], 0.0), ([0, 2, 1], 0.6)], ids=["no order", "no majority"])
def test_nothing_is_named_that_the_rows_do_not_show(tmp_path, capsys, labels, noise):
    """Two columns of one label are no order, and half of a column's rows no ground to move it."""
    assert NAMED not in calibrated(tmp_path, capsys, labels, noise)
