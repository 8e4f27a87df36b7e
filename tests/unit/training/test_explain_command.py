"""`softkin-train explain`: what a person reads of it, and what is refused."""

from __future__ import annotations

import json

import datasets
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foreign_models import CLASSES, SHAPE, classifier
from softkin import Detector
from softkin_training.cli import main
from softkin_training.explain_command import MOST_COLUMNS

pytestmark = pytest.mark.training

COLUMNS = ("width", "height", "depth")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory and a cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def rows(n, seed):
    """Rows of two classes, and their labels."""
    y = np.arange(n) % 2
    return np.random.default_rng(seed).normal(size=(n, 3)) + 6 * y[:, None], y


def write(file, x, *, labels=None):
    """A table with a key."""
    lines = [",".join(["key", *COLUMNS, *(["label"] if labels is not None else [])])]
    for i, row in enumerate(x.tolist()):
        lines.append(",".join([f"no {i}", *map(repr, row), *([["a", "b"][labels[i]]] if labels is not None else [])]))
    with open(file, "w") as out:
        out.write("\n".join(lines) + "\n")


@pytest.fixture
def fitted(place):
    """A bundle of a table with names, and new rows, of which two have a depth that no training row has."""
    x, y = rows(600, 0)
    write("train.csv", x, labels=y)
    options = ["--metric", "squared_euclidean", "--name-column", "key"]
    assert main(["fit", "--embeddings", "train.csv", "--out", "out", *options]) == 0
    new = np.concatenate([np.full((8, 3), 0.2) + 6 * (np.arange(8) % 2)[:, None], [[0.1, 0.2, 30.5], [6.1, 40.25, 6]]])
    write("new.csv", new)
    return new


def test_a_table_says_which_value_and_what_it_is_elsewhere(fitted, capsys):
    """Of flagged rows alone, under their names and the names of training rows."""
    capsys.readouterr()

    assert main(["explain", "out/bundle", "--data", "new.csv", "--training", "train.csv"]) == 0

    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "row"
    columns = [head.index(h) for h in ("row", "predicted", "compared", "column", "is", "there", "p-value then")]
    cells = [[line[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)] for line in lines]
    assert [(c[0].split("  ")[0], c[3], c[4]) for c in cells] == [
        ("no 8", "depth", "30.5"),
        ("no 9", "height", "40.25"),
    ]
    for cell, true in zip(cells, (0, 6), strict=True):
        assert cell[2].startswith("no ")
        assert abs(float(cell[5]) - true) < 4
        assert float(cell[6]) > 0.05
    assert last == "10 rows, 2 flagged at alpha 0.05"


def test_json_has_everything(fitted, capsys):
    """An object a row; the p-values are those of the row with these values replaced."""
    capsys.readouterr()
    assert main(["explain", "out/bundle", "--data", "new.csv", "--training", "train.csv", "--json"]) == 0

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    detector = Detector.load("out/bundle", device="cpu")
    training = rows(600, 0)[0]
    for row, i in zip(found, (8, 9), strict=True):
        assert (row["row"], row["name"]) == (i, f"no {i}")
        assert row["p_value"] == detector.score(fitted[i : i + 1]).p_value[0]
        example = row["compared_with"]["id"]
        assert row["compared_with"]["name"] == f"no {example}"
        [change] = row["changes"]
        column = COLUMNS.index(change["column"])
        assert (change["value"], change["training_value"]) == (fitted[i, column], training[example, column])
        replaced = fitted[i].copy()
        replaced[column] = training[example, column]
        assert change["p_value"] == detector.score(replaced[None]).p_value[0] > 0.05


