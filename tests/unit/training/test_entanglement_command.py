"""`softkin-train entanglement`: what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from softkin_training.build import build
from softkin_training.cli import main

pytestmark = pytest.mark.training


def command(tiny, tmp_path, *more, **arrays):
    """The command on a file of calibration rows, some of its arrays changed."""
    np.savez(tmp_path / "d.npz", **{"x_test": tiny.calibration.x, "y_test": tiny.calibration.y, **arrays})
    return main(["entanglement", str(tiny.path), "--data", str(tmp_path / "d.npz"), *more])


@pytest.mark.parametrize(
    ("edit", "more", "message"),
    [
        ({}, ["--rows", "0"], "--rows: got 0; must be at least 2"),
        ({}, ["--rows", "-3"], "--rows: got -3; must be at least 2"),
        ({"y_test": lambda y: y.astype(str)}, [], "d.npz: y_test is <U21"),
        ({"y_test": lambda y: y.astype(float)}, [], "d.npz: y_test is float64"),
        ({"y_test": lambda y: y[:, None]}, [], "it must be one integer per row"),
        ({"y_test": lambda y: y[:-1]}, [], "they must be equal"),
        ({"y_test": np.sort}, ["--rows", "20"], "d.npz: the first 20 rows are all of one class"),
        ({"x_test": lambda x: x[:2], "y_test": lambda y: y[:2]}, [], "the first 2 rows"),
        ({"x_test": lambda x: x[:0], "y_test": lambda y: y[:0]}, [], "d.npz: there are no rows"),
        ({"x_test": lambda x: x[:, :1]}, [], "d.npz: shape is"),
    ],
)
def test_rows_that_tell_nothing_are_refused(tiny, tmp_path, capsys, edit, more, message):
    """Exit status 1, one clear line and no half of a table."""
    originals = {"x_test": tiny.calibration.x, "y_test": tiny.calibration.y}

    assert command(tiny, tmp_path, *more, **{k: change(originals[k]) for k, change in edit.items()}) == 1

    printed = capsys.readouterr()
    assert printed.err.startswith("softkin-train: error: ")
    assert message in printed.err
    assert printed.out == ""


def test_labels_need_not_be_classes_of_the_bundle(tiny, tmp_path, capsys):
    """They are only compared with each other: whatever numbers the classes have, the table is the same."""
    assert command(tiny, tmp_path) == 0
    expected = capsys.readouterr().out

    assert command(tiny, tmp_path, y_test=7 * tiny.calibration.y - 1) == 0
    assert capsys.readouterr().out == expected


def test_columns_stay_in_line_whatever_layers_are_called(tiny, tmp_path, capsys):
    """Names come from other people's files: long ones push no number aside, and none colours a terminal."""
    name = "/encoder/layer.11/output/\x1b[31mred"
    proto = onnx.load_from_string(tiny.model)
    for names in [node.output for node in proto.graph.node]:
        if names[0] == "representation.wide":
            names[0] = f"representation.{name}"
    next(o for o in proto.graph.output if o.name == "representation.wide").name = f"representation.{name}"
    layers = (dataclasses.replace(tiny.spec.layers[0], name=name), tiny.spec.layers[1])
    spec = dataclasses.replace(tiny.spec, layers=layers)
    rows = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(tmp_path / "b", proto.SerializeToString(), spec, **rows)
    np.savez(tmp_path / "d.npz", x_test=tiny.calibration.x, y_test=tiny.calibration.y)

    assert main(["entanglement", str(tmp_path / "b"), "--data", str(tmp_path / "d.npz")]) == 0

    head, wide, narrow = capsys.readouterr().out.splitlines()
    assert wide.startswith("/encoder/layer.11/output/\\x1b[31mred  ")
    assert len(wide) == len(narrow) == len(head.partition("   (")[0])
