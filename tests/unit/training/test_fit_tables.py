"""`softkin-train fit` on tables: what an .npz of the same rows gives, with columns found by name. Needs no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

import datasets
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from foreign_models import tensor
from softkin import Detector
from softkin.bundle import read_bundle
from softkin.score_display import read_array, read_names
from softkin_training.cli import main

pytestmark = pytest.mark.training

CLASSES = np.array(["low", "mid", "top"])
COLUMNS = ("width", "height", "a, b")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory and a cache of the test's own, and a classifier of three columns in it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    save_model()


def save_model(kind=TensorProto.FLOAT):
    """The largest column is the class."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("x", kind, ["batch", 3])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [tensor(np.eye(3, dtype=np.float32), "w")])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), "m.onnx")


def rows(n, seed=0):
    """Rows of three classes, and their labels."""
    y = np.arange(n) % 3
    return (np.random.default_rng(seed).normal(size=(n, 3)) + 4 * np.eye(3)[y]).astype(np.float32), y


def write(file, x, y, order):
    """A table of these columns, in this order."""
    cells = {**dict(zip(COLUMNS, x.T, strict=True)), "grade": CLASSES[y], "key": [f"no {i}" for i in range(len(y))]}
    table = pa.table({name: cells[name] for name in order})
    if file.endswith(".parquet"):
        pq.write_table(table, file)
    else:
        table.to_pandas().to_csv(file, index=False)


MODEL = ("fit", "--onnx", "m.onnx", "--layers", "x", "--out", "out")
NAMED = ("--columns", r"width,height,a\, b", "--label-column", "grade", "--name-column", "key")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_gives_the_bundle_of_the_same_rows(ending):
    """To the bit, though columns stand in other orders in each file; classes are the labels in their order."""
    (x, y), (fresh, labels) = rows(300), rows(90, seed=1)
    write(f"t.{ending}", x, y, ["key", "a, b", "grade", "width", "height"])
    write(f"c.{ending}", fresh, labels, ["height", "grade", "width", "a, b"])
    np.savez("t.npz", x_train=x, y_train=y, class_names=CLASSES, column_names=COLUMNS)
    np.savez("c.npz", x_test=fresh, y_test=labels)

    assert main([*MODEL, "--data", f"t.{ending}", "--calibration", f"c.{ending}", *NAMED]) == 0
    of_table = read_bundle("out/bundle")
    assert main([*MODEL, "--data", "t.npz", "--calibration", "c.npz"]) == 0
    of_arrays = read_bundle("out/bundle")

    assert of_table.manifest.classes == of_arrays.manifest.classes == tuple(CLASSES)
    assert of_table.manifest.input_dtype == "float32"
    assert of_table.manifest.provenance["input_columns"] == list(COLUMNS)
    np.testing.assert_array_equal(of_table.calibration.outlier_scores, of_arrays.calibration.outlier_scores)
    np.testing.assert_array_equal(of_table.golden.inputs, of_arrays.golden.inputs)
    assert of_table.bank.names.find(np.array([299])) == {299: "no 299"}


def test_new_tables_are_read_by_what_the_bundle_kept(capsys):
    """Columns, labels and names go by the names that they had; no option says so again."""
    write("t.csv", *rows(300), ["key", *COLUMNS, "grade"])
    fresh, labels = rows(90, seed=1)
    write("new.csv", fresh, labels, ["grade", "a, b", "height", "key", "width"])
    assert main([*MODEL, "--data", "t.csv", "--label-column", "grade", "--name-column", "key"]) == 0

    assert main(["rows", "out/bundle", "--data", "new.csv", "--out", "new.npz"]) == 0
    np.testing.assert_array_equal(read_array("new.npz", None), fresh)
    assert read_names("new.npz", 90) == [f"no {i}" for i in range(90)]
    assert main(["recalibrate", "out/bundle", "--data", "new.csv", "--out", "again"]) == 0
    assert Detector.load("again").manifest.provenance["recalibrated"]["accuracy"] > 0.9
    assert "no labels" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.DOUBLE, "float64"), (TensorProto.INT64, "int64"), (TensorProto.FLOAT, "float32")],
)
def test_numbers_become_those_that_the_model_takes(kind, dtype):
    """Whole ones too, which a table may have alone."""
    save_model(kind)
    x, y = rows(300)
    write("t.csv", np.round(100 * x).astype(np.int64), y, [*COLUMNS, "grade"])

    assert main([*MODEL, "--data", "t.csv", "--label-column", "grade"]) == 0
    assert read_bundle("out/bundle").manifest.input_dtype == dtype


def test_vectors_of_a_table_need_no_labels():
    """Without any all are of one class; whole numbers may be followed by others."""
    x, y = rows(300)
    write("v.csv", np.round(100 * x).astype(np.int64), y, [*COLUMNS])
    write("c.csv", np.round(100 * rows(200, seed=1)[0]).astype(np.int64), y[:200], [*COLUMNS, "grade"])

    assert main(["fit", "--embeddings", "v.csv", "--out", "out", "--calibration", "c.csv"]) == 0
    manifest = read_bundle("out/bundle").manifest
    assert (manifest.classes, manifest.input_dtype, manifest.calibration_size) == (("all",), "float64", 200)
    assert main(["fit", "--embeddings", "c.csv", "--out", "out", "--label-column", "grade"]) == 0
    assert read_bundle("out/bundle").manifest.classes == tuple(CLASSES)


