"""What `softkin-train fit` says of labels that are not those of the model's columns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from softkin_training.cli import main

NAMED = "             labels and columns differ in their order: "


def calibrated(folder, capsys, labels, noise=0.3, trained=lambda x, y: (x, y)):
    """What is printed of a model whose logits are its rows, calibrated on rows of so many columns labelled otherwise.

    Args:
        folder: for the files.
        capsys: pytest's.
        labels: the label that rows of each column are given.
        noise: share of the rows that get the label of the first row.
        trained: changes rows and labels of x_train before they are stored.
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

    x, y = trained(*sample(60))
    np.savez(folder / "train.npz", x_train=x, y_train=y)
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


def test_one_order_of_all_labels_is_one_remark(tmp_path, capsys):
    """In the wrong order rows that the classifier knows well fare worst, and nothing else need be wrong with them."""

    def in_that_order(x, y):
        return np.concatenate([x + i / 1000 for i in range(20)]), np.tile((y + 1) % 3, 20)

    text = calibrated(tmp_path, capsys, [1, 2, 0], noise=0.4, trained=in_that_order)

    assert NAMED in text
    assert "on the bank's rows" not in text


@pytest.mark.parametrize(("labels", "noise"), [([0, 1, 1], 0.0), ([0, 2, 1], 0.6)], ids=["no order", "no majority"])
def test_nothing_is_named_that_the_rows_do_not_show(tmp_path, capsys, labels, noise):
    """Two columns of one label are no order, and half of a column's rows no ground to move it."""
    assert NAMED not in calibrated(tmp_path, capsys, labels, noise)


@pytest.mark.parametrize(
    ("trained", "remarked"),
    [
        (lambda x, y: (x, y), False),
        (lambda x, y: (x, (y + 1) % 3), True),
        (lambda x, y: (-x, y), True),
        (lambda x, y: (x, np.where(np.arange(60) < 12, (y + 1) % 3, y)), False),
    ],
    ids=["as they are", "labels off by one", "rows prepared otherwise", "within chance"],
)
def test_rows_of_the_bank_that_the_classifier_does_not_know_are_remarked_upon(tmp_path, capsys, trained, remarked):
    """The rows that calibrate show nothing of it, and a bank of other rows than it was trained on misses outliers."""
    text = calibrated(tmp_path, capsys, [0, 1, 2], noise=0.0, trained=trained)

    assert "accuracy on them is 100.0%\n" in text
    assert ("             on the bank's rows it is only 0.0%: are x_train and y_train what the " in text) == remarked
    assert ("on the bank's rows" in text) == remarked


def fitted(folder, nodes, y, layers, outputs):
    """The status of fit on a model of such nodes, whose input of two numbers is `x`; (name, width) of its outputs."""
    value = helper.make_tensor_value_info
    shapes = [value(name, TensorProto.FLOAT, ["batch", width]) for name, width in outputs]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["batch", 2])], shapes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    x = np.random.default_rng(0).normal(size=(len(y), 2)).astype(np.float32)
    np.savez(folder / "d.npz", x_train=x, y_train=y)
    files = ["--onnx", str(folder / "m.onnx"), "--data", str(folder / "d.npz")]
    return main(["fit", *files, "--layers", layers, "--out", str(folder)])


@pytest.mark.parametrize(("layers", "remarks"), [("hidden", 0), ("scores", 1), ("hidden,p", 1), ("same,hidden", 1)])
def test_a_layer_that_holds_the_output_is_remarked_upon(tmp_path, capsys, layers, remarks):
    """By another name, too: what the network answers is not how the row looks, and outliers are missed by it."""
    nodes = [
        helper.make_node("Neg", ["x"], ["hidden"]),
        helper.make_node("Neg", ["hidden"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]),
        helper.make_node("Identity", ["p"], ["same"]),
    ]
    output = "scores" if layers == "scores" else "same"
    y = np.arange(200) % 2

    assert fitted(tmp_path, nodes, y, layers, [(output, 2)]) == 0

    said = "             holds the output itself, which says little of what a row looks like: name hidden layers\n"
    assert capsys.readouterr().out.count(said) == remarks


@pytest.mark.parametrize(("width", "said"), [(1, True), (2, False)])
def test_of_a_model_that_predicts_a_number_the_way_out_is_told(tmp_path, capsys, width, said):
    """Its labels are none; of a classifier with a column for each class they are wrong, and nothing else."""
    nodes = [helper.make_node("Neg", ["x"], ["hidden"]), helper.make_node("Neg", ["hidden"], ["scores"])]
    if width == 1:
        nodes.append(helper.make_node("Split", ["hidden"], ["number", "rest"], axis=1, num_outputs=2))

    name = "number" if width == 1 else "scores"
    assert fitted(tmp_path, nodes, np.arange(200) % 5, "hidden", [(name, width)]) == 1

    text = capsys.readouterr().err
    assert f"y_train[2] is 2, but output '{name}' of the model tells 2 classes apart" in text
    assert (
        "; a single number a row stands for the second of two classes: name by --output what has a column" in text
    ) == said
