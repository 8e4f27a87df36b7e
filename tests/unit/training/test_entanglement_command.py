"""`softkin-train entanglement`: what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

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