def test_vectors_may_stand_in_one_column(capsys):
    """As Parquet has lists; of a table beside arrays it has to be the only one."""
    x, y = rows(300)
    pq.write_table(pa.table({"vector": list(x), "label": y}), "v.parquet")

    assert main(["fit", "--embeddings", "v.parquet", "--out", "out"]) == 0
    manifest = read_bundle("out/bundle").manifest
    assert (manifest.input_shape, manifest.input_dtype, manifest.classes) == ((3,), "float32", ("0", "1", "2"))
    np.savez("v.npz", x_train=rows(300, seed=1)[0], y_train=y, class_names=["0", "1", "2"])
    command = ["fit", "--embeddings", "v.npz", "--out", "out", "--calibration", "v.parquet"]
    assert main(command) == 0
    assert read_bundle("out/bundle").manifest.calibration_size == 300
    pq.write_table(pa.table({"vector": list(x), "more": x[:, 0], "label": y}), "v.parquet")
    assert main(command) == 1
    assert "and v.npz does not say which of them a row is made of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("order", "options", "complaint"),
    [
        ([*COLUMNS, "grade"], [], "--label-column: t.csv has no column 'label'; it has 'width', 'height', 'a, b', "),
        ([*COLUMNS, "grade"], ["--label-column", "no"], "--label-column: t.csv has no column 'no'; it has 'width'"),
        ([*COLUMNS, "grade"], [*NAMED[2:], "--columns", "width,no"], "--columns: t.csv has no column 'no'"),
        ([*COLUMNS, "grade"], NAMED, "--name-column: t.csv has no column 'key'"),
        ([*COLUMNS, "grade"], [*NAMED[2:4], "--columns", "width,height,width"], "--columns: names 'width' twice; must"),
        ([*COLUMNS, "grade", "key"], [*NAMED, "--columns", "grade"], "--columns: got 'grade', which holds the labels"),
        (
            [*COLUMNS, "grade", "key"],
            NAMED[2:4],
            "t.csv: column 'key' is large_string, which is neither numbers nor images; leave it out by --columns,",
        ),
        (["grade"], NAMED[2:4], "t.csv: has no column but 'grade'; add those of the inputs"),
    ],
)
def test_columns_that_are_not_there_or_no_inputs_are_refused(capsys, order, options, complaint):
    """With what there is."""
    write("t.csv", *rows(300), order)

    assert main([*MODEL, "--data", "t.csv", *options]) == 1
    assert complaint in capsys.readouterr().err


def test_a_table_without_some_of_the_models_classes_is_refused(capsys):
    """Which columns its labels stand for is not known then; an .npz can say."""
    x, y = rows(300)
    write("t.csv", x[y < 2], y[y < 2], [*COLUMNS, "grade"])

    assert main([*MODEL, "--data", "t.csv", "--label-column", "grade"]) == 1
    said = capsys.readouterr().err
    assert (
        "--output: no output is 2-D float with 2 columns, one for each class name; the float outputs are 'scores'"
        in said
    )
    assert (
        "the classes are the 2 labels of t.csv; where the model knows others too, give an .npz with class_names" in said
    )
    np.savez("t.npz", x_train=x[y < 2], y_train=y[y < 2])
    assert main([*MODEL, "--data", "t.npz", "--output", "none"]) == 1
    assert "t.npz" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--columns", "--label-column", "--name-column"])
def test_options_of_tables_are_refused_for_arrays(capsys, option):
    """They would be ignored."""
    x, y = rows(300)
    np.savez("t.npz", x_train=x, y_train=y)

    assert main([*MODEL, "--data", "t.npz", option, "width"]) == 1
    assert f"{option}: is for tables (.csv, .parquet), and t.npz is none; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after", "column"), [("0,", "", "Unnamed: 0"), ("", ",", "Unnamed: 4")])
def test_row_numbers_of_pandas_are_no_inputs(capsys, before, after, column):
    """Nor are columns without a name; the remedy names the others, as they are to be typed."""
    write("t.csv", *rows(300), [*COLUMNS, "grade"])
    head, *lines = Path("t.csv").read_text().splitlines()
    written = [f"{before[1:]}{head}{after}", *(f"{before}{line}{after}" for line in lines)]
    Path("t.csv").write_text("\n".join(written) + "\n")
    command = [*MODEL, "--data", "t.csv", "--label-column", "grade"]

    assert main(command) == 1
    said = capsys.readouterr().err
    assert (
        f"--columns: t.csv has a column '{column}', row numbers as pandas writes them or a column without a name"
        in (said)
    )
    assert main([*command, *shlex.split(said.partition("in its order: ")[2])]) == 0
    assert read_bundle("out/bundle").manifest.provenance["input_columns"] == list(COLUMNS)
    if before:  # who names them wants them
        assert main([*command, "--columns", f"{column},width,height"]) == 0