def test_arrays_do_as_well_as_tables(capsys):
    """Columns without names go by their number, from 0, and so do rows where the file does not name them."""
    x, y = rows(600, 0)
    np.savez("t.npz", x_train=x, y_train=y)
    np.savez("n.npz", x_test=np.array([[0.1, 0.2, 30.5]]))
    np.savez("named.npz", x_test=np.array([[0.1, 0.2, 30.5]]), names=["case 7"])
    assert main(["fit", "--embeddings", "t.npz", "--out", "out", "--metric", "squared_euclidean"]) == 0
    capsys.readouterr()

    assert main(["explain", "out/bundle", "--data", "n.npz", "--training", "t.npz"]) == 0
    said = capsys.readouterr().out
    assert "column 2" in said
    assert said.splitlines()[1].startswith("0 ")
    assert main(["explain", "out/bundle", "--data", "named.npz", "--training", "t.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("case 7 ")


def test_only_the_first_rows_and_columns_are_shown(capsys):
    """How to see the others is said; all are in JSON."""
    rng = np.random.default_rng(0)
    np.savez("t.npz", x_train=rng.normal(size=(600, 9)))
    np.savez("n.npz", x_test=rng.normal(size=(4, 9)) + 30)
    assert main(["fit", "--embeddings", "t.npz", "--out", "out", "--metric", "squared_euclidean"]) == 0
    capsys.readouterr()
    command = ["explain", "out/bundle", "--data", "n.npz", "--training", "t.npz", "--most", "1"]

    assert main(command) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 + 1
    assert last == "4 rows, 4 flagged at alpha 0.05; 3 more: --most 4"
    np.savez("many.npz", x_test=np.full((21, 9), 30.0) + np.arange(21)[:, None])
    assert main(["explain", "out/bundle", "--data", "many.npz", "--training", "t.npz"]) == 0
    assert capsys.readouterr().out.endswith("21 rows, 21 flagged at alpha 0.05; 1 more: --most 21\n")
    assert main([*command, "--json"]) == 0
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert f"and {len(row['changes']) - 5} more" in lines[-1]
    assert lines[-1].endswith(f"{row['changes'][-1]['p_value']:.4g}")


@pytest.mark.parametrize("columns", [5, 6])
def test_what_is_left_out_is_counted(capsys, columns):
    """Of five columns none is; a row is told once, however many there are."""
    rng = np.random.default_rng(0)
    np.savez("t.npz", x_train=rng.normal(size=(300, columns)))
    np.savez("n.npz", x_test=rng.normal(size=(1, columns)) + 1000)
    assert main(["fit", "--embeddings", "t.npz", "--out", "out", "--metric", "squared_euclidean"]) == 0
    capsys.readouterr()

    assert main(["explain", "out/bundle", "--data", "n.npz", "--training", "t.npz"]) == 0
    _, first, *lines, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("0 ")
    assert [line.split("  ")[0] for line in lines] == [""] * (columns - 1)
    assert len({line.partition("column ")[2][0] for line in [first, *lines[:4]]}) == 5
    assert [line.split()[:3] for line in lines[4:]] == [["and", "1", "more"]] * (columns - 5)


def test_a_training_row_that_is_flagged_is_compared_with_itself(fitted, capsys):
    """Nothing of it would have to be otherwise; names of any length stand in one column."""
    wide = ["--name-column", "key", "--metric", "squared_euclidean", "--temperature-scale", "20"]
    assert main(["fit", "--embeddings", "train.csv", "--out", "out", *wide]) == 0
    capsys.readouterr()
    files = ["--data", "train.csv", "--training", "train.csv", "--most", "99"]
    assert main(["explain", "out/bundle", *files, "--alpha", "0.2"]) == 0

    head, *lines, _ = capsys.readouterr().out.splitlines()
    starts = [head.index(h) for h in ("p-value", "predicted class", "compared with", "column")]
    cells = [[line[a:b].strip() for a, b in zip([0, *starts], [*starts, None], strict=True)] for line in lines]
    itself = [c for c in cells if c[0] == c[3] != ""]
    assert {len(c[0]) for c in itself} == {4, 5, 6}
    assert all(c[4] == "" and float(c[1]) <= 0.2 and c[2] in ("a", "b") for c in itself)


def test_nothing_flagged_is_said(fitted, capsys):
    """And no table shown; the rate decides."""
    capsys.readouterr()
    assert main(["explain", "out/bundle", "--data", "new.csv", "--training", "train.csv", "--alpha", "0.01"]) == 0
    assert "10 rows, 2 flagged at alpha 0.01" in capsys.readouterr().out
    write("fine.csv", fitted[:8])
    assert main(["explain", "out/bundle", "--data", "fine.csv", "--training", "train.csv"]) == 0
    assert capsys.readouterr().out == "8 rows, 0 flagged at alpha 0.05\n"


@pytest.mark.parametrize("calibration", [[], ["--calibration", "calibration.csv"]], ids=["share", "file"])
def test_training_rows_that_are_not_the_bundles_are_refused(fitted, capsys, calibration):
    """Sorted, shortened or others: their values would be told as those of rows that they are not."""
    x, y = rows(600, 0)
    fresh, labels = rows(200, 1)
    write("calibration.csv", fresh, labels=labels)
    assert main(["fit", "--embeddings", "train.csv", "--out", "out", "--columns", ",".join(COLUMNS), *calibration]) == 0
    swapped = x.copy()
    swapped[[0, 2]] = x[[2, 0]]
    for changed in (x[::-1], x[:300], x[:-1], x + 1, swapped):
        write("other.csv", changed, labels=y)
        assert main(["explain", "out/bundle", "--data", "new.csv", "--training", "other.csv"]) == 1
        said = capsys.readouterr().err
        assert "other.csv: is not what the bundle was made of; give the file of its training rows as it was" in said
    for odd in (x.astype(np.float32), x[:, :2], np.float64(1)):
        np.savez("other.npz", x_train=odd)
        assert main(["explain", "out/bundle", "--data", "new.csv", "--training", "other.npz"]) == 1
        assert "other.npz: is not what the bundle was made of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--most", "0"], "--most: got 0; must be at least 1"),
        (["--alpha", "0.001"], "--alpha: got 0.001"),
        (["--data", "no.csv"], "no.csv: no such file"),
        (["--training", "no.npz"], "no.npz: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(fitted, capsys, options, complaint):
    """In the words of the command line."""
    usual = {"--data": "new.csv", "--training": "train.csv"} | dict([options])

    assert main(["explain", "out/bundle", *[word for pair in usual.items() for word in pair]]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--data", "--training"])
def test_both_files_are_needed(fitted, capsys, option):
    """As the usage says."""
    files = {"--data": "new.csv", "--training": "train.csv"}
    del files[option]

    with pytest.raises(SystemExit):
        main(["explain", "out/bundle", *[word for pair in files.items() for word in pair]])
    assert f"the following arguments are required: {option}" in capsys.readouterr().err


def test_rows_that_the_detector_does_not_take_are_refused_by_their_file(fitted, capsys):
    """With what is wrong."""
    np.savez("n.npz", x_test=fitted[:, :2])

    assert main(["explain", "out/bundle", "--data", "n.npz", "--training", "train.csv"]) == 1
    assert "n.npz: shape is [10, 2], this detector takes [rows, 3]" in capsys.readouterr().err


def test_numbers_of_one_column_go_by_their_place_in_it(capsys):
    """The column's name tells none of them from the others."""
    x, y = rows(600, 0)
    pq.write_table(pa.table({"vector": list(x), "label": y}), "t.parquet")
    pq.write_table(pa.table({"vector": [[0.1, 0.2, 30.5]]}), "n.parquet")
    assert main(["fit", "--embeddings", "t.parquet", "--out", "out", "--metric", "squared_euclidean"]) == 0
    capsys.readouterr()

    assert main(["explain", "out/bundle", "--data", "n.parquet", "--training", "t.parquet", "--json"]) == 0
    assert [c["column"] for c in json.loads(capsys.readouterr().out)["changes"]] == ["column 2"]


@pytest.mark.parametrize("shape", [(MOST_COLUMNS,), (MOST_COLUMNS + 1,), SHAPE], ids=str)
def test_rows_of_too_many_columns_are_left_to_score(capsys, shape):
    """No single number says where they are strange, nor does one of a map."""
    x = np.random.default_rng(0).normal(size=(400, *shape)).astype(np.float32)
    np.savez("t.npz", x_train=x, y_train=np.arange(400) % CLASSES)
    np.savez("n.npz", x_test=x[:3])
    onnx.save(classifier(), "m.onnx")
    fit = ["--onnx", "m.onnx", "--layers", "hidden", "--data"] if shape == SHAPE else ["--embeddings"]
    assert main(["fit", *fit, "t.npz", "--out", "out"]) == 0
    capsys.readouterr()

    allowed = shape == (MOST_COLUMNS,)
    assert main(["explain", "out/bundle", "--data", "n.npz", "--training", "t.npz"]) == (0 if allowed else 1)
    said = capsys.readouterr().err
    complaint = f"takes rows of {list(shape)} numbers, and only rows of columns, at most 512, are explained"
    assert (complaint in said) is not allowed
    assert ("`softkin score --neighbors 5` shows what others are compared with" in said) is not allowed
