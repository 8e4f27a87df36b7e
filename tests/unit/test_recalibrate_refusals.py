"""What `softkin_training.recalibrate` refuses, and that nothing half-written stays. Needs no torch."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from fresh_rows import calibrating, entries, inliers, joined, write_npz
from small_files import files_of_at_most
from softkin import BundleError, DataError, InvalidInputError
from softkin import bundle as bundles
from softkin_training.cli import main
from softkin_training.recalibrate import recalibrate
from softkin_training.rows import Rows


def with_value(rows, at, value):
    """One number of row `at` changed."""
    x = rows.x.copy()
    x[at, 0] = value
    return Rows(x, rows.y, rows.ids)


REFUSALS = {
    "other dtype": (
        lambda r, _: Rows(np.abs(r.x).astype(np.uint8), r.y, r.ids),
        {},
        InvalidInputError,
        r"inputs: dtype is uint8, this detector takes float32; give rows of the type and scale that it was built with",
    ),
    "other shape": (
        lambda r, _: Rows(r.x[:, :5], r.y, r.ids),
        {},
        InvalidInputError,
        r"inputs: shape is \[40, 5\], this detector takes \[rows, 12\]",
    ),
    "no rows": (lambda r, _: r.take(np.arange(0)), {"grow": True}, InvalidInputError, "there are no rows"),
    "not finite": (
        lambda r, _: with_value(r, 7, np.nan),
        {},
        InvalidInputError,
        "inputs: row 7 has NaN or infinity; every value must be finite",
    ),
    "overflow": (
        lambda r, _: with_value(r, 6, np.float32(3e38)),
        {},
        DataError,
        "calibration: the network overflows on example 6; check its scale: inliers do not",
    ),
    "labels": (
        lambda r, _: dataclasses.replace(r, y=r.y + 1),
        {},
        DataError,
        r"calibration: labels must lie in \[0, 3\); got \[1, 3\]",
    ),
    "lengths": (
        lambda r, _: dataclasses.replace(r, y=r.y[:1]),
        {},
        DataError,
        "calibration: there are 40 rows and 1 labels; they must be equally many",
    ),
    "repeated": (
        lambda r, _: joined(r, r.take(np.array([5, 2, 5]))),
        {},
        DataError,
        "calibration has 3 rows whose content came before, the first is example 40, a copy of example 5; remove the "
        "copies, or the false-alarm rate does not hold",
    ),
    "bank rows": (
        lambda r, tiny: joined(r, tiny.bank.take(np.array([8, 9]))),
        {},
        DataError,
        r"calibration has 2 rows whose content also stands in the training, bank or reference rows of .*/tiny, the "
        "first is example 40; remove them, or the false-alarm rate does not hold",
    ),
    "reference rows": (
        lambda _, tiny: tiny.calibration,
        {},
        DataError,
        r"calibration has 300 rows whose content also stands in the training, bank or reference rows",
    ),
    "rows that calibrate already": (
        lambda r, tiny: joined(r, calibrating(tiny, tiny.path).take(np.arange(3))),
        {"grow": True},
        DataError,
        r"calibration has 3 rows whose content also stands in the calibration rows of .*/tiny, the first is example 40",
    ),
    "few rows for the bundle's alpha": (
        lambda r, _: r.take(np.arange(18)),
        {},
        InvalidInputError,
        r"alpha: got 0\.05, but 18 calibration rows cannot .* use alpha >= 0\.0526316 or at least 19 calibration rows",
    ),
    "few rows for a chosen alpha": (
        lambda r, _: r,
        {"grow": True, "alpha": 0.001},
        InvalidInputError,
        r"alpha: got 0\.001, but 340 calibration rows cannot .* or at least 999 calibration rows",
    ),
    "alpha out of range": (lambda r, _: r, {"alpha": 0.0}, InvalidInputError, r"alpha: got 0; .* strictly in \(0, 1\)"),
    "the old version": (
        lambda r, _: r,
        {"version": "1"},
        InvalidInputError,
        "version: got '1', which is the bundle's own; two different detectors must not share a version: choose "
        "another, or leave it out for '1-r1-[0-9a-f]{8}'",
    ),
    "no labels, repeated": (
        lambda r, _: np.concatenate([r.x, r.x[5:6]]),
        {"grow": True},
        DataError,
        "calibration has 1 rows whose content came before, the first is example 40, a copy of example 5",
    ),
    "no labels, few rows": (
        lambda r, _: r.x[:18],
        {},
        InvalidInputError,
        r"alpha: got 0\.05, but 18 calibration rows cannot",
    ),
    "no labels, rows of the bank": (
        lambda r, tiny: np.concatenate([r.x, tiny.bank.x[3:4]]),
        {},
        DataError,
        r"calibration has 1 rows whose content also stands in the training, bank or reference rows",
    ),
    "no name": (
        lambda r, _: r,
        {"version": "a b"},
        InvalidInputError,
        r"version: got 'a b'; must be 1 to 63 letters, digits, '\.', '_' or '-', the first a letter or a digit",
    ),
    "no text": (lambda r, _: r, {"version": 3}, InvalidInputError, "version: got 3; must be 1 to 63 letters, digits"),
}


@pytest.mark.parametrize(("edit", "options", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_would_break_the_promise_is_refused(tiny, tmp_path, edit, options, error, message):
    """With what is wrong, where, and what to do; nothing is written."""
    rows = edit(inliers(tiny, 40, seed=13), tiny)

    with pytest.raises(error, match=message):
        recalibrate(tiny.path, tmp_path / "b", rows, **options)
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "field", "message"),
    [
        ([[1.0] * 12, [2.0]], "rows", "they make no array"),
        (np.ma.masked_less(np.zeros((40, 12), np.float32), 1), "rows", "values of a masked array are hidden"),
        ([[1.0] * 12] * 40, "inputs", "dtype is float64, this detector takes float32"),
    ],
)
def test_rows_without_labels_are_made_an_array_or_refused(tiny, tmp_path, rows, field, message):
    """As those that a detector scores."""
    with pytest.raises(InvalidInputError, match=f"{field}: {message}"):
        recalibrate(tiny.path, tmp_path / "b", rows, alpha=0.2)


def test_an_existing_directory_is_left_alone(tiny_copy, tiny):
    """The bundle itself among them: versions stand side by side."""
    before = bundles.digest(tiny_copy)

    with pytest.raises(BundleError, match="exists already; choose another directory, or remove it first"):
        recalibrate(tiny_copy, tiny_copy, inliers(tiny, 40, seed=15))
    assert bundles.digest(tiny_copy) == before


def test_a_full_disk_leaves_nothing_half_written(tiny, tmp_path):
    """The write fails half way: a clear error, nothing new, the old bundle as it was."""
    rows, before = inliers(tiny, 40, seed=16), bundles.digest(tiny.path)
    words = r"cannot write the bundle \(.+\); nothing was changed there; make room, or choose another directory$"
    with files_of_at_most(10_000), pytest.raises(BundleError, match=words):
        recalibrate(tiny.path, tmp_path / "b", rows)

    assert entries(tmp_path) == []
    assert bundles.read_bundle(tiny.path).digest == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": np.zeros(40)}, r"rows\.npz: y_test is float64 \(40,\); it must be one integer per row"),
        (  # numpy.unique numbers those that there are, by the alphabet: other labels than the detector's
            {"y_test": np.array(["b", "a"] * 20)},
            r"y_test is <U1 \(40,\); .*: \[list\(class_names\)\.index\(label\) for label in y_test\], with the classes "
            "in the order that the training rows have",
        ),
        ({"y_test": np.zeros(39, int)}, r"rows\.npz: x_test has 40 rows, y_test 39; they must be equal"),
        ({"x_test": np.float32(1)}, r"rows\.npz: x_test has 0 rows, y_test 40; they must be equal"),
        ({"y_test": np.full(40, 3)}, r"rows\.npz: y_test\[0\] is 3; .*must lie in 0 to 2 \(40 labels lie outside\)"),
        ({"x_test": np.ones((40, 12))}, r"inputs: dtype is float64, this detector takes float32"),
        ({"y_test": np.array([None] * 40)}, r"rows\.npz: not an \.npz file of plain arrays"),
    ],
    ids=[
        "labels not integer",
        "names for labels",
        "lengths differ",
        "no rows",
        "label out of range",
        "other dtype",
        "pickled",
    ],
)
def test_the_command_says_what_is_wrong_with_a_file(tiny, tmp_path, capsys, changes, message):
    """Exit status 1 and one line that names file and array; nothing is written."""
    file = write_npz(tmp_path / "rows.npz", inliers(tiny, 40, seed=19), **changes)

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]) == 1

    assert re.fullmatch(rf"softkin-train: error: .*{message}.*\n", capsys.readouterr().err)
    assert entries(tmp_path) == ["rows.npz"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "one byte", "other arrays"])
def test_the_command_refuses_a_damaged_file(tiny, tmp_path, capsys, damage):
    """Whatever numpy raises."""
    file = write_npz(tmp_path / "rows.npz", inliers(tiny, 40, seed=20))
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    if damage == "missing":
        file.unlink()
    elif damage == "other arrays":
        np.savez(file, x=np.zeros(3))
    else:
        file.write_bytes(data if damage == "one byte" else data[:-100])

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]) == 1

    wanted = {
        "missing": "cannot be read (No such file or directory); check path and rights\n",
        "other arrays": "lacks 'x_test'",
    }.get(damage, "not an .npz file of plain arrays")
    assert f"rows.npz: {wanted}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (lambda tiny: tiny.bank.take(np.array([8, 9])), (), "2 rows whose content also stands in the training, bank"),
        (
            lambda tiny: calibrating(tiny, tiny.path).take(np.arange(3)),
            ("--grow",),
            "3 rows whose content also stands in the calibration rows of",
        ),
        (lambda tiny: inliers(tiny, 40, seed=19).take(np.array([5])), (), "1 rows whose content came before"),
    ],
    ids=["of the bank", "that calibrate already", "that repeat"],
)
def test_the_command_names_the_file_whose_rows_were_used_before(tiny, tmp_path, capsys, rows, options, said):
    """And counts in it: two files and a bundle are in play."""
    file = write_npz(tmp_path / "new.npz", joined(inliers(tiny, 40, seed=19), rows(tiny)))

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b"), *options]) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"softkin-train: error: {file}: x_test has {said}")
    assert "the first is example 40" in error
    assert entries(tmp_path) == ["new.npz"]


def test_the_command_names_the_file_whose_row_the_network_overflows_on(tiny, tmp_path, capsys):
    """Likewise."""
    rows = inliers(tiny, 40, seed=19)
    rows.x[6] = 3e38
    file = write_npz(tmp_path / "new.npz", rows)

    assert main(["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]) == 1

    assert f"{file}: x_test: the network overflows on example 6; check its scale" in capsys.readouterr().err
    assert entries(tmp_path) == ["new.npz"]