def test_marks_within_names_of_columns_divide_nothing(capsys):
    """Of several columns, or of Parquet, they are part of a name."""
    x, _ = rows(300)
    Path("t.csv").write_text("\n".join(["a|b,c;d,e", *(",".join(map(str, row)) for row in x)]) + "\n")
    pq.write_table(pa.table({"a|b": list(x)}), "t.parquet")

    for file, columns in (("t.csv", ["a|b", "c;d", "e"]), ("t.parquet", ["a|b"])):
        assert main(["fit", "--embeddings", file, "--out", "out"]) == 0
        assert read_bundle("out/bundle").manifest.provenance["input_columns"] == columns
    assert main([*MODEL, "--data", "t.parquet"]) == 1
    assert "--label-column: t.parquet has no column 'label'; it has 'a|b'" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_that_no_commas_divide_is_told_by_its_first_line(capsys, mark):
    """Whichever column is looked for, and where none is; with commas in numbers too."""
    x, y = rows(300)
    lines = [mark.join([*map(str, row), CLASSES[k]]) for row, k in zip(x, y, strict=True)]
    Path("t.csv").write_text("\n".join([mark.join(["width", "height", "depth", "label"]), *lines]) + "\n")
    said = f"its first line divides columns by {mark!r}: write it with commas, and points in numbers"
    Path("c.csv").write_text(Path("t.csv").read_text().replace(".", ","))

    for file in ("t.csv", "c.csv"):
        assert main([*MODEL, "--data", file]) == 1
        assert f"--label-column: {file} has no column 'label'; {said}" in capsys.readouterr().err
        assert main(["fit", "--embeddings", file, "--out", "out"]) == 1
        assert f"{file}: {said}" in capsys.readouterr().err
    write("d.csv", x, y, [*COLUMNS, "grade"])
    assert main([*MODEL, "--data", "d.csv", "--label-column", "grade", "--calibration", "t.csv"]) == 1
    assert f"; {said}" in capsys.readouterr().err


def test_lines_that_end_with_a_comma_are_refused_where_the_first_does_not(capsys):
    """Every value would stand under the name of the next column, and so it would in new rows."""
    write("t.csv", *rows(300), [*COLUMNS, "grade"])
    assert main([*MODEL, "--data", "t.csv", "--label-column", "grade"]) == 0
    head, *lines = Path("t.csv").read_text().splitlines()
    Path("shifted.csv").write_text("\n".join([head, *(f"{line}," for line in lines)]) + "\n")
    Path("named.csv").write_text("\n".join([head, *(f"row {i},{line}" for i, line in enumerate(lines))]) + "\n")
    capsys.readouterr()

    assert main(["rows", "out/bundle", "--data", "shifted.csv", "--out", "new.npz"]) == 1
    assert "shifted.csv: lines end with a comma, and the first line does not, so that values" in capsys.readouterr().err
    numbered = pa.table({**dict(zip(COLUMNS, rows(300)[0].T, strict=True)), "__index_level_0__": np.arange(300)})
    pq.write_table(numbered.append_column("comment", pa.nulls(300, pa.string())), "numbered.parquet")
    for file in ("named.csv", "numbered.parquet"):  # as R and pandas number rows
        assert main(["rows", "out/bundle", "--data", file, "--out", "new.npz", "--force"]) == 0
        np.testing.assert_array_equal(read_array("new.npz", None), rows(300)[0])


def test_calibration_rows_of_a_table_need_the_labels_and_columns(capsys):
    """Of the training rows; which is missing is said."""
    write("t.csv", *rows(300), [*COLUMNS, "grade"])
    write("c.csv", *rows(90, seed=1), ["width", "height", "grade"])
    write("d.csv", *rows(90, seed=1), [*COLUMNS])
    command = [*MODEL, "--data", "t.csv", "--label-column", "grade", "--calibration"]

    assert main([*command, "c.csv"]) == 1
    assert "c.csv: has no column 'a, b'; a row is made of 'width', 'height', 'a, b'" in capsys.readouterr().err
    assert main([*command, "d.csv"]) == 1
    assert "d.csv: has no column 'grade', whose labels calibrate; add it" in capsys.readouterr().err


def test_rows_that_calibrate_are_told_from_training_rows_by_their_files(capsys):
    """A table has no arrays; of which file a column is missing is said too."""
    x, y = rows(300)
    write("t.csv", x, y, [*COLUMNS, "grade"])
    write("c.csv", x[:90], y[:90], [*COLUMNS, "grade"])
    command = [*MODEL, "--label-column", "grade", "--calibration", "c.csv", "--data"]

    assert main([*command, "t.csv"]) == 1
    assert (
        "error: c.csv has 90 rows whose content also stands in t.csv, the first is example 0" in capsys.readouterr().err
    )
    np.savez("t.npz", x_train=x, y_train=y)
    assert main([*MODEL, "--calibration", "c.csv", "--data", "t.npz"]) == 1
    said = capsys.readouterr().err
    assert (
        "c.csv: has the columns 'width', 'height', 'a, b', 'grade', and t.npz does not say which of them a row" in said
    )
    assert "add an array column_names to that, or give an .npz here" in said
