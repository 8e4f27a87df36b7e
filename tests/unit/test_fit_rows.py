"""Rows and labels of files that nobody prepared for us, and which of the rows a model is tried on."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from softkin.chunks import SLICE_NUMBERS
from softkin.errors import DataError
from softkin_training.cli import main
from softkin_training.fit import _probe
from softkin_training.fit_rows import checked_rows, class_names, read_test_rows
from softkin_training.npz import checked_labels, read_npz
from softkin_training.trial import BATCH


def labels(y, n=3):
    """Checked, of three rows and two classes."""
    return checked_labels({"x_train": np.zeros((n, 2)), "y_train": np.asarray(y)}, "train", 2, "f.npz")


@pytest.mark.parametrize(
    ("key", "objects", "remedy"),
    [
        ("x_train", np.zeros((2, 2), object), "x_train.astype(float)"),
        ("y_train", np.array([0, 1], object), "numpy.array(y_train.tolist())"),
        ("class_names", np.array(["a", "b"], object), "numpy.array(class_names.tolist())"),
    ],
)
def test_an_array_of_python_objects_is_named_with_what_makes_a_plain_one_of_it(tmp_path, key, objects, remedy):
    """A column of pandas is one without looking so; and of three arrays only one may be to blame."""
    plain = {"x_train": np.zeros((2, 2)), "y_train": np.array([0, 1]), "class_names": np.array(["a", "b"])}
    np.savez(tmp_path / "f.npz", **{**plain, key: objects})

    message = f"({key} holds Python objects, as columns of pandas do: store {remedy})"
    with pytest.raises(DataError, match=re.escape(message)):
        read_npz(tmp_path / "f.npz", ("x_train", "y_train"), optional=("class_names",))
    np.savez(tmp_path / "f.npz", **{**plain, key: eval(remedy, {"numpy": np, key: objects})})
    found = read_npz(tmp_path / "f.npz", ("x_train", "y_train"), optional=("class_names",))[key]
    assert found.dtype.kind == plain[key].dtype.kind


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64"])
def test_labels_become_int64(dtype):
    """Whatever integers they were."""
    found = labels(np.array([0, 1, 1], dtype))

    assert (found.dtype, found.tolist()) == (np.int64, [0, 1, 1])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[0], [1], [1]], r"f\.npz: y_train is int64 \(3, 1\); it must be one integer per row"),
        ([0.0, 1.0, 1.0], r"f\.npz: y_train is float64 \(3,\); it must be one integer per row"),
        ([0, 1], r"f\.npz: x_train has 3 rows, y_train 2; they must be equal"),
        ([0, 1, 1, 0], r"f\.npz: x_train has 3 rows, y_train 4; they must be equal"),
        ([0, -1, 2], r"y_train\[1\] is -1; .* must lie in 0 to 1 \(2 labels lie outside\)"),
    ],
)
def test_labels_that_are_none_are_refused(y, message):
    """By the first of them."""
    with pytest.raises(DataError, match=message):
        labels(y)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros(3, np.float32),
            r"has shape \[3\]; it must be \[rows, numbers, \.\.\.\], .*: x_test\.reshape\(1, -1\) is one row",
        ),
        (
            np.zeros((0, 2), np.float32),
            r"has shape \[0, 2\]; it must be \[rows, numbers, \.\.\.\], with a row at least$",
        ),
        (
            np.zeros((3, 0), np.float32),
            r"has shape \[3, 0\]; it must be \[rows, numbers, \.\.\.\], with a row at least$",
        ),
        (np.zeros((3, 2), np.float16), r"is float16; it must be one of uint8, .*: convert it$"),
        (
            np.array([["a", "b"]]),
            r"is <U1; it must be one of uint8, .*: give the vectors that an encoder makes of text$",
        ),
    ],
)
def test_rows_that_no_detector_takes_are_refused(x, message):
    """By the type or by the shape, whichever is wrong: the remedies differ."""
    with pytest.raises(DataError, match=rf"^f\.npz: x_test {message}"):
        checked_rows(x, "x_test", "f.npz")


def test_rows_that_are_not_finite_are_counted_and_the_first_is_named():
    """One number is enough."""
    x = np.zeros((5, 2))
    x[[1, 3], 1] = np.nan, np.inf

    with pytest.raises(DataError, match="x_test has 2 rows with NaN or infinity, the first is row 1; remove them, or"):
        checked_rows(x, "x_test", "f.npz")


def test_class_names_may_stand_in_an_array_of_any_shape():
    """Or not at all."""
    assert class_names({"class_names": np.array([["a"], ["b"]])}) == ("a", "b")
    assert class_names({}) == ()


def test_class_names_are_text():
    """A bundle would not take others, for no client could be told of them."""
    with pytest.raises(DataError, match=r"^class_names has 'caf\\udce9', which UTF-8 cannot spell; rename it"):
        class_names({"class_names": np.array(["a", "caf\udce9"])})


def test_a_model_is_tried_on_rows_from_all_over_the_file(tmp_path, capsys):
    """Files are often sorted: logits of the first class may look like probabilities."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", ["x"], ["hidden"]), helper.make_node("Neg", ["hidden"], ["scores"])]
    shapes = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "scores")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    p = np.linspace(0.6, 0.9, 150)
    first, rest = np.stack([p, 1 - p], axis=1), np.stack([1 - 4 * p, 5 * p], axis=1)
    np.savez(
        tmp_path / "d.npz", x_train=np.concatenate([first, rest]).astype(np.float32), y_train=np.arange(300) // 150
    )

    command = ["fit", "--onnx", str(tmp_path / "m.onnx"), "--layers", "hidden", "--data", str(tmp_path / "d.npz")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "2 logits" in capsys.readouterr().out


@pytest.mark.parametrize(("numbers", "tried"), [(784, 64), (SLICE_NUMBERS // 40, 40), (36_000_000, BATCH)])
def test_of_large_rows_a_model_is_tried_on_fewer(numbers, tried):
    """Hidden layers of 64 photographs of 12 megapixels would be tens of gigabytes."""
    x = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (200, numbers))

    probe = _probe(x)
    assert probe.shape == (tried, numbers)
    assert probe[0, 0] < 100 < probe[-1, 0]


@pytest.mark.parametrize(("repeats", "remarked"), [(0, False), (10, False), (40, True)])
def test_many_repeated_rows_are_remarked_upon(tmp_path, capsys, repeats, remarked):
    """A strange row that comes again and again counts once in the calibration, and is flagged as often as it comes."""
    x = np.random.default_rng(0).normal(size=(300, 4))
    np.savez(tmp_path / "x.npz", x_train=np.concatenate([x, x[np.arange(repeats) % 5]]))

    assert main(["fit", "--embeddings", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]) == 0

    text = capsys.readouterr().out
    assert (f"; {repeats} repeated rows left out\n" in text) == (repeats > 0)
    assert ("where they go on to repeat, false alarms may exceed alpha\n" in text) == remarked


def test_repeated_rows_of_another_label_are_counted(tmp_path, capsys):
    """One of two labels is wrong; each copy is compared with the row that stays."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), np.arange(300) % 3
    again, other = np.array([3, 3, 7, 9]), np.array([0, 1, 2, 0])  # 3 and 9 are of class 0, 7 of class 1
    np.savez(tmp_path / "x.npz", x_train=np.concatenate([x, x[again]]), y_train=np.concatenate([y, other]))

    assert main(["fit", "--embeddings", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]) == 0

    assert "; 4 repeated rows left out, 2 of another label than the first\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "refused"),
    [(["a", "b", "c"], False), (["a", "b"], False), (["x", "y", "z"], False), (["b", "c"], True), (["b", "a"], True)],
)
def test_calibration_labels_in_another_order_of_the_classes_are_refused(tmp_path, names, refused):
    """A file that lacks a class, numbered by itself, shifts all that come after; names that say nothing are let be."""
    np.savez(tmp_path / "c.npz", x_test=np.zeros((2, 2)), y_test=np.array([0, 1]), class_names=names)

    if not refused:
        assert read_test_rows(tmp_path / "c.npz", ("a", "b", "c"))[1].tolist() == [0, 1]
        return
    with pytest.raises(
        DataError, match=r"c\.npz: class_names has 'b' at 0, the classes of the training rows at 1; num"
    ):
        read_test_rows(tmp_path / "c.npz", ("a", "b", "c"))


def test_of_rows_that_a_layer_does_not_take_the_first_is_named(tmp_path, capsys):
    """Numbers that float64 holds and float32 does not: who is to remove the rows has to find them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    x[[57, 31], 2] = 1e200
    np.savez(tmp_path / "x.npz", x_train=x)
    np.savez(tmp_path / "c.npz", x_test=rng.normal(size=(50, 4)))
    files = ["--embeddings", str(tmp_path / "x.npz"), "--calibration", str(tmp_path / "c.npz")]

    assert main(["fit", *files, "--no-standardize", "--out", str(tmp_path / "out")]) == 1

    said = (
        "layer 'embedding': 2 of 200 rows become NaN or infinity in float32; scale the rows, or remove those, of which "
    )
    assert said + "example 31 is the first\n" in capsys.readouterr().err
